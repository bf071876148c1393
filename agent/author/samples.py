"""The author's golden samples: read from tables, arrays, requests or payload files.

A sample is what one source sends, in order, and what its last message must give, where the author
knows that. With a window or a state the rows of one file belong together; else each is a sample.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agent.author import payloads
from agent.documents.manifest import Tensor
from agent.errors import DocumentError, UsageError
from agent.pipeline.tensors import DTYPES, Array, Arrays, fp32_to_bf16, matches, show_shape

MAX_SAMPLE_BYTES = 256 * 1024 * 1024
# Of a longer table, so many rows spread over it; every device runs them before it serves.
MAX_CASES = 32
MAX_PAYLOADS = 4096
_V2_CODECS = ("v2_json", "v2_binary")


class Sample(msgspec.Struct, frozen=True):
    """Payloads of one source, and the outputs of the last where the author states them."""

    payloads: tuple[bytes, ...]
    outputs: Arrays = msgspec.field(default_factory=dict)


class Reading(msgspec.Struct, frozen=True):
    """What sample files are read for."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    codec: Mapping[str, Any]
    # Rows follow each other at one source.
    together: bool

    def payload(self, arrays: Arrays, others: Mapping[str, float] | None = None) -> bytes:
        """Return the payload that holds these arrays, and perhaps fields that are no inputs."""
        return payloads.write(payloads.Values(self.codec, self.inputs, arrays, others or {}))


def read_samples(files: Sequence[Path], reading: Reading) -> tuple[Sample, ...]:
    """Read golden samples.

    Args:
        files: `.npy` (one input), `.npz` (arrays by input), `.csv` (a row of numbers each),
            `.json` (V2 requests, alone, listed, or with outputs under `samples`), `.jsonl` (a
            payload a line); anything else is a payload itself.
        reading: The pack's signature.

    Raises:
        UsageError: A file is missing, too large, or not what its name says.
        DocumentError: A value does not fit the pack's inputs.
    """
    samples: list[Sample] = []
    loose: list[bytes] = []
    for file in files:
        data = _read(file)
        reader = READERS.get(file.suffix.lower())
        if reader is None:
            loose.append(data)
        else:
            samples += _grouped(reader(data, file.name, reading), reading)
    samples += _grouped([Sample((payload,)) for payload in loose], reading)
    if not samples:
        raise UsageError("the sample files hold no sample")
    return tuple(_spread(samples))


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > MAX_SAMPLE_BYTES:
            raise UsageError(f"{file}: samples of at most {MAX_SAMPLE_BYTES >> 20} MiB are read")
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", hint="give a file with samples") from None


def _grouped(samples: Sequence[Sample], reading: Reading) -> list[Sample]:
    if not reading.together or len(samples) < 2:
        return list(samples)
    stream = tuple(payload for sample in samples for payload in sample.payloads)
    if len(stream) > MAX_PAYLOADS:
        raise UsageError(f"a stream of {len(stream)} messages is too long (at most {MAX_PAYLOADS})")
    return [Sample(stream, samples[-1].outputs)]


