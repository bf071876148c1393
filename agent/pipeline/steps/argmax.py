"""The class with the largest score."""

from __future__ import annotations

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
    class_names,
    pick_numbers,
    replaced,
    without_axis,
)
from agent.pipeline.tensors import Arrays


class Argmax(msgspec.Struct, frozen=True):
    """Along the last axis. Gives `index` (INT64), `score` and, where the pack has labels, `label`
    (BYTES), in the place of the scores or, with `keep`, after them."""

    input: str = ""
    keep: bool = False


def compile_argmax(options: Argmax, context: StepContext) -> CompiledStep:
    """Find out whether classes have names."""
    tensor = pick_numbers(context, options.input)
    if not tensor.shape or tensor.shape[-1] == 0:
        raise DocumentError(f"{context.path}.input", "one score per class", tensor.name)
    labels = class_names(context, tensor)
    name, refuse = tensor.name, context.refuse
    texts = np.array(labels, np.object_)
    keep = options.keep

    def run(arrays: Arrays, memory: Memory) -> Arrays:
        scores = arrays[name] if keep else arrays.pop(name)
        if scores.shape[-1] == 0 or (labels and scores.shape[-1] > len(labels)):
            raise refuse(f"{name}: {scores.shape[-1]} scores for {len(labels)} labels")
        index = np.asarray(scores.argmax(axis=-1))
        arrays["index"] = index
        arrays["score"] = np.take_along_axis(scores, index[..., np.newaxis], -1)[..., 0]
        if labels:
            arrays["label"] = np.asarray(texts[index], np.object_)
        memory[CLASS_INDEX] = int(index.flat[0]) if index.size == 1 else -1
        return arrays

    shape = without_axis(tensor, -1)
    found = [Tensor("index", "INT64", shape), Tensor("score", tensor.datatype, shape)]
    if labels:
        found.append(Tensor("label", "BYTES", shape))
    kept = (tensor,) if keep else ()
    return CompiledStep(run, replaced(context, tensor, *kept, *found), labels)


KIND = StepKind(Argmax, compile_argmax)
