"""The mean of a source's newest predictions: fewer false alarms from one odd value."""

from __future__ import annotations

from collections import deque
from typing import Annotated

import msgspec
import numpy as np

from agent.pipeline.conversion import compile_conversion
from agent.pipeline.steps.api import (
    CompiledStep,
    Memory,
    StepContext,
    StepKind,
    pick_numbers,
    replaced,
)
from agent.pipeline.tensors import Array, Arrays


class Smooth(msgspec.Struct, frozen=True):
    """`size`: how many; as many as there are at a source's beginning."""

    size: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    input: str = ""


def compile_smooth(options: Smooth, context: StepContext) -> CompiledStep:
    """Keep the newest values of each source."""
    tensor = pick_numbers(context, options.input)
    smoothed = msgspec.structs.replace(tensor, datatype="FP32")
    convert = compile_conversion(tensor, smoothed, path=context.path, refuse=context.refuse)
    name, key, refuse = tensor.name, context.path, context.refuse

    def run(arrays: Arrays, memory: Memory) -> Arrays:
        newest: deque[Array] | None = memory.get(key)
        if newest is None:
            newest = memory[key] = deque(maxlen=options.size)
        # A copy: the array may be memory that the next run writes into.
        value = arrays[name].copy() if convert is None else convert(arrays[name])
        if newest and newest[-1].shape != value.shape:
            raise refuse(f"{name}: its shape changes between two messages of one source")
        newest.append(value)
        arrays[name] = np.asarray(np.mean(newest, axis=0, dtype=np.float64), np.float32)
        return arrays

    return CompiledStep(run, replaced(context, tensor, smoothed))


KIND = StepKind(Smooth, compile_smooth, remembers=True)
