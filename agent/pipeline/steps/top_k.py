"""The classes with the largest scores, best first."""

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
    class_names,
    pick_numbers,
    replaced,
)
from agent.pipeline.tensors import Arrays


class TopK(msgspec.Struct, frozen=True):
    """Along the last axis. Gives `indices` (INT64), `scores` and, where the pack has labels,
    `labels` (BYTES), each with `k` entries, in the place of the scores or, with `keep`, after
    them. Of equal scores the one with the lower index comes first."""

    k: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    input: str = ""
    keep: bool = False


def compile_top_k(options: TopK, context: StepContext) -> CompiledStep:
    """Find out whether classes have names."""
    tensor = pick_numbers(context, options.input)
    classes = tensor.shape[-1] if tensor.shape else 0
    k = options.k
    if classes != -1 and k > classes:
        raise DocumentError(f"{context.path}.k", f"at most {classes} classes", f"{k}")
    labels = class_names(context, tensor)
    name, refuse, keep = tensor.name, context.refuse, options.keep
    texts = np.array(labels, np.object_)

    def run(arrays: Arrays, memory: Memory) -> Arrays:
        scores = arrays[name] if keep else arrays.pop(name)
        if scores.shape[-1] < k or (labels and scores.shape[-1] > len(labels)):
            raise refuse(f"{name}: {scores.shape[-1]} scores for {k} of {len(labels)} labels")
        # Stable, on the reversed scores: the lower index stays first among equals.
        reverse = np.argsort(scores[..., ::-1], axis=-1, kind="stable")[..., : -k - 1 : -1]
        indices = np.asarray(scores.shape[-1] - 1 - reverse)
        arrays["indices"] = indices
        arrays["scores"] = np.take_along_axis(scores, indices, -1)
        if labels:
            arrays["labels"] = np.asarray(texts[indices], np.object_)
        memory[CLASS_INDEX] = int(indices.flat[0]) if indices.size == k else -1
        return arrays

    shape = (*tensor.shape[:-1], k)
    found = [Tensor("indices", "INT64", shape), Tensor("scores", tensor.datatype, shape)]
    if labels:
        found.append(Tensor("labels", "BYTES", shape))
    kept = (tensor,) if keep else ()
    return CompiledStep(run, replaced(context, tensor, *kept, *found), labels)


KIND = StepKind(TopK, compile_top_k, settings=frozenset({"k"}))
