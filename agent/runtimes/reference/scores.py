"""From raw scores to those that a classifier or regressor gives (attribute post_transform)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np

from agent.runtimes.api import Array
from agent.runtimes.reference.arithmetic import sigmoid, softmax
from agent.runtimes.reference.node import Made

Transform = Callable[[Array], Array]


def transform_of(made: Made, name: str) -> Transform:
    """Return what a `post_transform` does to scores (rows, classes) of 64 bits."""
    found = _TRANSFORMS.get(name)
    if found is None:
        raise made.refuse(f"its post_transform is {name[:40]!r}")
    return found


def of_one_score(score: Array, after: str, *, is_share: bool = True) -> Array:
    """Return the scores of two classes where a model computes the second's only.

    The standard does not say; it is what ONNX Runtime gives.

    Args:
        score: (rows) in 32 bits.
        after: `NONE` or `LOGISTIC`.
        is_share: The two make up 1; otherwise one is the other's opposite.
    """
    if after == "LOGISTIC":
        wide = score.astype(np.float64)
        return sigmoid(np.stack((-wide, wide), 1)).astype(np.float32)
    return np.stack((1 - score if is_share else -score, score), 1)


def _softmax_zero(scores: Array) -> Array:
    """A softmax over those that are not zero; zeros stay."""
    there = np.abs(scores) > 1e-7
    shifted = np.exp(scores - scores.max(1, keepdims=True, initial=-np.inf))
    kept = np.where(there, shifted, 0.0)
    total = kept.sum(1, keepdims=True)
    return np.where(total > 0, kept / np.where(total > 0, total, 1), 0.0)


def _probit(scores: Array) -> Array:
    inverse = NormalDist().inv_cdf
    ends = {0.0: float("-inf"), 1.0: float("inf")}
    flat = [inverse(p) if 0 < p < 1 else ends.get(p, float("nan")) for p in scores.ravel().tolist()]
    return np.array(flat, np.float64).reshape(scores.shape)


_TRANSFORMS: Mapping[str, Transform] = {
    "NONE": lambda scores: scores,
    "LOGISTIC": sigmoid,
    "SOFTMAX": lambda scores: softmax(scores, 1),
    "SOFTMAX_ZERO": _softmax_zero,
    "PROBIT": _probit,
}