def _spread(samples: Sequence[Sample]) -> list[Sample]:
    if len(samples) <= MAX_CASES:
        return list(samples)
    return [samples[index * len(samples) // MAX_CASES] for index in range(MAX_CASES)]


# Arrays.


def _npy(data: bytes, name: str, reading: Reading) -> list[Sample]:
    if len(reading.inputs) != 1:
        raise UsageError(
            f"{name}: the pack has {len(reading.inputs)} inputs",
            hint="give an .npz with one array for each input",
        )
    array = _load(data, name)
    tensor = reading.inputs[0]
    return [Sample((reading.payload({tensor.name: row}),)) for row in rows_of(array, tensor, name)]


def _npz(data: bytes, name: str, reading: Reading) -> list[Sample]:
    archive = _load(data, name)
    columns = {}
    for tensor in reading.inputs:
        if tensor.name not in archive:
            raise DocumentError(name, f"an array {tensor.name!r}", ", ".join(archive) or "none")
        columns[tensor.name] = rows_of(archive[tensor.name], tensor, f"{name}:{tensor.name}")
    counts = {len(rows) for rows in columns.values()}
    if len(counts) != 1:
        raise DocumentError(name, "as many rows of each input", str(sorted(counts)))
    return [
        Sample((reading.payload({key: rows[index] for key, rows in columns.items()}),))
        for index in range(counts.pop())
    ]


def _load(data: bytes, name: str) -> Any:
    try:
        # Never pickles: they run code.
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UsageError(f"{name}: not a NumPy file of plain numbers: {error}") from None


def rows_of(array: Array, tensor: Tensor, where: str) -> list[Array]:
    """Cut an array into values of one input.

    Raises:
        DocumentError: Its shape fits neither the input nor a stack of inputs.
    """
    array = cast_to(array, tensor, where)
    wanted, shape = tensor.shape, array.shape
    leading = bool(wanted) and wanted[0] in (1, -1)
    if matches(wanted, shape):
        return [array]
    if shape and matches(wanted, shape[1:]):
        return list(array)
    if leading and matches(wanted[1:], shape):
        return [array[None]]
    if leading and shape and matches(wanted[1:], shape[1:]):
        return [row[None] for row in array]
    raise DocumentError(where, f"shape {show_shape(wanted)}, or a stack of such", show_shape(shape))


def cast_to(array: Array, tensor: Tensor, where: str) -> Array:
    """Return an array in a tensor's datatype, where that changes no value beyond rounding.

    Raises:
        DocumentError: It holds other values.
    """
    dtype = DTYPES[tensor.datatype]
    if tensor.datatype == "BF16" or array.dtype == dtype:
        return array
    expected = f"{tensor.datatype} values"
    if array.dtype.kind not in "biuf" or dtype.kind == "O":
        if array.dtype.kind in "US" and dtype.kind == "O":
            return array.astype(np.str_).astype(object)
        raise DocumentError(where, expected, f"an array of {array.dtype}")
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(cast, array):
        raise DocumentError(where, expected, f"{array.dtype} values beyond it")
    return cast


# Text.


def _csv(data: bytes, name: str, reading: Reading) -> list[Sample]:
    lines = [line for line in _text(data, name).splitlines() if line.strip()]
    if lines and not _is_numeric(lines[0]):
        del lines[0]
    if reading.codec["codec"] == "csv":
        return [Sample((line.encode(),)) for line in lines]
    rows = csv.reader(lines)
    return [
        Sample((reading.payload(_from_row(row, f"{name}: row {number}", reading)),))
        for number, row in enumerate(rows, start=1)
    ]


def _is_numeric(line: str) -> bool:
    try:
        return bool([float(cell) for cell in next(csv.reader([line]))])
    except ValueError:
        return False


def _from_row(row: Sequence[str], where: str, reading: Reading) -> Arrays:
    shapes = {t.name: tuple(max(1, abs(n)) for n in t.shape) for t in reading.inputs}
    wanted = sum(math.prod(shape) for shape in shapes.values())
    if len(row) != wanted:
        raise DocumentError(where, f"{wanted} columns, as the inputs have values", str(len(row)))
    arrays, place = {}, 0
    for tensor in reading.inputs:
        shape = shapes[tensor.name]
        cells = row[place : place + math.prod(shape)]
        place += len(cells)
        arrays[tensor.name] = _from_values(list(cells), tensor, where).reshape(shape)
    return arrays


def _from_values(values: list[Any], tensor: Tensor, where: str) -> Array:
    if tensor.datatype == "BYTES":
        return np.array(values, np.object_)
    try:
        if DTYPES[tensor.datatype].kind in "iu" and tensor.datatype != "BF16":
            # Through int, so that 64-bit values stay exact.
            return np.array([int(value) for value in values], DTYPES[tensor.datatype])
        return cast_to(np.array(values, np.float64), tensor, where)
    except (ValueError, TypeError, OverflowError) as error:
        raise DocumentError(where, f"{tensor.datatype} values", str(error)) from None


def _jsonl(data: bytes, name: str, _reading: Reading) -> list[Sample]:
    lines = _text(data, name).splitlines()
    return [Sample((line.encode(),)) for line in lines if line.strip()]


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{name}: not UTF-8 text") from None


# Requests.


class _V2Tensor(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any]


class _V2Sample(msgspec.Struct):
    inputs: list[_V2Tensor]
    outputs: list[_V2Tensor] = []


class _V2Samples(msgspec.Struct):
    samples: list[_V2Sample]


def _json(data: bytes, name: str, reading: Reading) -> list[Sample]:
    try:
        document = msgspec.json.decode(data)
        if reading.codec["codec"] not in _V2_CODECS and not _has_samples(document):
            many = document if isinstance(document, list) else [document]
            return [Sample((msgspec.json.encode(one),)) for one in many]
        if isinstance(document, Mapping) and "samples" not in document:
            document = [document]
        if isinstance(document, list):
            document = {"samples": document}
        found = msgspec.convert(document, _V2Samples).samples
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{name}: expected V2 requests ({error})",
            hint='{"inputs": [{"name", "shape", "datatype", "data"}]}, a list of them, or '
            '{"samples": [{"inputs", "outputs"}]}',
        ) from None
    return [
        _from_v2(sample, f"{name}: sample {number}", reading)
        for number, sample in enumerate(found, start=1)
    ]


def _has_samples(document: object) -> bool:
    return isinstance(document, Mapping) and isinstance(document.get("samples"), list)


def _from_v2(sample: _V2Sample, where: str, reading: Reading) -> Sample:
    arrays = _arrays(sample.inputs, reading.inputs, f"{where}: inputs")
    missing = [t.name for t in reading.inputs if t.name not in arrays]
    if missing:
        raise DocumentError(f"{where}: inputs", f"an input {missing[0]!r}", "none")
    outputs = _arrays(sample.outputs, reading.outputs, f"{where}: outputs")
    for tensor in reading.outputs:
        if tensor.datatype == "BF16" and tensor.name in outputs:
            outputs[tensor.name] = fp32_to_bf16(outputs[tensor.name])
    return Sample((reading.payload(arrays),), outputs)


def _arrays(given: Sequence[_V2Tensor], known: Sequence[Tensor], where: str) -> Arrays:
    by_name = {tensor.name: tensor for tensor in known}
    arrays = {}
    for one in given:
        tensor = by_name.get(one.name)
        if tensor is None:
            raise DocumentError(where, f"one of {', '.join(by_name)}", repr(one.name))
        here = f"{where}.{one.name}"
        if one.datatype != tensor.datatype:
            raise DocumentError(f"{here}.datatype", tensor.datatype, one.datatype)
        if len(one.data) != math.prod(one.shape):
            raise DocumentError(
                f"{here}.data", f"{math.prod(one.shape)} values", str(len(one.data))
            )
        arrays[one.name] = _from_values(one.data, tensor, here).reshape(one.shape)
    return arrays


READERS: dict[str, Callable[[bytes, str, Reading], list[Sample]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
}
