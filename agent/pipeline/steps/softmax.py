"""Scores to probabilities that add up to one."""

from __future__ import annotations

import msgspec
import numpy as np

from agent.pipeline.steps.api import (
    CompiledStep,
    Memory,
    StepContext,
    StepKind,
    check_axis,
    pick_numbers,
    replaced,
)
from agent.pipeline.tensors import Arrays, all_finite


class Softmax(msgspec.Struct, frozen=True):
    """exp(x) / sum(exp(x)) along `axis`."""

    input: str = ""
    axis: int = -1


def compile_softmax(options: Softmax, context: StepContext) -> CompiledStep:
    """Subtract the largest score first, so that exp cannot overflow."""
    tensor = pick_numbers(context, options.input)
    check_axis(options.axis, tensor, f"{context.path}.axis")
    name, axis, refuse = tensor.name, options.axis, context.refuse

    def run(arrays: Arrays, _memory: Memory) -> Arrays:
        with np.errstate(over="ignore", invalid="ignore"):
            scores = arrays[name].astype(np.float32)
            if scores.size:
                scores -= scores.max(axis=axis, keepdims=True)
                np.exp(scores, out=scores)
                scores /= scores.sum(axis=axis, keepdims=True)
        if not tensor.allow_nan and not all_finite(scores):
            raise refuse(f"{name}: a score is too large for a softmax")
        arrays[name] = scores
        return arrays

    softened = msgspec.structs.replace(tensor, datatype="FP32")
    return CompiledStep(run, replaced(context, tensor, softened))


KIND = StepKind(Softmax, compile_softmax)
