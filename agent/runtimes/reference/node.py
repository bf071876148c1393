"""What an operator is made of: its attributes, checked, and its constants as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from agent.errors import BadInput, ModelRejected
from agent.formats.onnx_graph import Node, Weights
from agent.pipeline.tensors import DTYPES
from agent.runtimes.api import Array

# Its inputs, None where one is left out, to its outputs.
Compute = Callable[..., Array | tuple[Array, ...]]

# TensorProto.DataType → NumPy, of the types that arrays can have.
ELEMENT_TYPES: Mapping[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in (
        *((1, "f4"), (2, "u1"), (3, "i1"), (4, "u2"), (5, "i2"), (6, "i4"), (7, "i8"), (9, "?")),
        *((10, "f2"), (11, "f8"), (12, "u4"), (13, "u8")),
    )
}


class Operator(NamedTuple):
    """One operator of the table.

    Attributes:
        make: Reads a node's attributes once, and returns what computes it.
        constant: Places of inputs that must be constants, as `make` needs them.
    """

    make: Callable[[Made], Compute]
    constant: tuple[int, ...] = ()


class Made:
    """A node that is being made into something that computes.

    Attributes:
        opset: The version of its domain's operator set.
        constants: Its inputs that are known now, by their place.
    """

    def __init__(self, node: Node, opset: int, constants: Mapping[int, Array]) -> None:
        self.node = node
        self.opset = opset
        self.constants = constants

    def refuse(self, why: str) -> ModelRejected:
        """The refusal of a node that is not computed here."""
        name = f" ({self.node.name[:80]})" if self.node.name else ""
        return ModelRejected(
            f"the reference runtime does not take the operator {self.node.op_type}{name}: {why}",
            hint="run the model with ONNX Runtime",
        )

    def integer(self, name: str, default: int) -> int:
        value: int = self._scalar(name, default, int)
        return value

    def number(self, name: str, default: float) -> float:
        """A float, exactly as the file has it: 32 bits."""
        value: float = self._scalar(name, default, float)
        return value

    def text(self, name: str, default: str) -> str:
        value: bytes = self._scalar(name, default.encode(), bytes)
        return value.decode("utf-8", "replace")

    def _scalar(self, name: str, default: Any, kind: type) -> Any:
        value = self.node.attributes.get(name, default)
        if not isinstance(value, kind):
            raise self.refuse(f"its attribute {name} is of another type")
        return value

    def integers(self, name: str) -> Array | None:
        """A list of integers as int64, or None."""
        return self._list(name, np.int64)

    def numbers(self, name: str) -> Array | None:
        """A list of floats as float32, or None."""
        return self._list(name, np.float32)

    def _list(self, name: str, dtype: Any) -> Array | None:
        value = self.node.attributes.get(name)
        if value is None:
            return None
        if isinstance(value, int | float | bytes | Weights):
            raise self.refuse(f"its attribute {name} is of another type")
        return np.array(value, dtype)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty where it is absent."""
        value = self.node.attributes.get(name, ())
        if isinstance(value, int | float | bytes | Weights):
            raise self.refuse(f"its attribute {name} is of another type")
        return tuple(
            one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in value
        )

    def tensor(self, name: str) -> Array | None:
        """A tensor, or None."""
        value = self.node.attributes.get(name)
        if value is None:
            return None
        if not isinstance(value, Weights):
            raise self.refuse(f"its attribute {name} is of another type")
        return array_of(value)

    def labels(self, integers: str, strings: str) -> Array:
        """Class labels, which are given in one of two attributes."""
        texts = self.texts(strings)
        if texts:
            return np.array(texts, object)
        values = self.integers(integers)
        return values if values is not None else np.zeros(0, np.int64)


def array_of(weights: Weights) -> Array:
    """Return a constant as an array that nobody can change."""
    if weights.datatype == "BYTES":
        texts = [text.decode("utf-8", "replace") for text in weights.texts]
        array = np.array(texts, object).reshape(weights.shape)
        array.flags.writeable = False
        return array
    dtype = np.dtype(DTYPES[weights.datatype]).newbyteorder("<")
    return np.frombuffer(weights.data, dtype).reshape(weights.shape)


def same_type(*arrays: Array) -> None:
    """Refuse operands that NumPy would silently widen.

    Raises:
        BadInput: Their types differ.
    """
    kinds = {array.dtype for array in arrays}
    if len(kinds) > 1:
        raise BadInput(f"an operator gets different types: {', '.join(sorted(map(str, kinds)))}")


def axis_of(axis: int, rank: int) -> int:
    """Return an axis counted from the front.

    Raises:
        BadInput: There is no such axis.
    """
    if not -rank <= axis < max(rank, 1):
        raise BadInput(f"there is no axis {axis} in {rank} dimensions")
    return axis % rank if rank else 0


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """The same for several."""
    return tuple(axis_of(int(axis), rank) for axis in axes)
