"""Scores to probabilities, each for itself."""

from __future__ import annotations

import msgspec
import numpy as np

from agent.pipeline.steps.api import (
    CompiledStep,
    Memory,
    StepContext,
    StepKind,
    pick_numbers,
    replaced,
)
from agent.pipeline.tensors import Arrays


class Sigmoid(msgspec.Struct, frozen=True):
    """1 / (1 + exp(-x))."""

    input: str = ""


def compile_sigmoid(options: Sigmoid, context: StepContext) -> CompiledStep:
    """Compute it through tanh, which cannot overflow."""
    tensor = pick_numbers(context, options.input)
    name = tensor.name

    def run(arrays: Arrays, _memory: Memory) -> Arrays:
        with np.errstate(over="ignore"):
            half = np.multiply(arrays[name], np.float32(0.5), dtype=np.float32)
        arrays[name] = np.asarray(np.tanh(half) * np.float32(0.5) + np.float32(0.5))
        return arrays

    squashed = msgspec.structs.replace(tensor, datatype="FP32")
    return CompiledStep(run, replaced(context, tensor, squashed))


KIND = StepKind(Sigmoid, compile_sigmoid)
