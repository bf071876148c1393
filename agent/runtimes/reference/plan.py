"""From a graph to the list of steps that a run takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from agent.errors import BadInput, ModelRejected
from agent.formats.bounds import shown
from agent.formats.onnx_graph import Graph, Node
from agent.runtimes.api import Array
from agent.runtimes.reference import arithmetic, features, linear, quantised, shapes, trees
from agent.runtimes.reference.node import Compute, Made, Operator, array_of

NEWEST_OPSET, NEWEST_ML_OPSET, NEWEST_IR_VERSION = 28, 5, 14
OLDEST_OPSET = 7
_LIMITS = {"ai.onnx": (OLDEST_OPSET, NEWEST_OPSET), "ai.onnx.ml": (1, NEWEST_ML_OPSET)}

OPERATORS: Mapping[tuple[str, str], Operator] = {
    (domain, name): operator
    for domain, table in (
        ("ai.onnx", arithmetic.OPERATORS),
        ("ai.onnx", shapes.OPERATORS),
        ("ai.onnx", quantised.OPERATORS),
        ("ai.onnx.ml", features.OPERATORS),
        ("ai.onnx.ml", linear.OPERATORS),
        ("ai.onnx.ml", trees.OPERATORS),
    )
    for name, operator in table.items()
}


class Step(NamedTuple):
    """One operator: where its operands are and its results go; None for one that is left out."""

    op_type: str
    compute: Compute
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


class Plan(NamedTuple):
    """A model that can be run.

    Attributes:
        values: One place for each value; constants are there, everything else is None.
        inputs, outputs: Places by name.
    """

    values: tuple[Array | None, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    steps: tuple[Step, ...]


def known_operators() -> tuple[str, ...]:
    """Return all operators, those of ai.onnx.ml as `ai.onnx.ml:Name`."""
    return tuple(
        sorted(name if domain == "ai.onnx" else f"{domain}:{name}" for domain, name in OPERATORS)
    )


def make_plan(graph: Graph) -> Plan:
    """Turn a graph into steps.

    Raises:
        ModelRejected: It has an operator, a version or a wiring that is not computed here.
    """
    _check_versions(graph)
    places: dict[str, int] = {}
    values: list[Array | None] = []

    def place_of(name: str, value: Array | None = None) -> int:
        if name in places:
            raise ModelRejected(f"two things in the model are called {shown(name)}")
        places[name] = len(values)
        values.append(value)
        return places[name]

    for name, weights in graph.constants.items():
        place_of(name, array_of(weights))
    inputs = {tensor.name: place_of(tensor.name) for tensor in graph.inputs}
    steps = []
    for node in graph.nodes:
        missing = next((name for name in node.inputs if name and name not in places), None)
        if missing is not None:
            raise ModelRejected(
                f"{node.op_type} reads {shown(missing)}, which nothing makes before"
            )
        sources = tuple(places[name] if name else None for name in node.inputs)
        constants = {
            at: value
            for at, source in enumerate(sources)
            if source is not None and (value := values[source]) is not None
        }
        compute = _compute(node, graph.opsets, constants)
        targets = tuple(place_of(name) if name else None for name in node.outputs)
        steps.append(Step(node.op_type, compute, sources, targets))
    outputs = {}
    for tensor in graph.outputs:
        if tensor.name not in places:
            raise ModelRejected(f"nothing makes the output {shown(tensor.name)}")
        outputs[tensor.name] = places[tensor.name]
    return Plan(tuple(values), inputs, outputs, tuple(steps))


def _check_versions(graph: Graph) -> None:
    newer = "run the model with ONNX Runtime, or export it for an older version"
    if graph.ir_version > NEWEST_IR_VERSION:
        raise ModelRejected(
            f"this runtime does not know IR version {graph.ir_version} "
            f"(it knows up to {NEWEST_IR_VERSION})",
            hint=newer,
        )
    used = {node.domain for node in graph.nodes}
    for domain, (oldest, newest) in _LIMITS.items():
        version = graph.opsets.get(domain)
        if domain in used and version is not None and not oldest <= version <= newest:
            raise ModelRejected(
                f"this runtime does not know opset {version} (of {domain}; it knows {oldest} to "
                f"{newest})",
                hint=newer,
            )


def _compute(node: Node, opsets: Mapping[str, int], constants: Mapping[int, Array]) -> Compute:
    operator = OPERATORS.get((node.domain, node.op_type))
    if operator is None:
        name = node.op_type if node.domain == "ai.onnx" else f"{node.domain}:{node.op_type}"
        raise ModelRejected(
            f"the reference runtime does not know the operator {name}",
            hint="run the model with ONNX Runtime",
        )
    if node.domain not in opsets:
        raise ModelRejected(f"the model uses {node.domain} and does not say in which version")
    made = Made(node, opsets[node.domain], constants)
    try:
        return operator.make(made)
    except BadInput as error:
        raise made.refuse(error.message) from None
