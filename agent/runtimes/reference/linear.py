"""Linear and support vector models (domain ai.onnx.ml)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from agent.errors import BadInput
from agent.runtimes.api import Array
from agent.runtimes.reference.node import Compute, Made, Operator
from agent.runtimes.reference.scores import of_one_score, transform_of


def rows_of(x: Array) -> Array:
    """Return an input as rows of 64-bit numbers; one dimension is one row."""
    if x.ndim > 2 or x.ndim == 0:
        raise BadInput(f"a model of rows gets {x.ndim} dimensions")
    if x.dtype.kind not in "fiu":
        raise BadInput(f"a model of numbers gets {x.dtype}")
    return x.reshape(-1, x.shape[-1]).astype(np.float64)


def _coefficients(made: Made, rows: int) -> Array:
    found = made.numbers("coefficients")
    if found is None or not rows or found.size % rows:
        raise made.refuse("its coefficients are no whole rows")
    return found.astype(np.float64).reshape(rows, -1)


def _weighted(coefficients: Array, intercepts: Array | None) -> Callable[[Array], Array]:
    def run(x: Array) -> Array:
        rows = rows_of(x)
        if rows.shape[1] != coefficients.shape[1]:
            raise BadInput(
                f"a row has {rows.shape[1]} numbers, the model takes {coefficients.shape[1]}"
            )
        scores = np.asarray(rows @ coefficients.T)
        return scores if intercepts is None else scores + intercepts

    return run


def _regressor(made: Made) -> Compute:
    targets = made.integer("targets", 1)
    intercepts = made.numbers("intercepts")
    score = _weighted(
        _coefficients(made, targets), None if intercepts is None else intercepts.astype(np.float64)
    )
    transform = transform_of(made, made.text("post_transform", "NONE"))
    return lambda x: transform(score(x)).astype(np.float32)


def _classifier(made: Made) -> Compute:
    labels = made.labels("classlabels_ints", "classlabels_strings")
    intercepts = made.numbers("intercepts")
    if intercepts is None:
        raise made.refuse("it has no intercepts")
    score = _weighted(_coefficients(made, intercepts.size), intercepts.astype(np.float64))
    after = made.text("post_transform", "NONE")
    transform = transform_of(made, after)
    one_score = intercepts.size == 1
    if one_score and after not in ("NONE", "LOGISTIC"):
        raise made.refuse(f"the standard does not say what {after} makes of one score")
    if labels.size != (2 if one_score else intercepts.size):
        raise made.refuse(f"it has {labels.size} labels for {intercepts.size} scores")

    def run(x: Array) -> tuple[Array, Array]:
        scores = score(x).astype(np.float32)
        if one_score:
            return labels[(scores[:, 0] > 0).astype(np.int64)], of_one_score(scores[:, 0], after)
        wide = transform(scores.astype(np.float64))
        return labels[scores.argmax(1)], wide.astype(np.float32)

    return run


def _support_vectors(made: Made) -> Compute:
    """SVMRegressor; without support vectors it is a linear model."""
    parameters = made.numbers("kernel_params")
    gamma, offset, degree = (parameters if parameters is not None else np.zeros(3)).tolist()[:3]
    rho = made.numbers("rho")
    count = made.integer("n_supports", 0)
    coefficients = made.numbers("coefficients")
    if coefficients is None or rho is None or not rho.size:
        raise made.refuse("it has no coefficients or no rho")
    kernels: Mapping[str, Callable[[Array, Array], Array]] = {
        "LINEAR": lambda x, v: x @ v.T,
        "POLY": lambda x, v: (gamma * (x @ v.T) + offset) ** degree,
        "RBF": lambda x, v: np.exp(-gamma * ((x[:, None, :] - v[None]) ** 2).sum(2)),
        "SIGMOID": lambda x, v: np.tanh(gamma * (x @ v.T) + offset),
    }
    # Without support vectors there is nothing to compare with: the model is a linear one.
    kernel = kernels.get(made.text("kernel_type", "LINEAR") if count else "LINEAR")
    if kernel is None:
        raise made.refuse("its kernel_type is unknown")
    vectors = _vectors(made, count, coefficients)
    weights = coefficients.astype(np.float64) if count else np.ones(1)
    one_class = made.integer("one_class", 0)
    transform = transform_of(made, made.text("post_transform", "NONE"))

    def run(x: Array) -> Array:
        rows = rows_of(x)
        if rows.shape[1] != vectors.shape[1]:
            raise BadInput(f"a row has {rows.shape[1]} numbers, the model takes {vectors.shape[1]}")
        score = (kernel(rows, vectors) @ weights + float(rho[0]))[:, None]
        if one_class:
            return np.where(score > 0, 1, -1).astype(np.float32)
        return transform(score).astype(np.float32)

    return run


def _vectors(made: Made, count: int, coefficients: Array) -> Array:
    if not count:
        return coefficients.astype(np.float64).reshape(1, -1)
    vectors = made.numbers("support_vectors")
    if vectors is None or vectors.size % count or coefficients.size != count:
        raise made.refuse("its support vectors are no whole rows")
    return vectors.astype(np.float64).reshape(count, -1)


OPERATORS: Mapping[str, Operator] = {
    "LinearClassifier": Operator(_classifier),
    "LinearRegressor": Operator(_regressor),
    "SVMRegressor": Operator(_support_vectors),
}
