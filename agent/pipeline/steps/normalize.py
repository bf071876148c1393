"""(x * scale - mean) / std, for all values or per channel."""

from __future__ import annotations

import msgspec
import numpy as np

from agent.documents.manifest import Tensor
from agent.errors import DocumentError
from agent.pipeline.steps.api import (
    CompiledStep,
    Memory,
    StepContext,
    StepKind,
    check_axis,
    pick_numbers,
    replaced,
)
from agent.pipeline.tensors import FLOAT_MAX, Array, Arrays, all_finite

Values = float | tuple[float, ...]


class Normalize(msgspec.Struct, frozen=True):
    """`mean` and `std`: one number, or one per entry along `axis`. `scale` comes first, so that the
    usual numbers for pictures (with scale 1/255) can be written as they are published."""

    input: str = ""
    mean: Values = 0.0
    std: Values = 1.0
    scale: float = 1.0
    axis: int = -1


def compile_normalize(options: Normalize, context: StepContext) -> CompiledStep:
    """Fold the three numbers into one product and one sum, both in float32."""
    tensor = pick_numbers(context, options.input)
    mean = _along(options.mean, tensor, options.axis, f"{context.path}.mean")
    std = _along(options.std, tensor, options.axis, f"{context.path}.std")
    if not np.all(std):
        raise DocumentError(f"{context.path}.std", "numbers other than 0", str(options.std))
    factor = _as_fp32(options.scale / std, context.path)
    offset = _as_fp32(-mean / std, context.path)
    name, refuse = tensor.name, context.refuse
    may_overflow = tensor.datatype in FLOAT_MAX

    def run(arrays: Arrays, _memory: Memory) -> Arrays:
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.asarray(np.multiply(arrays[name], factor, dtype=np.float32))
            array += offset
        if may_overflow and not tensor.allow_nan and not all_finite(array):
            raise refuse(f"{name}: a value is too large to normalise")
        arrays[name] = array
        return arrays

    normalised = msgspec.structs.replace(tensor, datatype="FP32")
    return CompiledStep(run, replaced(context, tensor, normalised))


def _along(values: Values, tensor: Tensor, axis: int, path: str) -> Array:
    """Return one number, or numbers that broadcast along one axis of the tensor."""
    numbers = np.array(values, np.float64)
    if not numbers.ndim:
        return numbers
    check_axis(axis, tensor, path)
    if tensor.shape[axis] not in (-1, numbers.size) or not numbers.size:
        raise DocumentError(path, f"{tensor.shape[axis]} numbers", f"{numbers.size}")
    shape = [1] * len(tensor.shape)
    shape[axis] = numbers.size
    return numbers.reshape(shape)


def _as_fp32(numbers: Array, path: str) -> Array:
    if not (np.abs(numbers) <= FLOAT_MAX["FP32"]).all():
        raise DocumentError(path, "a scale, mean and std that FP32 can hold", str(numbers))
    return np.asarray(numbers, np.float32)


KIND = StepKind(Normalize, compile_normalize)
