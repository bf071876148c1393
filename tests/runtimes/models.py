"""Models of a few hundred bytes for the tests of runtimes and workers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from edgeward_steps.model_format import MAGIC
from onnx import TensorProto, helper

from tests.formats.building import (
    onnx_model,
    operator_code,
    quantised,
    sum_and_difference_model,
    tflite_bytes,
    tflite_model,
    tflite_tensor,
)


def onnx_bytes(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Sequence[Any] | None]],
    outputs: Mapping[str, tuple[int, Sequence[Any] | None]],
    **more: Any,
) -> bytes:
    """An ONNX model; inputs and outputs are name → (TensorProto type, shape; None: not said)."""
    infos = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    data: bytes = onnx_model(nodes, inputs=infos[0], outputs=infos[1], **more).SerializeToString()
    return data


def relu_onnx(shape: Sequence[Any] = (1, 4), **more: Any) -> bytes:
    """y = relu(x)."""
    float_of = (TensorProto.FLOAT, shape)
    node = helper.make_node("Relu", ["x"], ["y"])
    return onnx_bytes([node], {"x": float_of}, {"y": float_of}, **more)


def unknown_operator_onnx(name: str) -> bytes:
    """A model whose only operator is in no standard."""
    float_of = (TensorProto.FLOAT, (1, 4))
    nodes = [helper.make_node(name, ["x"], ["y"])]
    return onnx_bytes(nodes, {"x": float_of}, {"y": float_of})


def relu_tflite(shape: Sequence[int] = (1, 4)) -> bytes:
    """y = relu(x)."""
    signature = {"shapeSignature": list(shape)} if -1 in shape else {}
    allocated = [1 if size == -1 else size for size in shape]
    tensors = [tflite_tensor(name, allocated, **signature) for name in ("x", "y")]
    return tflite_bytes(tflite_model(tensors))


def sum_and_difference_onnx() -> bytes:
    """sum = a + b, difference = a - b."""
    float_of = (TensorProto.FLOAT, (1, 4))
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
    ]
    names = {"a": float_of, "b": float_of}
    return onnx_bytes(nodes, names, {"sum": float_of, "difference": float_of})


def sum_and_difference_tflite() -> bytes:
    """sum = a + b, difference = a - b."""
    return tflite_bytes(sum_and_difference_model())


def custom_operator_tflite(name: str) -> bytes:
    """A model whose only operator is one that its runtime does not have."""
    code = operator_code(schema.BuiltinOperator.CUSTOM, custom=name)
    return tflite_bytes(tflite_model(codes=[code]))


def quantised_tflite() -> bytes:
    """y = relu(x) on int8 with scale 0.5 and zero point 3."""
    fields = {"type": schema.TensorType.INT8, "quantization": quantised([0.5], [3])}
    tensors = [tflite_tensor(name, **fields) for name in ("x", "y")]
    return tflite_bytes(tflite_model(tensors))


def steps_bytes(
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int]],
    *steps: tuple[str, ...],
) -> bytes:
    """A model of the example's format; a step is its operator, what it makes, and its operands."""
    named = [{"op": op, "out": target, "in": sources} for op, target, *sources in steps]
    return MAGIC + json.dumps({"inputs": inputs, "outputs": outputs, "steps": named}).encode()


def relu_steps(shape: Sequence[int] = (1, 4)) -> bytes:
    """y = relu(x)."""
    return steps_bytes({"x": shape}, {"y": shape}, ("relu", "y", "x"))


def sum_and_difference_steps() -> bytes:
    """sum = a + b, difference = a - b."""
    return steps_bytes(
        {"a": (1, 4), "b": (1, 4)},
        {"sum": (1, 4), "difference": (1, 4)},
        ("add", "sum", "a", "b"),
        ("subtract", "difference", "a", "b"),
    )
