"""Golden outputs: how a self-test case keeps them and how a prediction is held against them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from agent.documents.codec import show
from agent.documents.manifest import CaseTensor, Tensor, Tolerance
from agent.errors import BadInput, SelfTestFailed
from agent.pipeline.message import Prediction
from agent.pipeline.tensors import DTYPES, Array, bf16_to_fp32, show_shape

_LENGTH = struct.Struct("<I")


def to_bytes(array: Array) -> bytes:
    """Return the elements as little-endian, row-major bytes.

    A BYTES element is its length as u32 and its UTF-8 text (V2 protocol, binary tensor data).
    """
    if array.dtype.kind == "O":
        texts = [str(text).encode() for text in array.ravel().tolist()]
        return b"".join([_LENGTH.pack(len(text)) + text for text in texts])
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def strings_from(data: bytes | memoryview, where: str) -> list[str]:
    """Return the texts of binary BYTES data.

    Raises:
        BadInput: A length points beyond the end, or a text is not UTF-8.
    """
    texts, offset = [], 0
    try:
        while offset < len(data):
            (length,) = _LENGTH.unpack_from(data, offset)
            offset += _LENGTH.size + length
            if offset > len(data):
                raise BadInput(f"{where}: an element is longer than the data")
            texts.append(str(data[offset - length : offset], "utf-8"))
    except (struct.error, UnicodeDecodeError) as error:
        raise BadInput(f"{where}: {error}") from None
    return texts


def expected_from(prediction: Prediction, outputs: Sequence[Tensor]) -> tuple[CaseTensor, ...]:
    """Return what a self-test case keeps of a prediction."""
    return tuple(
        CaseTensor(
            name=tensor.name,
            datatype=tensor.datatype,
            shape=prediction.tensors[tensor.name].shape,
            data=to_bytes(prediction.tensors[tensor.name]),
        )
        for tensor in outputs
    )


def deviation(
    prediction: Prediction, expected: Sequence[CaseTensor], tolerance: Tolerance
) -> float:
    """Hold a prediction against golden outputs.

    Args:
        prediction: What was predicted.
        expected: What should have been.
        tolerance: How far a number may be from it.

    Returns:
        The largest difference seen, in the unit of the output.

    Raises:
        SelfTestFailed: An output is missing, of another shape or type, or too far off.
    """
    largest = 0.0
    for golden in expected:
        array = prediction.tensors.get(golden.name)
        if array is None:
            raise SelfTestFailed(f"output {golden.name!r}: expected by the self-test, not there")
        if array.shape != golden.shape or array.dtype != DTYPES[golden.datatype]:
            raise SelfTestFailed(
                f"output {golden.name!r}: expected {golden.datatype} {show_shape(golden.shape)}, "
                f"got {array.dtype.name} {show_shape(array.shape)}"
            )
        if golden.datatype == "BYTES":
            _compare_texts(golden, array)
        else:
            largest = max(largest, _compare_numbers(golden, array, tolerance))
    return largest


def _compare_texts(golden: CaseTensor, array: Array) -> None:
    try:
        wanted = strings_from(golden.data, f"output {golden.name!r}")
    except BadInput as error:
        raise SelfTestFailed(f"the self-test case cannot be read: {error.message}") from None
    for index, (want, got) in enumerate(zip(wanted, array.ravel().tolist(), strict=False)):
        if want != got:
            raise SelfTestFailed(
                f"output {golden.name!r}[{index}]: expected {show(want)}, got {show(got)}"
            )


def _compare_numbers(golden: CaseTensor, array: Array, tolerance: Tolerance) -> float:
    dtype = DTYPES[golden.datatype]
    if len(golden.data) != array.size * dtype.itemsize:
        raise SelfTestFailed(
            f"output {golden.name!r}: the self-test case holds {len(golden.data)} bytes, "
            f"its shape {array.size * dtype.itemsize}"
        )
    if not array.size:
        return 0.0
    wanted = np.frombuffer(golden.data, dtype.newbyteorder("<")).astype(dtype).reshape(array.shape)
    if golden.datatype == "BF16":
        wanted, array = bf16_to_fp32(wanted), bf16_to_fp32(array)
    want, got = wanted.astype(np.float64), array.astype(np.float64)
    # The same infinity, or NaN where NaN is meant, is no difference; another one is no tolerance.
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(got - want))
        allowed = tolerance.absolute + tolerance.relative * np.abs(want)
    passes = same | (np.isfinite(want) & (difference <= allowed))
    if not passes.all():
        index = tuple(int(i) for i in np.argwhere(~passes)[0])
        raise SelfTestFailed(
            f"output {golden.name!r}{show_shape(index)}: expected {want[index]:.6g}, "
            f"got {got[index]:.6g}, tolerance {tolerance.absolute:.6g}",
            hint="this device, runtime or variant computes something else than the author's",
        )
    return float(difference.max())
