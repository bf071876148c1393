"""A TFLite graph that reads what nothing has made is refused: kernels would read address 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema

from agent.errors import ModelRejected
from agent.formats.registry import describe
from tests.formats.building import operator_code, tflite_bytes, tflite_model, tflite_tensor

Operator = tuple[Sequence[int], Sequence[int]]


def graph(operators: Sequence[Operator], **fields: dict[str, Any]) -> bytes:
    """A model over the tensors x, a, b, y; x is its input and y its output.

    `fields` are tensors' own; buffer 1 holds weights.
    """
    names = ("x", "a", "b", "y")
    model = tflite_model([tflite_tensor(n, **fields.get(n, {})) for n in names], [operator_code(0)])
    weights = schema.BufferT()
    weights.data = [1] * 16
    model.buffers.append(weights)
    model.subgraphs[0].operators = []
    for inputs, outputs in operators:
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = 0, list(inputs), list(outputs)
        model.subgraphs[0].operators.append(operator)
    return tflite_bytes(model)


@pytest.mark.parametrize(
    ("operators", "fields"),
    [
        ([([0, 1], [3])], {"a": {"buffer": 1}}),
        ([([0, 1], [3])], {"a": {"isVariable": True}}),
        ([([0, 1], [3])], {"a": {"shape": [0]}}),
        ([([0, -1], [3])], {}),
        ([([0], [1]), ([1], [2]), ([1, 2], [3])], {}),
        ([], {"y": {"buffer": 1}}),
    ],
    ids=["constant", "state", "no elements", "optional", "in order", "constant output"],
)
def test_what_is_there_may_be_read(operators: list[Operator], fields: dict[str, Any]) -> None:
    assert describe(graph(operators, **fields)).outputs[0].name == "y"


@pytest.mark.parametrize(
    ("operators", "fields", "words"),
    [
        ([([0, 1], [3])], {}, "an operator reads the tensor 'a', which nothing has made"),
        ([([1], [3]), ([0], [1])], {}, "reads the tensor 'a', which nothing has made"),
        ([([0], [1])], {}, "its output is the tensor 'y', which nothing has made"),
        ([([0], [1])], {"a": {"buffer": 1}}, "writes to a constant, the tensor 'a'"),
        ([([3], [3])], {}, "reads the tensor 'y', which nothing has made"),
    ],
    ids=["never", "later", "output", "constant", "itself"],
)
def test_what_nothing_has_made_may_not_be_read(
    operators: list[Operator], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelRejected, match=words):
        describe(graph(operators, **fields))
