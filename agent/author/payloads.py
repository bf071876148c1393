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

# Arguments: one array per public input, the inputs, the codec's options.
Write = Callable[[Mapping[str, Array], Sequence[Tensor], Mapping[str, Any]], bytes]


def write(codec: Mapping[str, Any], arrays: Mapping[str, Array], inputs: Sequence[Tensor]) -> bytes:
    """Return one payload.

    Args:
        codec: `pipeline.decode` as a manifest has it.
        arrays: One array per public input, free dimensions filled.
        inputs: The public inputs.

    Raises:
        UsageError: Payloads of this codec cannot be made from numbers here.
    """
    name = codec["codec"]
    writer = WRITERS.get(name)
    if writer is None:
        raise UsageError(
            f"payloads of codec {name} cannot be made up here",
            hint="give real ones: --samples FILE for each",
        )
    return writer(arrays, inputs, codec)


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
    return np.where(shortest.astype(array.dtype) == array, shortest, exact)


def as_json_values(array: Array) -> list[Any]:
    """Return the elements as JSON can hold them; NaN and infinity as null."""
    flat = short_floats(array).ravel()
    values: list[Any] = flat.tolist()
    if flat.dtype.kind != "f":
        return values
    finite = np.isfinite(flat).tolist()
    return [value if good else None for value, good in zip(values, finite, strict=True)]


def v2_json(
    arrays: Mapping[str, Array], inputs: Sequence[Tensor], _options: Mapping[str, Any]
) -> bytes:
    """Return a V2 request in JSON."""
    described = [
        {
            "name": tensor.name,
            "shape": arrays[tensor.name].shape,
            "datatype": tensor.datatype,
            "data": as_json_values(arrays[tensor.name]),
        }
        for tensor in inputs
    ]
    return msgspec.json.encode({"inputs": described})


def v2_binary(
    arrays: Mapping[str, Array], inputs: Sequence[Tensor], _options: Mapping[str, Any]
) -> bytes:
    """Return a V2 request with binary tensors."""
    blobs = [_stored_bytes(arrays[tensor.name], tensor) for tensor in inputs]
    described = [
        {
            "name": tensor.name,
            "shape": arrays[tensor.name].shape,
            "datatype": tensor.datatype,
            "parameters": {"binary_data_size": len(blob)},
        }
        for tensor, blob in zip(inputs, blobs, strict=True)
    ]
    text = msgspec.json.encode({"inputs": described})
    return b"".join((LENGTH.pack(len(text)), text, *blobs))


def raw(
    arrays: Mapping[str, Array], inputs: Sequence[Tensor], _options: Mapping[str, Any]
) -> bytes:
    """Return the bytes of the tensors one after the other."""
    return b"".join([_stored_bytes(arrays[tensor.name], tensor) for tensor in inputs])


def _stored_bytes(array: Array, tensor: Tensor) -> bytes:
    if tensor.datatype == "BF16":
        return to_bytes(fp32_to_bf16(array))
    return to_bytes(array.astype(DTYPES[tensor.datatype]))


def features(
    arrays: Mapping[str, Array], inputs: Sequence[Tensor], _options: Mapping[str, Any]
) -> bytes:
    """Return one JSON array of features."""
    rows = [as_json_values(arrays[tensor.name]) for tensor in inputs]
    return msgspec.json.encode([value for row in rows for value in row])


def csv(arrays: Mapping[str, Array], inputs: Sequence[Tensor], options: Mapping[str, Any]) -> bytes:
    """Return one line; columns that are no feature hold 0."""
    cells = [cell for t in inputs for cell in map(_cell, as_json_values(arrays[t.name]))]
    columns: Sequence[str] = options.get("columns", ())
    names = options.get("fields") or columns
    if columns and len(inputs) > 1:
        names = [tensor.name for tensor in inputs]
    if columns:
        by_name = dict(zip(names, cells, strict=False))
        cells = [by_name.get(column, "0") for column in columns]
    return str(options.get("delimiter", ",")).join(cells).encode()


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else str(value)


def image(
    arrays: Mapping[str, Array], inputs: Sequence[Tensor], options: Mapping[str, Any]
) -> bytes:
    """Return a PNG (ISO/IEC 15948) of 8 bits a channel."""
    array = arrays[inputs[0].name]
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


def pcm(arrays: Mapping[str, Array], inputs: Sequence[Tensor], options: Mapping[str, Any]) -> bytes:
    """Return bare samples; each channel of several that are mixed to one holds the same."""
    array = arrays[inputs[0].name]
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
