"""Puts the end of a source's previous block before its next one, as streaming models want it."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

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
from agent.pipeline.tensors import DTYPES, Array, Arrays, show_shape


class Overlap(msgspec.Struct, frozen=True):
    """`size`: how much of the previous block, along `axis`; zeros before the first one."""

    size: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    input: str = ""
    axis: int = -1


def compile_overlap(options: Overlap, context: StepContext) -> CompiledStep:
    """Keep the end of each block until the same source's next one."""
    tensor = pick_numbers(context, options.input)
    check_axis(options.axis, tensor, f"{context.path}.axis")
    axis, size = options.axis % len(tensor.shape), options.size
    if any(n == -1 for i, n in enumerate(tensor.shape) if i != axis):
        raise DocumentError(
            f"{context.path}.input", "no free dimension but the axis", show_shape(tensor.shape)
        )
    shape = list(tensor.shape)
    shape[axis] = size
    silence = np.zeros(shape, DTYPES[tensor.datatype])
    name, key = tensor.name, context.path

    def run(arrays: Arrays, memory: Memory) -> Arrays:
        previous: Array = memory.get(key, silence)
        joined = np.concatenate((previous, arrays[name]), axis=axis)
        memory[key] = joined[(slice(None),) * axis + (slice(-size, None),)].copy()
        arrays[name] = joined
        return arrays

    shape[axis] = -1 if tensor.shape[axis] == -1 else tensor.shape[axis] + size
    joined = msgspec.structs.replace(tensor, shape=tuple(shape))
    return CompiledStep(run, replaced(context, tensor, joined))


KIND = StepKind(Overlap, compile_overlap, remembers=True)
