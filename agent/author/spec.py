"""`model.toml`: what the author says of a model that its file does not say itself.

Every key may be left out. An unknown key is refused: a typing mistake must not go unnoticed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from agent.documents.codec import convert, show
from agent.documents.manifest import (
    Card,
    Datatype,
    Limits,
    Pipeline,
    Shape,
    StatePair,
    Tensor,
    Tolerance,
)
from agent.errors import DocumentError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_SPEC_BYTES = 1024 * 1024

HiddenState = Literal["none", "reset", "per_source"]


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output as payloads have it.

    Named like a tensor of the file, it changes what is given and leaves the rest. With a window or
    steps before the model, or where an input has a name that the file does not know, the listed
    inputs are the whole of what a payload holds; such an input needs `datatype` and `shape`.
    """

    name: str
    # "FP32" over a quantised tensor of the file: payloads hold real numbers.
    datatype: Datatype | None = None
    # -1: each request may choose.
    shape: Shape | None = None
    unit: str | None = None
    allow_nan: bool | None = None
    # The range that random samples are drawn from.
    low: float | None = None
    high: float | None = None


class VariantSpec(msgspec.Struct, frozen=True):
    """A further model file of the same network, or what differs for the one that is packed."""

    # Relative to model.toml.
    file: str
    name: str | None = None
    tolerance: Tolerance | None = None
    hidden_state: HiddenState | None = None


class Spec(msgspec.Struct, frozen=True):
    """The whole of `model.toml`."""

    name: str | None = None
    version: str | None = None
    task: str | None = None
    labels: tuple[str, ...] | None = None
    # One class name a line; relative to model.toml.
    labels_file: str | None = None
    card: Card = Card()
    limits: Limits = Limits()
    pipeline: Pipeline = Pipeline()
    state: tuple[StatePair, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    # For every variant that has none of its own.
    tolerance: Tolerance | None = None
    hidden_state: HiddenState | None = None
    # Files with golden samples; relative to model.toml.
    samples: tuple[str, ...] = ()
    variants: tuple[VariantSpec, ...] = ()


def read_spec(path: Path) -> Spec:
    """Read a `model.toml`; the paths in it become absolute.

    Raises:
        UsageError: There is no such file.
        DocumentError: It is no TOML, or a value in it is not what it must be; names the path.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="give the model.toml itself") from None
    return parse_spec(data, path.parent.absolute(), name=path.name)


def parse_spec(data: bytes, folder: Path, *, name: str = "model.toml") -> Spec:
    """Decode a specification whose relative paths start from `folder`."""
    if len(data) > MAX_SPEC_BYTES:
        raise DocumentError(name, f"at most {MAX_SPEC_BYTES} bytes", f"{len(data)} bytes")
    try:
        raw = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentError(name, "TOML", str(error)) from None
    spec = convert(raw, Spec, name=name).value
    unknown = next(_unknown_keys(raw, Spec, name), None)
    if unknown is not None:
        raise DocumentError(*unknown)
    if spec.labels is not None and spec.labels_file is not None:
        raise DocumentError(f"{name}.labels_file", "either labels or labels_file", "both")
    return _with_absolute_paths(spec, folder)


def _with_absolute_paths(spec: Spec, folder: Path) -> Spec:
    replace = msgspec.structs.replace
    return replace(
        spec,
        labels_file=str(folder / spec.labels_file) if spec.labels_file else None,
        samples=tuple(str(folder / sample) for sample in spec.samples),
        variants=tuple(replace(v, file=str(folder / v.file)) for v in spec.variants),
    )


def _unknown_keys(raw: object, kind: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Give (path, expected, got) for each key that no struct has."""
    kind = _inner(kind)
    if isinstance(raw, Mapping) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        for key, value in raw.items():
            if key not in fields:
                yield f"{path}.{key}", f"one of {', '.join(fields)}", f"an unknown key {show(key)}"
            else:
                yield from _unknown_keys(value, fields[key], f"{path}.{key}")
    elif isinstance(raw, list) and get_origin(kind) is tuple:
        for index, item in enumerate(raw):
            yield from _unknown_keys(item, get_args(kind)[0], f"{path}[{index}]")


def _inner(kind: Any) -> Any:
    """Look through Annotated and `… | None`."""
    if hasattr(kind, "__metadata__"):
        return _inner(get_args(kind)[0])
    options = [option for option in get_args(kind) if option is not type(None)]
    if len(options) == 1 and type(None) in get_args(kind):
        return _inner(options[0])
    return kind


def apply(spec: TensorSpec, tensor: Tensor) -> Tensor:
    """Return a tensor with what the author says of it.

    A datatype other than the stored one drops scale and zero point: the tensor then holds real
    numbers, and quantising is done where it meets the file's.
    """
    given = {
        name: value
        for name in ("datatype", "shape", "unit", "allow_nan", "low", "high")
        if (value := getattr(spec, name)) is not None
    }
    if given.get("datatype", tensor.datatype) != tensor.datatype:
        given |= {"scale": None, "zero_point": None}
    return msgspec.structs.replace(tensor, **given)


def named_alone(spec: TensorSpec, path: str) -> Tensor:
    """Return a public tensor that no tensor of the file has the name of.

    Raises:
        DocumentError: Its datatype or shape is not given.
    """
    if spec.datatype is None or spec.shape is None:
        missing = "datatype" if spec.datatype is None else "shape"
        raise DocumentError(
            f"{path}.{missing}",
            f"a {missing}, as the model file has no tensor {spec.name!r}",
            "none",
        )
    return apply(spec, Tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape))
