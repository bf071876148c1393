"""The whole graph of a small ONNX model, weights and all, for who computes it without a library.

Source of field numbers: `onnx.proto` of ONNX. Numbers come as the bytes that arrays are made of,
since this room knows no arrays. Refused is what such a reader has no business with: weights in
other files, functions, sparse tensors, subgraphs.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agent.errors import ModelRejected
from agent.formats.bounds import Budget, damaged, shown
from agent.formats.description import TensorDescription
from agent.formats.external_data import external_data_of
from agent.formats.onnx_survey import NUMBERS, domain_in_words
from agent.formats.onnx_types import DATATYPES, describe_value
from agent.formats.protobuf import Message, fields, read, signed

MAX_STEPS = 3_000_000
MAX_NODES = 10_000
MAX_ELEMENTS = 50_000_000  # of one tensor
_ELEMENT = {
    **dict.fromkeys(("BOOL", "INT8", "UINT8"), 1),
    **dict.fromkeys(("INT16", "UINT16", "FP16"), 2),
    **dict.fromkeys(("INT32", "UINT32", "FP32"), 4),
    **dict.fromkeys(("INT64", "UINT64", "FP64"), 8),
}
# Field of TensorProto that holds the numbers of a datatype where `raw_data` (9) does not.
_FLOATS, _INT32S, _STRINGS, _INT64S, _DOUBLES, _UINT64S = 4, 5, 6, 7, 10, 11
_FIELD = {
    **dict.fromkeys(("BOOL", "INT8", "UINT8", "INT16", "UINT16", "FP16", "INT32"), _INT32S),
    **dict.fromkeys(("UINT32", "UINT64"), _UINT64S),
    "FP32": _FLOATS,
    "INT64": _INT64S,
    "FP64": _DOUBLES,
}
# AttributeProto.AttributeType → what it is.
_KINDS = {1: "float", 2: "int", 3: "string", 4: "tensor", 6: "floats", 7: "ints", 8: "strings"}


class Weights(NamedTuple):
    """A constant tensor.

    Attributes:
        datatype: A V2 name.
        data: Its elements, little-endian, in C order; of BYTES none.
        texts: The elements of BYTES.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes
    texts: tuple[bytes, ...] = ()


Attribute = float | int | bytes | Weights | Sequence[float] | Sequence[int] | Sequence[bytes]


class Node(NamedTuple):
    """One operator. An optional input that is left out has an empty name."""

    domain: str
    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


class Graph(NamedTuple):
    """A model: its operators in the order in which they are run."""

    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    constants: Mapping[str, Weights]
    nodes: tuple[Node, ...]


def read_graph(data: memoryview) -> Graph:
    """Read a model file.

    Raises:
        ModelRejected: It is no ONNX model, or has what is not read here; says which.
    """
    budget = Budget(MAX_STEPS, "ONNX")
    model = read([data], budget, (1, 7, 8, 25))
    if 7 not in model or model.integer(1) < 1:
        raise damaged("ONNX", "it holds no graph, or no ir_version")
    if 25 in model:
        raise _too_much("functions of its own")
    graph = read(model.views(7), budget, (1, 5, 11, 12, 15))
    if 15 in graph:
        raise _too_much("sparse weights")
    nodes = graph.views(1)
    if len(nodes) > MAX_NODES:
        raise _too_much(f"{len(nodes)} operators (at most {MAX_NODES})")
    constants = {w.name: w for w in (_weights(view, budget) for view in graph.views(5))}
    described = [describe_value(view, budget) for view in graph.views(11)]
    return Graph(
        ir_version=model.integer(1),
        opsets=_opsets(model, budget) or {"ai.onnx": 1},
        inputs=tuple(value for value in described if value.name not in constants),
        outputs=tuple(describe_value(view, budget) for view in graph.views(12)),
        constants=constants,
        nodes=tuple(_node(view, budget) for view in nodes),
    )


def _too_much(what: str) -> ModelRejected:
    return ModelRejected(
        f"the model has {what}, which the reference runtime does not take",
        hint="run it with ONNX Runtime",
    )


def _opsets(model: Message, budget: Budget) -> dict[str, int]:
    entries = [read([view], budget, (1, 2)) for view in model.views(8)]
    return {domain_in_words(entry.name(1)): entry.integer(2) for entry in entries}


def _node(view: memoryview, budget: Budget) -> Node:
    node = read([view], budget, (1, 2, 3, 4, 5, 7))
    op_type = node.name(4)
    if not op_type:
        raise damaged("ONNX", "a node has no op_type")
    attributes = [_attribute(entry, budget) for entry in node.views(5)]
    return Node(
        domain=domain_in_words(node.name(7)),
        op_type=op_type,
        name=node.text(3),
        inputs=tuple(str(name, "utf-8", "replace") for name in node.views(1)),
        outputs=tuple(str(name, "utf-8", "replace") for name in node.views(2)),
        attributes={name: value for name, value in attributes if value is not None},
    )


