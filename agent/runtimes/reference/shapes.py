"""What moves elements and changes types, and computes nothing (domain ai.onnx)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from agent.errors import BadInput
from agent.formats.onnx_graph import Weights
from agent.runtimes.api import Array
from agent.runtimes.reference.node import (
    ELEMENT_TYPES,
    Compute,
    Made,
    Operator,
    array_of,
    axes_of,
    axis_of,
    same_type,
)


def _identity(made: Made) -> Compute:
    return lambda x: x


def _dropout(made: Made) -> Compute:
    def run(
        x: Array, ratio: Array | None = None, training: Array | None = None
    ) -> tuple[Array, ...]:
        if training is not None and bool(training):
            raise BadInput("Dropout is in training mode")
        return x, np.ones(x.shape, bool)

    return run


def _cast(made: Made) -> Compute:
    target = ELEMENT_TYPES.get(made.integer("to", 0))
    if target is None:
        raise made.refuse("it casts to a type that has no array")

    def run(x: Array) -> Array:
        if x.dtype.kind == "O":
            raise BadInput("texts are not cast to numbers here")
        return x.astype(target)

    return run


def _constant(made: Made) -> Compute:
    value = _constant_value(made)
    value.flags.writeable = False
    return lambda: value


def _constant_value(made: Made) -> Array:
    attributes = made.node.attributes
    for name, read in _CONSTANTS.items():
        if name in attributes:
            found = read(made, name)
            if found is not None:
                return found
    raise made.refuse(f"of its kinds, {', '.join(attributes) or 'none'} is not read here")


_CONSTANTS: Mapping[str, Callable[[Made, str], Array | None]] = {
    "value": lambda made, name: _tensor(made, name),
    "value_float": lambda made, name: np.array(made.number(name, 0.0), np.float32),
    "value_floats": lambda made, name: made.numbers(name),
    "value_int": lambda made, name: np.array(made.integer(name, 0), np.int64),
    "value_ints": lambda made, name: made.integers(name),
    "value_string": lambda made, name: np.array(made.text(name, ""), object),
    "value_strings": lambda made, name: np.array(made.texts(name), object),
}


def _tensor(made: Made, name: str) -> Array | None:
    value = made.node.attributes[name]
    return array_of(value) if isinstance(value, Weights) else None


def _concat(made: Made) -> Compute:
    axis = made.integer("axis", 1)

    def run(*arrays: Array) -> Array:
        same_type(*arrays)
        return np.concatenate(arrays, axis_of(axis, arrays[0].ndim))

    return run


def _reshape(made: Made) -> Compute:
    keep_zero = made.integer("allowzero", 0)

    def run(x: Array, shape: Array) -> Array:
        sizes = [int(size) for size in shape]
        if not keep_zero:
            # Zero: as it is in the input.
            sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
        if sizes.count(-1) == 1 and 0 in sizes:
            raise BadInput("a free dimension beside an empty one cannot be told")
        return x.reshape(sizes)

    return run


def _flatten(made: Made) -> Compute:
    axis = made.integer("axis", 1)

    def run(x: Array) -> Array:
        split = axis if axis == x.ndim else axis_of(axis, x.ndim)
        rows = int(np.prod(x.shape[:split], dtype=np.int64))
        return x.reshape(rows, int(np.prod(x.shape[split:], dtype=np.int64)))

    return run


def _squeeze(made: Made) -> Compute:
    fixed = made.integers("axes") if made.opset < 13 else None

    def run(x: Array, axes: Array | None = None) -> Array:
        chosen = fixed if axes is None else axes
        return np.squeeze(x, None if chosen is None else axes_of(chosen.tolist(), x.ndim))

    return run


def _unsqueeze(made: Made) -> Compute:
    fixed = made.integers("axes") if made.opset < 13 else None

    def run(x: Array, axes: Array | None = None) -> Array:
        chosen = fixed if axes is None else axes
        if chosen is None:
            raise BadInput("Unsqueeze has no axes")
        return np.expand_dims(x, axes_of(chosen.tolist(), x.ndim + chosen.size))

    return run


def _transpose(made: Made) -> Compute:
    order = made.integers("perm")
    return lambda x: np.transpose(x, None if order is None else order.tolist())


def _gather(made: Made) -> Compute:
    axis = made.integer("axis", 0)

    def run(x: Array, indices: Array) -> Array:
        place = axis_of(axis, x.ndim)
        size = x.shape[place]
        if indices.size and not (-size <= indices.min() and indices.max() < size):
            raise BadInput(f"an index is outside the {size} entries of axis {axis}")
        return np.take(x, indices, place)

    return run


def _shape(made: Made) -> Compute:
    start, end = made.integer("start", 0), made.node.attributes.get("end")
    stop = end if isinstance(end, int) else None
    return lambda x: np.array(x.shape[start:stop], np.int64)


def _slice(made: Made) -> Compute:
    if made.opset < 10:
        raise made.refuse("it is of a version before 10")

    def run(
        x: Array,
        starts: Array,
        ends: Array,
        axes: Array | None = None,
        steps: Array | None = None,
    ) -> Array:
        places = range(len(starts)) if axes is None else axes_of(axes.tolist(), x.ndim)
        strides = [1] * len(starts) if steps is None else steps.tolist()
        cut = [slice(None)] * x.ndim
        for place, start, end, step in zip(
            places, starts.tolist(), ends.tolist(), strides, strict=True
        ):
            cut[place] = _slice_of(start, end, step, x.shape[place])
        return x[tuple(cut)]

    return run


def _slice_of(start: int, end: int, step: int, size: int) -> slice:
    """A slice with ONNX's clamping; Python takes -1 as an end for the last element."""
    if step == 0:
        raise BadInput("a slice has the step 0")
    start, end = (value + size if value < 0 else value for value in (start, end))
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    last = min(max(start, 0), size - 1)
    stop = min(max(end, -1), size - 1)
    return slice(last, None if stop < 0 else stop, step)


OPERATORS: Mapping[str, Operator] = {
    "Cast": Operator(_cast),
    "Concat": Operator(_concat),
    "Constant": Operator(_constant),
    "Dropout": Operator(_dropout),
    "Flatten": Operator(_flatten),
    "Gather": Operator(_gather),
    "Identity": Operator(_identity),
    "Reshape": Operator(_reshape),
    "Shape": Operator(_shape),
    "Slice": Operator(_slice),
    "Squeeze": Operator(_squeeze),
    "Transpose": Operator(_transpose),
    "Unsqueeze": Operator(_unsqueeze),
}
