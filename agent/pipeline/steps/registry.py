"""The table of steps."""

from __future__ import annotations

from agent.pipeline.steps import (
    argmax,
    cast,
    constant,
    normalize,
    overlap,
    reorder,
    resize,
    select,
    sigmoid,
    smooth,
    softmax,
    threshold,
    top_k,
)
from agent.pipeline.steps.api import StepKind

STEPS: dict[str, StepKind] = {
    "argmax": argmax.KIND,
    "cast": cast.KIND,
    "constant": constant.KIND,
    "normalize": normalize.KIND,
    "overlap": overlap.KIND,
    "reorder": reorder.KIND,
    "resize": resize.KIND,
    "select": select.KIND,
    "sigmoid": sigmoid.KIND,
    "smooth": smooth.KIND,
    "softmax": softmax.KIND,
    "threshold": threshold.KIND,
    "top_k": top_k.KIND,
}