def _attribute(view: memoryview, budget: Budget) -> tuple[str, Attribute | None]:
    """Read one AttributeProto; without a value where its kind is none that is read here."""
    floats, ints = array("f"), array("q")

    def take(run: memoryview) -> None:
        if run[0] == 0x3D:
            floats.frombytes(_without_tags(run))
        else:
            _take_varints(run, ints, tagged=True, budget=budget)

    kept: dict[int, list[int | memoryview]] = {}
    for number, value in fields(view, budget, NUMBERS, take):
        if number == 7 and not isinstance(value, int):
            floats.frombytes(_native(bytes(value[: len(value) // 4 * 4]), 4))
        elif number == 8 and not isinstance(value, int):
            _take_varints(value, ints, tagged=False, budget=budget)
        else:
            kept.setdefault(number, []).append(value)
    own = Message(kept)
    kind = _KINDS.get(own.integer32(20), "") or _present(own, floats, ints)
    return own.name(1), _attribute_value(own, kind, floats, ints, budget)


def _present(own: Message, floats: array[float], ints: array[int]) -> str:
    """What an attribute of the first IR versions, which do not say their kind, must be."""
    for kind, there in (("floats", floats), ("ints", ints), ("strings", own.views(9))):
        if there:
            return kind
    return next(
        (kind for code, kind in enumerate(("float", "int", "string", "tensor"), 2) if code in own),
        "",
    )


def _attribute_value(
    own: Message, kind: str, floats: array[float], ints: array[int], budget: Budget
) -> Attribute | None:
    if kind == "float":
        views = own.views(2)
        return float(struct.unpack("<f", views[-1])[0]) if views and len(views[-1]) == 4 else 0.0
    if kind == "int":
        return own.integer(3)
    if kind == "string":
        return bytes(own.views(4)[-1]) if own.views(4) else b""
    if kind == "tensor":
        return _weights(own.views(5)[-1], budget) if own.views(5) else None
    if kind == "strings":
        return tuple(map(bytes, own.views(9)))
    lists: dict[str, Attribute] = {"floats": floats, "ints": ints}
    return lists.get(kind)


def _without_tags(run: memoryview) -> bytes:
    """Of fixed 32-bit fields, five bytes each, the four of the number."""
    raw = bytes(run)
    numbers = bytearray(len(raw) // 5 * 4)
    for place in range(4):
        numbers[place::4] = raw[place + 1 :: 5]
    return _native(bytes(numbers), 4)


def _native(numbers: bytes, size: int) -> bytes:
    if sys.byteorder == "little":
        return numbers
    swapped = array({4: "f", 8: "d"}[size], numbers)
    swapped.byteswap()
    return swapped.tobytes()


def _take_varints(view: memoryview, into: array[int], *, tagged: bool, budget: Budget) -> None:
    """Append the varints of a stretch of bytes, each with a tag of one byte before it or none."""
    budget.spend(1 + len(view) // 32)
    value = shift = 0
    at_tag = tagged
    for byte in bytes(view):
        if at_tag:
            at_tag = False
            continue
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            into.append(signed(value, 64))
            value = shift = 0
            at_tag = tagged
        elif shift > 63:
            raise damaged("ONNX", "a number has no end")
    if shift:
        raise damaged("ONNX", "it ends inside a number")


def _weights(view: memoryview, budget: Budget) -> Weights:
    """Read one TensorProto."""
    tensor = read([view], budget, (1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14))
    name = tensor.name(8)
    if external_data_of(tensor, budget):
        raise _too_much(f"the weights {shown(name)} in another file")
    datatype = DATATYPES.get(tensor.integer32(2), "")
    shape = tuple(_integers(tensor, 1, budget))
    if any(size < 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise damaged("ONNX", f"the weights {shown(name)} have the shape {list(shape)}")
    if datatype == "BYTES":
        texts = tuple(map(bytes, tensor.views(_STRINGS)))
        _check_count(name, len(texts), shape)
        return Weights(name, datatype, shape, b"", texts)
    if datatype not in _ELEMENT:
        raise _too_much(f"the weights {shown(name)} of type {datatype or 'unknown'}")
    data = _numbers(tensor, datatype, budget)
    _check_count(name, len(data) / _ELEMENT[datatype], shape)
    return Weights(name, datatype, shape, data)


def _check_count(name: str, count: float, shape: tuple[int, ...]) -> None:
    if count != math.prod(shape):
        raise damaged(
            "ONNX", f"the weights {shown(name)} of shape {list(shape)} have {count:g} elements"
        )


def _numbers(tensor: Message, datatype: str, budget: Budget) -> bytes:
    if 9 in tensor:
        return b"".join(map(bytes, tensor.views(9)[-1:]))
    field, size = _FIELD[datatype], _ELEMENT[datatype]
    if field in (_FLOATS, _DOUBLES):
        return b"".join(map(bytes, tensor.views(field)))
    values = _integers(tensor, field, budget)
    mask = (1 << 8 * size) - 1
    form = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
    return struct.pack(f"<{len(values)}{form}", *(value & mask for value in values))


def _integers(tensor: Message, number: int, budget: Budget) -> array[int]:
    """A repeated integer field, packed or one field each, in file order."""
    found = array("q")
    for value in tensor.values(number):
        if isinstance(value, int):
            found.append(signed(value, 64))
        else:
            _take_varints(value, found, tagged=False, budget=budget)
    return found
