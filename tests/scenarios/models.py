"""Tiny models that the stories need, written with the `onnx` package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper


@dataclass(frozen=True)
class Affine:
    scale: float
    offset: float


def write_affine(path: Path, model: Affine) -> None:
    """Write y = scale * x + offset over one row of four numbers."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    weights = [
        helper.make_tensor("scale", TensorProto.FLOAT, [1], [model.scale]),
        helper.make_tensor("offset", TensorProto.FLOAT, [1], [model.offset]),
    ]
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["y"]),
    ]
    _save(path, helper.make_graph(nodes, "affine", [x], [y], weights))


def _save(path: Path, graph: onnx.GraphProto) -> None:
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, ir_version=8, opset_imports=opset).SerializeToString()
    )
