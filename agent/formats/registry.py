"""Which formats there are: one line each; how a file is recognised; who describes it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

from agent.errors import ModelRejected
from agent.formats import magic
from agent.formats.description import ModelDescription

HEAD_LENGTH = 512  # bytes that `recognise` looks at


class Format(NamedTuple):
    """A format that is read here, or by another package (`add`).

    Attributes:
        name: What a manifest calls it.
        title: What people call it.
        suffix: Of its files; decides only where the content says nothing.
        matches: Whether the first `HEAD_LENGTH` bytes are of such a file.
        describe: Reads the file. Bounded: whatever the bytes are, it ends with a description or
            `ModelRejected`.
    """

    name: str
    title: str
    suffix: str
    matches: Callable[[bytes], bool]
    describe: Callable[[memoryview], ModelDescription]


def _reader(module: str) -> Callable[[memoryview], ModelDescription]:
    """Return the `describe` of a module of this room, which is imported when it first reads: a
    worker that serves what was looked at before needs none of them."""

    def describe(data: memoryview) -> ModelDescription:
        reader: Callable[[memoryview], ModelDescription] = importlib.import_module(module).describe
        return reader(data)

    return describe


# In order of recognition: ONNX, which has no magic number, comes last.
FORMATS = (
    Format("tflite", "TFLite", ".tflite", magic.is_tflite, _reader("agent.formats.tflite")),
    Format("ort", "ORT", ".ort", magic.is_ort, _reader("agent.formats.ort")),
    Format("onnx", "ONNX", ".onnx", magic.is_onnx, _reader("agent.formats.onnx")),
)


_brought: list[Format] = []


def add(brought: Format) -> None:
    """Make a format known that another package reads, for as long as this process lives.

    Raises:
        ValueError: There is another one of this name.
    """
    for format_ in known():
        if format_.name == brought.name:
            if format_ != brought:
                raise ValueError(f"there are two model formats called {brought.name!r}")
            return
    _brought.append(brought)


def known() -> tuple[Format, ...]:
    """Return all formats; those that other packages brought come last."""
    return (*FORMATS, *_brought)


def recognise(head: bytes) -> str:
    """Name what a file is by its first `HEAD_LENGTH` bytes.

    Returns:
        A format's name ("onnx", "tflite" …), the name of a foreign kind ("zip", "hdf5" …, see
        `magic.FOREIGN`), "empty" or "unknown".
    """
    if not head:
        return "empty"
    kinds: tuple[Format | magic.Foreign, ...] = (*known(), *magic.FOREIGN)
    return next((kind.name for kind in kinds if kind.matches(head)), "unknown")


def describe(data: bytes | memoryview, *, filename: str = "") -> ModelDescription:
    """Describe a model by its content; the name decides only where the content says nothing.

    Args:
        data: the whole file, up to any size; weights are not walked.
        filename: name or path of the file.

    Raises:
        ModelRejected: the file is no model that is read here, or a damaged one.
    """
    view = memoryview(data).cast("B")
    head = bytes(view[:HEAD_LENGTH])
    kind = recognise(head)
    for format_ in known():
        if format_.name == kind or (kind == "unknown" and filename.endswith(format_.suffix)):
            return format_.describe(view)
    raise _refusal(kind, head)


def _refusal(kind: str, head: bytes) -> ModelRejected:
    if kind == "empty":
        return ModelRejected("the model file is empty", hint="copy or export it again")
    first, *others = (f.title for f in known())
    titles = " or ".join(filter(None, (", ".join((first, *others[:-1])), others[-1])))
    for foreign in magic.FOREIGN:
        if foreign.name == kind:
            return ModelRejected(
                f"the file is {foreign.title}, not a {titles} model", hint=foreign.advice
            )
    return ModelRejected(
        f"the file is not a {titles} model: it begins with {head[:8].hex(' ')}",
        hint="give the .onnx or .tflite file itself",
    )
