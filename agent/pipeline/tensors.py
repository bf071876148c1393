"""Datatypes, shapes and finite values of tensors, as NumPy sees them.

A BF16 array is held as its bits in uint16 (NumPy has no such type), a BYTES array as an object
array of `str`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.documents.manifest import Tensor
from agent.errors import BadInput

Array = NDArray[Any]
Arrays = dict[str, Array]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
# The largest finite value of each floating-point datatype.
FLOAT_MAX = {
    "FP16": 65504.0,
    "BF16": 3.3895313892515355e38,
    "FP32": 3.4028234663852886e38,
    "FP64": 1.7976931348623157e308,
}
INTEGERS = frozenset(name for name, dtype in DTYPES.items() if dtype.kind in "iu") - {"BF16"}
MAX_RANK = 16
MAX_KNOWN_SHAPES = 64


def is_quantised(tensor: Tensor) -> bool:
    """True where the tensor's integers stand for real numbers: real = (q - zero_point) * scale."""
    return tensor.scale is not None and tensor.datatype in INTEGERS


def show_shape(shape: Sequence[int]) -> str:
    """Render a shape as the protocol writes it: `[1,30]`."""
    return "[" + ",".join(map(str, shape)) + "]"


def all_finite(array: Array) -> bool:
    """True if no element of a floating-point array is NaN or infinite."""
    # Searching the bytes costs half of what `.all()` does on the few values of most models.
    return b"\0" not in np.isfinite(array).tobytes()


def bf16_to_fp32(bits: Array) -> Array:
    """Widen BF16 bits: they are the high half of a float32."""
    return np.asarray(np.left_shift(bits, 16, dtype=np.uint32)).view(np.float32)


def fp32_to_bf16(values: Array) -> Array:
    """Round finite float32 values to BF16 bits, to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded: Array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded.reshape(values.shape)


def from_bytes(data: bytes | memoryview, tensor: Tensor, where: str) -> Array:
    """Return the elements of little-endian bytes, without copying them; flat.

    Raises:
        BadInput: A floating-point value is NaN or infinite and the tensor does not allow that.
    """
    dtype = DTYPES[tensor.datatype]
    array: Array
    if tensor.datatype == "BOOL":
        # Any other byte than 0 and 1 would be a bool that NumPy does not know.
        array = np.frombuffer(data, np.uint8) != 0
        return array
    array = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=False)
    if tensor.datatype in FLOAT_MAX and not tensor.allow_nan:
        check_finite(bf16_to_fp32(array) if tensor.datatype == "BF16" else array, where)
    return array


def check_finite(array: Array, where: str) -> None:
    """Refuse NaN and infinity in an input.

    Raises:
        BadInput: There is one.
    """
    if not all_finite(array):
        raise BadInput(f"{where}: expected finite numbers, got NaN or infinity")


def matches(wanted: Sequence[int], shape: Sequence[int]) -> bool:
    """True if `shape` is one of those that `wanted` (-1: free) allows."""
    return len(wanted) == len(shape) and all(
        got >= 0 and want in (got, -1) for want, got in zip(wanted, shape, strict=True)
    )


def may_match(wanted: Sequence[int], shape: Sequence[int]) -> bool:
    """True if two shapes, both perhaps with free dimensions, can be the same."""
    return len(wanted) == len(shape) and all(
        want == got or -1 in (want, got) for want, got in zip(wanted, shape, strict=True)
    )


class Fit:
    """The shapes that one tensor takes: its own, and with a leading 1 more or less."""

    __slots__ = ("fixed", "free", "known", "wanted")

    def __init__(self, wanted: Sequence[int]) -> None:
        """Prepare for one tensor. In its shape `wanted`, -1 is free."""
        self.wanted = tuple(wanted)
        self.free = tuple(i for i, n in enumerate(wanted) if n == -1)
        self.fixed = math.prod(n for n in wanted if n != -1)
        # Shapes that were found to fit, with what the array gets: most models see one only.
        self.known: dict[tuple[int, ...], tuple[int, ...]] = {}

    def __call__(self, shape: tuple[int, ...], where: str) -> tuple[int, ...]:
        """Return the shape that an array of `shape` shall get; the same number of elements.

        Args:
            shape: What the array has, or a payload says it has.
            where: How an error names it.

        Raises:
            BadInput: It does not fit.
        """
        fitted = self.known.get(shape)
        if fitted is None:
            fitted = self._fit(shape)
            if fitted is None:
                expected = show_shape(self.wanted)
                raise BadInput(f"{where}.shape: expected {expected}, got {show_shape(shape)}")
            if len(self.known) < MAX_KNOWN_SHAPES:
                self.known[shape] = fitted
        return fitted

    def _fit(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        wanted = self.wanted
        if matches(wanted, shape):
            return shape
        if wanted and wanted[0] in (1, -1) and matches(wanted[1:], shape):
            return (1, *shape)
        if shape and shape[0] == 1 and matches(wanted, shape[1:]):
            return shape[1:]
        return None

    def takes(self, shape: tuple[int, ...]) -> bool:
        """True if an array of `shape` is right as it is."""
        fits = matches(self.wanted, shape)
        if fits and len(self.known) < MAX_KNOWN_SHAPES:
            self.known[shape] = shape
        return fits

    def solve(self, count: int, where: str) -> tuple[int, ...]:
        """Return the one shape that `count` elements in a row can have.

        A leading free dimension is 1 where another one is free too (see `is_solvable`).

        Raises:
            BadInput: No shape has that many elements.
        """
        shape = list(self.wanted)
        free = self.free
        if len(free) > 1:
            shape[free[0]] = 1
        if free and self.fixed and count % self.fixed == 0:
            shape[free[-1]] = count // self.fixed
        elif free or count != self.fixed:
            raise BadInput(
                f"{where}: expected the elements of shape {show_shape(self.wanted)}, "
                f"got {count} elements"
            )
        return tuple(shape)

    def divides(self, count: int) -> bool:
        """True if some size of the free dimensions gives `count` elements."""
        return self.fixed != 0 and count % self.fixed == 0

    def is_solvable(self) -> bool:
        """True if the number of elements tells the shape."""
        return len(self.free) < 2 or (len(self.free) == 2 and self.free[0] == 0)
