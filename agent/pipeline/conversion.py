"""From the numbers of one tensor to those of another: quantised, dequantised or cast, exactly once.

real = (stored - zero_point) * scale, and back: stored = clip(rint(real / scale + zero_point)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from agent.documents.manifest import Tensor
from agent.errors import BadInput, BadOutput, DocumentError
from agent.pipeline.tensors import (
    DTYPES,
    FLOAT_MAX,
    Array,
    bf16_to_fp32,
    fp32_to_bf16,
    is_quantised,
)

Convert = Callable[[Array], Array]
Refuse = type[BadInput] | type[BadOutput]


def compile_conversion(
    source: Tensor, target: Tensor, *, path: str, refuse: Refuse
) -> Convert | None:
    """Return what turns an array of `source` into one of `target`; None: nothing has to.

    Args:
        source: What comes in.
        target: What shall come out.
        path: Where in the manifest the two meet, for errors.
        refuse: The error of a value that has no counterpart.

    Raises:
        DocumentError: The two cannot stand for the same numbers.
    """
    if source.datatype == target.datatype and _same_numbers(source, target):
        return None
    if "BYTES" in (source.datatype, target.datatype):
        raise DocumentError(path, f"{target.datatype} as the model has it", source.datatype)
    to_real, real = _to_real(source)
    from_real = _from_real(source, real, target, path, refuse)
    if to_real is None or from_real is None:
        return to_real or from_real
    first, second = to_real, from_real
    return lambda array: second(first(array))


def _same_numbers(source: Tensor, target: Tensor) -> bool:
    if not (is_quantised(source) and is_quantised(target)):
        return True
    return (source.scale, source.zero_point or 0) == (target.scale, target.zero_point or 0)


def _to_real(source: Tensor) -> tuple[Convert | None, np.dtype[Any]]:
    """Return how to get at the real numbers, and their dtype."""
    dtype = DTYPES[source.datatype]
    if source.datatype == "BF16":
        return bf16_to_fp32, np.dtype(np.float32)
    if not is_quantised(source):
        return None, dtype
    # float32 holds every difference of 8- and 16-bit integers exactly.
    real = np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
    scale, zero_point = real.type(source.scale), real.type(source.zero_point or 0)

    def dequantise(array: Array) -> Array:
        # The subtraction made a new array, so the product may go into it; a 0-d array comes out
        # of a ufunc as a scalar, which it may not.
        difference = np.subtract(array, zero_point, dtype=real)
        product: Array = np.multiply(difference, scale)
        return np.asarray(product)

    return dequantise, real


def _from_real(
    source: Tensor, real: np.dtype[Any], target: Tensor, path: str, refuse: Refuse
) -> Convert | None:
    dtype = DTYPES[target.datatype]
    if is_quantised(target):
        return _quantise(target, real, refuse, may_be_nan=source.allow_nan)
    if target.datatype == "BF16":
        narrow = _narrow(real, np.dtype(np.float32), FLOAT_MAX["BF16"], target.name, refuse)
        return (lambda array: fp32_to_bf16(narrow(array))) if narrow else fp32_to_bf16
    if real == dtype:
        return None
    if dtype.kind == "f":
        if real.kind != "f" or real.itemsize < dtype.itemsize:
            return lambda array: array.astype(dtype)
        return _narrow(real, dtype, FLOAT_MAX[target.datatype], target.name, refuse)
    if real.kind == "f" or dtype.kind == "b":
        raise DocumentError(
            path,
            f"{target.datatype} as the model has it",
            f"{real.name}",
            hint="a step `cast` says how to get there",
        )
    return _whole(real, dtype, target.name, refuse)


def _quantise(target: Tensor, real: np.dtype[Any], refuse: Refuse, *, may_be_nan: bool) -> Convert:
    dtype = DTYPES[target.datatype]
    wide = np.dtype(np.float64 if real.itemsize > 4 or dtype.itemsize > 2 else np.float32)
    scale, zero_point = wide.type(target.scale), wide.type(target.zero_point or 0)
    limits = np.iinfo(dtype)
    # The largest float that is not above the largest integer.
    low, high = wide.type(limits.min), wide.type(limits.max)
    if int(high) > limits.max:
        high = np.nextafter(high, wide.type(0))

    def quantise(array: Array) -> Array:
        with np.errstate(over="ignore"):
            stored = np.asarray(np.divide(array, scale, dtype=wide))
        stored += zero_point
        np.rint(stored, out=stored)
        # Half the time of np.clip for few numbers.
        np.minimum(stored, high, out=stored)
        np.maximum(stored, low, out=stored)
        if may_be_nan and np.isnan(stored).any():
            raise refuse(f"{target.name}: NaN has no value in a quantised tensor")
        return stored.astype(dtype)

    return quantise


def _narrow(
    real: np.dtype[Any], dtype: np.dtype[Any], largest: float, name: str, refuse: Refuse
) -> Convert | None:
    if real == dtype and largest == FLOAT_MAX["FP32"]:
        return None

    def narrow(array: Array) -> Array:
        beyond = np.isfinite(array) & (np.abs(array) > largest)
        if beyond.any():
            raise refuse(f"{name}: {array[beyond].flat[0]} is beyond {dtype.name}")
        return array.astype(dtype)

    return narrow


def _whole(real: np.dtype[Any], dtype: np.dtype[Any], name: str, refuse: Refuse) -> Convert:
    if np.can_cast(real, dtype, "safe"):
        return lambda array: array.astype(dtype)
    limits = np.iinfo(dtype)

    def whole(array: Array) -> Array:
        if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
            raise refuse(f"{name}: expected {dtype.name}, got a value beyond it")
        return array.astype(dtype)

    return whole
