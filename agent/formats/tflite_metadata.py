"""The author's words in a TFLite model: its TFLITE_METADATA buffer and the label files at its tail.

Source of slots: the public `metadata_schema.fbs` (file identifier M001). All of it is advice: what
cannot be read becomes a note, never a refusal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from agent.errors import ModelRejected
from agent.formats.archive_tail import read_tail
from agent.formats.bounds import Budget, shown
from agent.formats.description import Normalisation
from agent.formats.flatbuffer import Flatbuffer, Table
from agent.formats.labels import parse_labels

_WHAT = "TFLite metadata"
_MAX_STEPS = 20_000
_AXIS_LABELS, _VALUE_LABELS = 2, 3  # AssociatedFileType
_NORMALISATION = 1  # ProcessUnitOptions


class AuthorsWords(msgspec.Struct):
    """What the author put into the file for people and tools.

    Attributes:
        inputs, outputs: (description, normalisation) in the order of the graph's own.
        label_file: name of the first file that labels an output.
    """

    name: str = ""
    description: str = ""
    version: str = ""
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    inputs: list[tuple[str, Normalisation | None]] = msgspec.field(default_factory=list)
    outputs: list[tuple[str, Normalisation | None]] = msgspec.field(default_factory=list)
    label_file: str = ""
    labels: tuple[str, ...] | None = None
    associated_files: tuple[str, ...] = ()
    notes: list[str] = msgspec.field(default_factory=list)


def read_words(data: memoryview, metadata: memoryview | None) -> AuthorsWords:
    """Read what there is.

    Args:
        data: the whole model file.
        metadata: the buffer called TFLITE_METADATA, if it has one.
    """
    words = AuthorsWords()
    if metadata is not None:
        try:
            _read_metadata(words, metadata)
        except ModelRejected as error:
            words.notes.append(f"its metadata cannot be read: {error.message}")
    try:
        names, text = read_tail(data, lambda names: _label_file(names, words.label_file))
        words.associated_files = names
        words.labels = parse_labels(text) if text is not None else None
    except ModelRejected as error:
        words.notes.append(f"the archive at its tail cannot be read: {error.message}")
    return words


def _read_metadata(words: AuthorsWords, data: memoryview) -> None:
    if bytes(data[4:8]) != b"M001":
        raise ModelRejected(f"unknown version {shown(bytes(data[4:8]).decode('latin-1'))}")
    root = Flatbuffer(data, Budget(_MAX_STEPS, _WHAT), _WHAT).root()
    words.name, words.description, words.version = root.text(4), root.text(6), root.text(8)
    named = {"author": root.text(12), "license": root.text(14)}
    words.metadata = {key: value for key, value in named.items() if value}
    for graph in root.tables(10)[:1]:  # the first is the main subgraph
        words.inputs = [_tensor(tensor) for tensor in graph.tables(8)]
        outputs = graph.tables(10)
        words.outputs = [_tensor(tensor) for tensor in outputs]
        words.label_file = next(_label_files(outputs), "")


def _tensor(tensor: Table) -> tuple[str, Normalisation | None]:
    for unit in tensor.tables(12):
        options = unit.table(6)
        if unit.number(4, "B") == _NORMALISATION and options is not None:
            return tensor.text(6), _normalisation(options)
    return tensor.text(6), None


def _normalisation(options: Table) -> Normalisation | None:
    mean, std = options.floats(4), options.floats(6)
    if not all(math.isfinite(value) for value in (*mean, *std)) or 0.0 in std:
        raise ModelRejected("a mean or standard deviation is not a number to compute with")
    return Normalisation(mean, std) if mean and std else None


def _label_files(outputs: Iterable[Table]) -> Iterator[str]:
    for output in outputs:
        for file in output.tables(16):
            if file.number(8, "b") in (_AXIS_LABELS, _VALUE_LABELS):
                yield file.name(4)


def _label_file(names: Sequence[str], named: str) -> str | None:
    """The file that the metadata names, else the only one that looks like labels."""
    if named in names:
        return named
    texts = [name for name in names if name.endswith(".txt")]
    likely = [name for name in texts if "label" in name.lower()] or texts
    return likely[0] if len(likely) == 1 else None
