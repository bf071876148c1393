"""Tiny ONNX models for these tests, and a specification in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.author.spec import Spec, parse_spec

FLOAT = 1  # TensorProto.DataType
STRING, INT64, BOOL, FLOAT16 = 8, 7, 9, 10

Shape = Sequence[int | str] | None


def model(
    path: Path,
    operator: str = "Relu",
    *,
    inputs: Mapping[str, tuple[int, Shape]] | None = None,
    outputs: Mapping[str, tuple[int, Shape]] | None = None,
    weights: Sequence[Any] = (),
    **attributes: Any,
) -> Path:
    """Write a model of one operator over all inputs; by default y = Relu(x) over [batch, 4]."""
    pytest.importorskip("onnx")
    from onnx import helper

    def values(tensors: Mapping[str, tuple[int, Shape]]) -> list[Any]:
        make = helper.make_tensor_value_info
        return [make(name, kind, shape) for name, (kind, shape) in tensors.items()]

    inputs = {"x": (FLOAT, ["batch", 4])} if inputs is None else inputs
    outputs = {"y": (FLOAT, ["batch", 4])} if outputs is None else outputs
    names = [*inputs, *(tensor.name for tensor in weights)]
    node = helper.make_node(operator, names, list(outputs), **attributes)
    graph = helper.make_graph([node], "graph", values(inputs), values(outputs), weights)
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(made.SerializeToString())
    return path


def spec(text: str, folder: Path) -> Spec:
    return parse_spec(text.encode(), folder)
