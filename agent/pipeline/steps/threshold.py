"""Whether a number is above a limit."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from agent.documents.manifest import Tensor
from agent.errors import DocumentError
from agent.pipeline.steps.api import (
    CLASS_INDEX,
    CompiledStep,
    Memory,
    StepContext,
    StepKind,
    pick_numbers,
    replaced,
)
from agent.pipeline.tensors import FLOAT_MAX, Arrays


class Threshold(msgspec.Struct, frozen=True):
    """Adds `output` (BOOL): true where the input is greater than `threshold`. With `labels` (what
    false is called, what true is called) also `label` (BYTES)."""

    threshold: float
    input: str = ""
    output: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] = "above"
    labels: tuple[str, str] | None = None


def compile_threshold(options: Threshold, context: StepContext) -> CompiledStep:
    """The input stays beside the answer."""
    tensor = pick_numbers(context, options.input)
    # Beyond its datatype, the comparison would be with infinity.
    largest = FLOAT_MAX.get(tensor.datatype, FLOAT_MAX["FP64"])
    if not abs(options.threshold) <= largest:
        raise DocumentError(
            f"{context.path}.threshold", f"a {tensor.datatype} number", str(options.threshold)
        )
    name, output, threshold = tensor.name, options.output, options.threshold
    texts = None if options.labels is None else np.array(options.labels, np.object_)

    def run(arrays: Arrays, memory: Memory) -> Arrays:
        above = np.asarray(np.greater(arrays[name], threshold))
        arrays[output] = above
        if texts is not None:
            arrays["label"] = np.asarray(texts[above.astype(np.intp)], np.object_)
        memory[CLASS_INDEX] = int(above.flat[0]) if above.size == 1 else -1
        return arrays

    added = [Tensor(output, "BOOL", tensor.shape)]
    if texts is not None:
        added.append(Tensor("label", "BYTES", tensor.shape))
    labels = options.labels or (f"not {output}", output)
    return CompiledStep(run, replaced(context, tensor, tensor, *added), labels)


KIND = StepKind(Threshold, compile_threshold, settings=frozenset({"threshold"}))
