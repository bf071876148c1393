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


def write_treacherous(path: Path, scale: float = 1.0) -> None:
    """Write y = scale * x over four numbers that its input can turn against whoever runs it.

    The first number is how many rounds a loop makes, the second how many numbers (4 bytes each) are
    filled in memory, and of the third the square root is taken: a negative one gives NaN.
    """
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    weights = [
        helper.make_tensor("scale", TensorProto.FLOAT, [1], [scale]),
        helper.make_tensor("none", TensorProto.FLOAT, [1], [0.0]),
        *(helper.make_tensor(f"at{i}", TensorProto.INT64, [1], [i]) for i in range(4)),
        helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
        helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
        helper.make_tensor("scalar", TensorProto.INT64, [0], []),
    ]
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["before", "one"], ["after"]),
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
        ],
        "round",
        [
            value("number", TensorProto.INT64, []),
            value("go_on", TensorProto.BOOL, []),
            value("before", TensorProto.FLOAT, [1]),
        ],
        [value("goes_on", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, [1])],
    )
    node = helper.make_node
    nodes = [
        node("Reshape", ["x", "flat"], ["row"]),
        *(node("Gather", ["row", f"at{i}"], [f"x{i}"]) for i in range(3)),
        node("Cast", ["x0"], ["rounds1"], to=TensorProto.INT64),
        node("Reshape", ["rounds1", "scalar"], ["rounds"]),
        node("Loop", ["rounds", "", "none"], ["looped"], body=body),
        node("Cast", ["x1"], ["size"], to=TensorProto.INT64),
        node("ConstantOfShape", ["size"], ["filled"]),
        node("ReduceSum", ["filled"], ["summed"], keepdims=0),
        node("Sqrt", ["x2"], ["root"]),
        node("Add", ["looped", "summed"], ["a"]),
        node("Add", ["a", "root"], ["b"]),
        node("Mul", ["b", "none"], ["nothing"]),
        node("Mul", ["x", "scale"], ["scaled"]),
        node("Add", ["scaled", "nothing"], ["y"]),
    ]
    _save(path, helper.make_graph(nodes, "treacherous", [x], [y], weights))


def write_sum(path: Path, size: int) -> None:
    """Write y = the sum of a window of `size` readings, so that an answer tells what was in it."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)]
    _save(path, helper.make_graph(nodes, "sum", [x], [y], [axes]))
