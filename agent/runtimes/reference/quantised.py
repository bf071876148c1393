"""Between real numbers and the integers that stand for them (domain ai.onnx)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from agent.errors import BadInput
from agent.runtimes.api import Array
from agent.runtimes.reference.node import Compute, Made, Operator, axis_of


def _quantise(made: Made) -> Compute:
    axis = _axis(made)

    def run(x: Array, scale: Array, zero_point: Array | None = None) -> Array:
        zero = np.zeros(1, np.uint8) if zero_point is None else zero_point
        _check(zero)
        limits = np.iinfo(zero.dtype)
        # The division is rounded to the input's type before it is rounded to an integer.
        ratio = np.asarray(x / _along(scale, axis, x).astype(x.dtype))
        steps = np.rint(ratio).astype(np.float64) + _along(zero, axis, x)
        return np.asarray(np.clip(steps, limits.min, limits.max)).astype(zero.dtype)

    return run


def _dequantise(made: Made) -> Compute:
    axis = _axis(made)

    def run(x: Array, scale: Array, zero_point: Array | None = None) -> Array:
        zero = np.zeros(1, x.dtype) if zero_point is None else zero_point
        _check(zero)
        steps = x.astype(np.int64) - _along(zero, axis, x).astype(np.int64)
        return np.asarray(steps.astype(scale.dtype) * _along(scale, axis, x))

    return run


def _axis(made: Made) -> int:
    if made.integer("block_size", 0):
        raise made.refuse("it quantises by blocks")
    if made.integer("output_dtype", 0):
        raise made.refuse("it states the type of its output")
    return made.integer("axis", 1)


def _check(zero_point: Array) -> None:
    if zero_point.dtype.kind not in "iu":
        raise BadInput(f"a zero point of type {zero_point.dtype} is none of integers")


def _along(values: Array, axis: int, x: Array) -> Array:
    """Lay one value for each channel along their axis; one for all stays."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * x.ndim
    shape[axis_of(axis, x.ndim)] = values.size
    return values.reshape(shape)


OPERATORS: Mapping[str, Operator] = {
    "DequantizeLinear": Operator(_dequantise),
    "QuantizeLinear": Operator(_quantise),
}
