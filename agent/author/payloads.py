"""From arrays to a payload that a pack's decoder reads: what golden samples are kept as.

One line a codec. A codec without one takes the author's own payload files only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from agent.documents.manifest import Tensor
from agent.errors import UsageError
from agent.pipeline.codecs.v2_binary import LENGTH
from agent.pipeline.selftest import to_bytes
from agent.pipeline.tensors import DTYPES, Array, fp32_to_bf16


class Values(msgspec.Struct, frozen=True):
    """What one payload shall hold.

    Args:
        codec: `pipeline.decode` as a manifest has it.
        inputs: The public inputs.
        arrays: One array for each, free dimensions filled.
        others: Fields that are no inputs: a reading's own time.
    """

    codec: Mapping[str, Any]
    inputs: Sequence[Tensor]
    arrays: Mapping[str, Array]
    others: Mapping[str, float] = msgspec.field(default_factory=dict)

    def in_order(self) -> list[tuple[Tensor, Array]]:
        """Return each input with its array."""
        return [(tensor, self.arrays[tensor.name]) for tensor in self.inputs]


Write = Callable[[Values], bytes]


def write(values: Values) -> bytes:
    """Return one payload.

    Raises:
        UsageError: Payloads of this codec cannot be made from numbers here.
    """
    name = values.codec["codec"]
    writer = WRITERS.get(name)
    if writer is None:
        raise UsageError(
            f"payloads of codec {name} cannot be made up here",
            hint="give real ones: --samples FILE for each",
        )
    return writer(values)


def drawable(codec: Mapping[str, Any], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return inputs with the range that a codec can carry, where none is declared."""
    if codec["codec"] != "image":
        return tuple(inputs)
    return tuple(
        msgspec.structs.replace(
            tensor,
            low=0.0 if tensor.low is None else tensor.low,
            high=255.0 if tensor.high is None else tensor.high,
        )
        for tensor in inputs
    )


def short_floats(array: Array) -> Array:
    """Return float64 whose shortest text reads back as the same float32 (or float16): 0.004 where
    plain widening would write 0.004000000189989805."""
    if array.dtype not in (np.float32, np.float16):
        return array
    shortest = array.astype(np.str_).astype(np.float64)
    exact = array.astype(np.float64)
    # Rounded to few digits, the largest finite value would be beyond its own type.
    fits = np.abs(shortest) <= np.finfo(array.dtype).max
    with np.errstate(over="ignore"):
        return np.where(fits & (shortest.astype(array.dtype) == array), shortest, exact)


def as_json_values(array: Array) -> list[Any]:
    """Return the elements as JSON can hold them; NaN and infinity as null."""
    flat = short_floats(array).ravel()
    values: list[Any] = flat.tolist()
    if flat.dtype.kind != "f":
        return values
    finite = np.isfinite(flat).tolist()
    return [value if good else None for value, good in zip(values, finite, strict=True)]


def v2_json(values: Values) -> bytes:
    """Return a V2 request in JSON."""
    described = [
        {
            "name": tensor.name,
            "shape": array.shape,
            "datatype": tensor.datatype,
            "data": as_json_values(array),
        }
        for tensor, array in values.in_order()
    ]
    return msgspec.json.encode({"inputs": described})


def v2_binary(values: Values) -> bytes:
    """Return a V2 request with binary tensors."""
    blobs = [_stored_bytes(array, tensor) for tensor, array in values.in_order()]
    described = [
        {
            "name": tensor.name,
            "shape": array.shape,
            "datatype": tensor.datatype,
            "parameters": {"binary_data_size": len(blob)},
        }
        for (tensor, array), blob in zip(values.in_order(), blobs, strict=True)
    ]
    text = msgspec.json.encode({"inputs": described})
    return b"".join((LENGTH.pack(len(text)), text, *blobs))


def raw(values: Values) -> bytes:
    """Return the bytes of the tensors one after the other."""
    return b"".join([_stored_bytes(array, tensor) for tensor, array in values.in_order()])


def _stored_bytes(array: Array, tensor: Tensor) -> bytes:
    if tensor.datatype == "BF16":
        return to_bytes(fp32_to_bf16(array))
    return to_bytes(array.astype(DTYPES[tensor.datatype]))


def features(values: Values) -> bytes:
    """Return one JSON array of features; an object where there are other fields."""
    cells = _cells(values)
    if not values.others:
        return msgspec.json.encode(cells)
    names = values.codec.get("fields") or [tensor.name for tensor in values.inputs]
    return msgspec.json.encode({**dict(zip(names, cells, strict=False)), **values.others})


def csv(values: Values) -> bytes:
    """Return one line; columns that nothing is known of hold 0."""
    cells, columns = _cells(values), values.codec.get("columns", ())
    if columns:
        names = values.codec.get("fields") or columns
        if len(values.inputs) > 1:
            names = [tensor.name for tensor in values.inputs]
        by_name = {**dict(zip(names, cells, strict=False)), **values.others}
        cells = [by_name.get(column, 0) for column in columns]
    return str(values.codec.get("delimiter", ",")).join(map(_csv_cell, cells)).encode()


def _cells(values: Values) -> list[Any]:
    return [cell for _, array in values.in_order() for cell in as_json_values(array)]


def _csv_cell(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else str(value)


def image(values: Values) -> bytes:
    """Return a PNG (ISO/IEC 15948) of 8 bits a channel."""
    array, options = values.arrays[values.inputs[0].name], values.codec
    channels = 1 if options.get("mode", "RGB") == "L" else 3
    pixels = np.clip(np.rint(array), 0, 255).astype(np.uint8)
    height, width = pixels.shape[-3:-1] if pixels.ndim > 2 else pixels.shape
    rows = pixels.reshape(height, width * channels)
    # Each row starts with the number of its filter: none.
    lines = np.insert(rows, 0, 0, axis=1).tobytes()
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    body = [(b"IHDR", head), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in body)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


_PCM: dict[str, tuple[str, float, int]] = {
    # dtype, full scale, silence
    "u8": ("u1", 127.0, 128),
    "s8": ("i1", 127.0, 0),
    "s16le": ("<i2", 32767.0, 0),
    "s32le": ("<i4", 2147483000.0, 0),
}


def pcm(values: Values) -> bytes:
    """Return bare samples; each channel of several that are mixed to one holds the same."""
    array, options = values.arrays[values.inputs[0].name], values.codec
    encoding = options.get("encoding", "s16le")
    if options.get("mix", True) and options.get("channels", 1) > 1:
        array = np.repeat(array.ravel(), options["channels"])
    if encoding == "f32le" or array.dtype == np.int16:
        return array.astype("<i2" if array.dtype == np.int16 else "<f4").tobytes()
    if encoding not in _PCM:
        raise UsageError(f"samples of encoding {encoding} cannot be made up here")
    dtype, scale, silence = _PCM[encoding]
    return (np.rint(np.clip(array, -1, 1) * scale) + silence).astype(dtype).tobytes()


WRITERS: dict[str, Write] = {
    "v2_json": v2_json,
    "v2_binary": v2_binary,
    "raw": raw,
    "features": features,
    "csv": csv,
    "image": image,
    "pcm": pcm,
}
