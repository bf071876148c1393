"""Element by element, by matrices, and along axes (operators of the domain ai.onnx)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from agent.runtimes.api import Array
from agent.runtimes.reference.node import Compute, Made, Operator, axes_of, axis_of, same_type

Unary = Callable[[Array], Array]
Binary = Callable[[Array, Array], Array]


def precisely(compute: Callable[..., Any]) -> Compute:
    """Compute in 64 bits and round once to the type of the first operand."""

    def run(first: Array, *others: Array) -> Array:
        same_type(first, *others)
        wide = [array.astype(np.float64) for array in (first, *others)]
        return np.asarray(compute(*wide)).astype(first.dtype)

    return run


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) / sum(exp(x)) along an axis, without overflow."""
    # Of nothing there is no maximum.
    shifted = np.exp(x - x.max(axis, keepdims=True, initial=-np.inf))
    return np.asarray(shifted / shifted.sum(axis, keepdims=True))


def _plain(compute: Callable[..., Any]) -> Callable[[Made], Compute]:
    """An operator whose NumPy function keeps types and rounds once."""

    def run(*arrays: Array) -> Array:
        same_type(*arrays)
        return np.asarray(compute(*arrays))

    return lambda made: run


def _precise(compute: Callable[..., Any]) -> Callable[[Made], Compute]:
    return lambda made: precisely(compute)


def _divide(a: Array, b: Array) -> Array:
    """Towards zero for integers, as in C; there is no answer to a division by zero then."""
    same_type(a, b)
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not np.all(b):
        raise ZeroDivisionError("integer division by zero")
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient)).astype(a.dtype)


def _power(made: Made) -> Compute:
    def run(base: Array, exponent: Array) -> Array:
        # The only operator whose two types may differ; the answer has the first's.
        if base.dtype.kind == "f":
            wide = base.astype(np.float64) ** exponent.astype(np.float64)
            return np.asarray(wide).astype(base.dtype)
        return np.asarray(np.power(base.astype(np.float64), exponent.astype(np.float64))).astype(
            base.dtype
        )

    return run


def _several(compute: Binary) -> Callable[[Made], Compute]:
    """An operator that takes any number of operands, one after the other."""

    def run(first: Array, *others: Array) -> Array:
        same_type(first, *others)
        result = first
        for other in others:
            result = np.asarray(compute(result, other))
        return result

    return lambda made: run


def _mean(made: Made) -> Compute:
    return precisely(lambda *arrays: sum(arrays) / len(arrays))


def _clip(made: Made) -> Compute:
    if made.opset >= 11:

        def between(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
            same_type(x, *(bound for bound in (low, high) if bound is not None))
            result = x if low is None else np.maximum(x, low)
            # The upper bound wins where the two cross.
            return np.asarray(result if high is None else np.minimum(result, high))

        return between
    low, high = made.number("min", float("-inf")), made.number("max", float("inf"))

    def fixed(x: Array) -> Array:
        bounds = np.array([low, high], x.dtype)
        return np.asarray(np.minimum(np.maximum(x, bounds[0]), bounds[1]))

    return fixed


def _leaky(made: Made) -> Compute:
    alpha = np.float32(made.number("alpha", float(np.float32(0.01))))
    return lambda x: np.where(x < 0, (x * alpha.astype(x.dtype)), x)


def _elu(made: Made) -> Compute:
    alpha = made.number("alpha", 1.0)
    return precisely(lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x))


def _softmax(made: Made) -> Compute:
    return _along(made, softmax)


def _log_softmax(made: Made) -> Compute:
    def compute(x: Array, axis: int) -> Array:
        shifted = x - x.max(axis, keepdims=True, initial=-np.inf)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis, keepdims=True)))

    return _along(made, compute)


def _along(made: Made, compute: Callable[[Array, int], Array]) -> Compute:
    if made.opset >= 13:
        axis = made.integer("axis", -1)
        return precisely(lambda x: compute(x, axis_of(axis, x.ndim)))
    axis = made.integer("axis", 1)

    def as_rows(x: Array) -> Array:
        # Before version 13 all axes from this one on are one.
        split = axis_of(axis, x.ndim) if axis < x.ndim else x.ndim
        rows = x.reshape(int(np.prod(x.shape[:split], dtype=np.int64)), -1)
        return compute(rows, 1).reshape(x.shape)

    return precisely(as_rows)


def _matmul(made: Made) -> Compute:
    def run(a: Array, b: Array) -> Array:
        same_type(a, b)
        if a.dtype.kind != "f":
            return np.asarray(np.matmul(a, b))
        return np.asarray(np.matmul(a.astype(np.float64), b.astype(np.float64))).astype(a.dtype)

    return run


