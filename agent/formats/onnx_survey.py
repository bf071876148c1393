"""One walk over every node and tensor of an ONNX model, wherever it hides."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import msgspec

from agent.errors import ModelRejected
from agent.formats.bounds import Budget, damaged
from agent.formats.description import ExternalData
from agent.formats.external_data import external_data_of
from agent.formats.protobuf import Message, fields, read

MAX_GRAPH_DEPTH = 32  # protobuf's own limit of 100 messages stops at 33 graphs inside each other
MAX_NODES = 500_000
MAX_TENSORS = 500_000
MAX_OPERATORS = 10_000  # kinds of operator, own functions included; ONNX defines some 200
MAX_DOMAINS = 256
MAX_EXTERNAL_DATA = 100_000

# Message kind → field number → kind of message found there. All that may hold a node or a tensor
# is named here, so that no external data is out of the walk's sight.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse_tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        **dict.fromkeys((5, 10), "tensor"),
        **dict.fromkeys((6, 11), "graph"),
        **dict.fromkeys((22, 23), "sparse_tensor"),
    },
    "sparse_tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
# `floats` (7) and `ints` (8) of an attribute have one field per number: a forest has millions.
NUMBERS = re.compile(rb"(?:\x3d[\x00-\xff]{4}){1,4096}|(?:\x40[\x80-\xff]{0,9}[\x00-\x7f]){1,4096}")

# The fields of a message that are still to be looked at for children.
Fields = Iterator[tuple[int, int | memoryview]]


class Survey(msgspec.Struct):
    """What the walk has met.

    Attributes:
        opsets: highest imported version per domain, of the model and of its functions.
        operators: (domain, op_type) of all nodes.
        functions: (domain, name) of the functions that the file defines.
    """

    opsets: dict[str, int] = msgspec.field(default_factory=dict)
    operators: set[tuple[str, str]] = msgspec.field(default_factory=set)
    functions: set[tuple[str, str]] = msgspec.field(default_factory=set)
    external: set[ExternalData] = msgspec.field(default_factory=set)
    node_count: int = 0
    tensor_count: int = 0


def survey(data: memoryview, budget: Budget) -> Survey:
    """Walk a whole model file, depth first and without recursion.

    Raises:
        ModelRejected: not protobuf, or more or deeper than any real model.
    """
    found = Survey()
    stack = [("model", _visit_model(found, data, budget))]
    while stack:
        kind, rest = stack[-1]
        child = _next_child(kind, rest)
        if child is None:
            stack.pop()
            continue
        child_kind, view = child
        stack.append((child_kind, _VISITORS[child_kind](found, view, budget)))
        if child_kind == "graph":
            _check_depth(stack)
    return found


def _next_child(kind: str, rest: Fields) -> tuple[str, memoryview] | None:
    children = _CHILDREN[kind]
    for number, value in rest:
        if number in children and not isinstance(value, int):
            return children[number], value
    return None


def _check_depth(stack: list[tuple[str, Fields]]) -> None:
    if sum(kind == "graph" for kind, _ in stack) > MAX_GRAPH_DEPTH:
        raise ModelRejected(f"the ONNX model nests graphs more than {MAX_GRAPH_DEPTH} deep")


def _visit_model(found: Survey, view: memoryview, budget: Budget) -> Fields:
    _visit_imports(found, read([view], budget, (8,)), 8, budget)
    return fields(view, budget)


def _visit_container(found: Survey, view: memoryview, budget: Budget) -> Fields:
    return fields(view, budget)


def _visit_attribute(found: Survey, view: memoryview, budget: Budget) -> Fields:
    return fields(view, budget, NUMBERS)


def _visit_function(found: Survey, view: memoryview, budget: Budget) -> Fields:
    function = read([view], budget, (1, 9, 10))
    found.functions.add((domain_in_words(function.name(10)), function.name(1)))
    _check_count(len(found.functions), MAX_OPERATORS, "functions")
    _visit_imports(found, function, 9, budget)
    return fields(view, budget)


def _visit_imports(found: Survey, owner: Message, number: int, budget: Budget) -> None:
    """OperatorSetId messages (domain 1, version 2)."""
    for view in owner.views(number):
        entry = read([view], budget, (1, 2))
        domain = domain_in_words(entry.name(1))
        found.opsets[domain] = max(found.opsets.get(domain, 0), entry.integer(2))
        _check_count(len(found.opsets), MAX_DOMAINS, "operator domains")


def _visit_node(found: Survey, view: memoryview, budget: Budget) -> Fields:
    node = read([view], budget, (4, 5, 7))
    op_type = node.name(4)
    if not op_type:
        raise damaged("ONNX", "a node has no op_type")
    found.operators.add((domain_in_words(node.name(7)), op_type))
    found.node_count += 1
    _check_count(found.node_count, MAX_NODES, "nodes")
    _check_count(len(found.operators), MAX_OPERATORS, "kinds of operator")
    return iter([(5, attribute) for attribute in node.views(5)])


def _visit_tensor(found: Survey, view: memoryview, budget: Budget) -> Fields:
    found.external.update(external_data_of(read([view], budget, (13, 14)), budget))
    found.tensor_count += 1
    _check_count(found.tensor_count, MAX_TENSORS, "tensors")
    _check_count(len(found.external), MAX_EXTERNAL_DATA, "pieces of external data")
    return iter(())


def _check_count(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise ModelRejected(f"the ONNX model has more than {limit} {what}")


def domain_in_words(name: str) -> str:
    """ONNX calls its own domain "" in files and "ai.onnx" in words."""
    return name or "ai.onnx"


_VISITORS: dict[str, Callable[[Survey, memoryview, Budget], Fields]] = {
    **dict.fromkeys(("training", "graph", "sparse_tensor"), _visit_container),
    "function": _visit_function,
    "node": _visit_node,
    "attribute": _visit_attribute,
    "tensor": _visit_tensor,
}