def _gemm(made: Made) -> Compute:
    alpha, beta = made.number("alpha", 1.0), made.number("beta", 1.0)
    turn_a, turn_b = made.integer("transA", 0), made.integer("transB", 0)

    def run(a: Array, b: Array, c: Array | None = None) -> Array:
        same_type(a, b, *(() if c is None else (c,)))
        left, right = a.astype(np.float64), b.astype(np.float64)
        product = alpha * np.matmul(left.T if turn_a else left, right.T if turn_b else right)
        if c is not None:
            product = product + beta * np.broadcast_to(c, product.shape)
        return np.asarray(product).astype(a.dtype)

    return run


def _batch_norm(made: Made) -> Compute:
    if made.integer("training_mode", 0):
        raise made.refuse("it is in training mode")
    epsilon = made.number("epsilon", float(np.float32(1e-5)))

    def run(x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Array:
        per_channel = (1, -1) + (1,) * (x.ndim - 2)
        parts = [p.astype(np.float64).reshape(per_channel) for p in (scale, bias, mean, variance)]
        result = (x - parts[2]) / np.sqrt(parts[3] + epsilon) * parts[0] + parts[1]
        return np.asarray(result).astype(x.dtype)

    return run


def _reduce(compute: Callable[..., Any], since: int) -> Callable[[Made], Compute]:
    """A sum, mean, or extreme along axes, which are an input since a version of its own."""

    def make(made: Made) -> Compute:
        keep, nothing = made.integer("keepdims", 1), made.integer("noop_with_empty_axes", 0)
        fixed = made.integers("axes") if made.opset < since else None

        def run(x: Array, axes: Array | None = None) -> Array:
            chosen = fixed if axes is None else axes
            if chosen is None or not chosen.size:
                if nothing and made.opset >= since:
                    return x
                chosen = np.arange(x.ndim)
            places = axes_of(chosen.tolist(), x.ndim)
            wide = x.astype(np.float64) if x.dtype.kind == "f" else x
            return np.asarray(compute(wide, axis=places, keepdims=bool(keep))).astype(x.dtype)

        return run

    return make


def _arg(compute: Callable[..., Any]) -> Callable[[Made], Compute]:
    def make(made: Made) -> Compute:
        axis, keep = made.integer("axis", 0), bool(made.integer("keepdims", 1))
        last = made.integer("select_last_index", 0)

        def run(x: Array) -> Array:
            place = axis_of(axis, x.ndim)
            if not last:
                return np.asarray(compute(x, axis=place, keepdims=keep)).astype(np.int64)
            found = compute(np.flip(x, place), axis=place, keepdims=keep)
            return np.asarray(x.shape[place] - 1 - found).astype(np.int64)

        return run

    return make


def _compare(compute: Binary) -> Callable[[Made], Compute]:
    return _plain(compute)


def _where(made: Made) -> Compute:
    def run(condition: Array, a: Array, b: Array) -> Array:
        same_type(a, b)
        return np.where(condition, a, b)

    return run


OPERATORS: Mapping[str, Operator] = {
    name: Operator(make)
    for name, make in {
        "Abs": _plain(np.abs),
        "Add": _plain(np.add),
        "And": _plain(np.logical_and),
        "ArgMax": _arg(np.argmax),
        "ArgMin": _arg(np.argmin),
        "BatchNormalization": _batch_norm,
        "Ceil": _plain(np.ceil),
        "Clip": _clip,
        "Div": lambda made: _divide,
        "Elu": _elu,
        "Equal": _compare(np.equal),
        "Exp": _precise(np.exp),
        "Floor": _plain(np.floor),
        "Gemm": _gemm,
        "Greater": _compare(np.greater),
        "GreaterOrEqual": _compare(np.greater_equal),
        "IsNaN": _plain(np.isnan),
        "LeakyRelu": _leaky,
        "Less": _compare(np.less),
        "LessOrEqual": _compare(np.less_equal),
        "Log": _precise(np.log),
        "LogSoftmax": _log_softmax,
        "MatMul": _matmul,
        "Max": _several(np.maximum),
        "Mean": _mean,
        "Min": _several(np.minimum),
        "Mul": _plain(np.multiply),
        "Neg": _plain(np.negative),
        "Not": _plain(np.logical_not),
        "Or": _plain(np.logical_or),
        "Pow": _power,
        "Reciprocal": _plain(np.reciprocal),
        "ReduceMax": _reduce(np.max, 18),
        "ReduceMean": _reduce(np.mean, 18),
        "ReduceMin": _reduce(np.min, 18),
        "ReduceSum": _reduce(np.sum, 13),
        "Relu": _plain(lambda x: np.maximum(x, x.dtype.type(0))),
        "Sigmoid": _precise(sigmoid),
        "Sign": _plain(np.sign),
        "Softmax": _softmax,
        "Softplus": _precise(lambda x: np.logaddexp(0.0, x)),
        "Sqrt": _plain(np.sqrt),
        "Sub": _plain(np.subtract),
        "Sum": _several(np.add),
        "Tanh": _precise(np.tanh),
        "Where": _where,
    }.items()
}
