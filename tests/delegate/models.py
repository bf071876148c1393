"""Model files that look as if they were compiled for the Edge TPU, and what they stand beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from tests.formats.building import (
    operator_code,
    sum_and_difference_model,
    tflite_bytes,
    tflite_model,
    tflite_tensor,
)

OPERATOR = "edgetpu-custom-op"


def compiled(shape: Sequence[int] = (1, 4), *, relu_after: bool = False) -> bytes:
    """y = x, one operator of the Edge TPU; with a Relu behind it that the CPU computes."""
    codes = [operator_code(schema.BuiltinOperator.CUSTOM, custom=OPERATOR)]
    tensors = [tflite_tensor(name, shape) for name in ("x", "y")]
    if relu_after:
        tensors.insert(1, tflite_tensor("between", shape))
        codes.append(operator_code(schema.BuiltinOperator.RELU))
    model = tflite_model(tensors, codes)
    first, last = model.subgraphs[0].operators[0], model.subgraphs[0].operators[-1]
    first.customOptions = list(_options())
    if relu_after:
        first.outputs, last.inputs, last.outputs = [1], [1], [2]
    return tflite_bytes(model)


def sum_and_difference() -> bytes:
    """sum = a + b, difference = a - b, of an a that goes through the Edge TPU."""
    return tflite_bytes(_behind(sum_and_difference_model()))


def unknown_operator(name: str) -> bytes:
    """One operator of the Edge TPU, and behind it one that its runtime does not have."""
    code = operator_code(schema.BuiltinOperator.CUSTOM, custom=name)
    return tflite_bytes(_behind(tflite_model(codes=[code])))


def _behind(model: Any) -> Any:
    """Have the first input go through the Edge TPU."""
    graph, place = model.subgraphs[0], len(model.subgraphs[0].tensors)
    graph.tensors.append(tflite_tensor("through"))
    for operator in graph.operators:
        operator.inputs = [place if tensor == 0 else tensor for tensor in operator.inputs]
    first = schema.OperatorT()
    first.opcodeIndex, first.inputs, first.outputs = len(model.operatorCodes), [0], [place]
    first.customOptions = list(_options())
    graph.operators.insert(0, first)
    model.operatorCodes.append(operator_code(schema.BuiltinOperator.CUSTOM, custom=OPERATOR))
    return model


def plain() -> bytes:
    """y = relu(x): what `compiled` gives, where nothing is negative."""
    return tflite_bytes(tflite_model())


def slow(width: int = 1024, layers: int = 6) -> bytes:
    """y = x by way of some fully connected layers, so that it takes a CPU about a millisecond."""
    rows = np.eye(width, dtype=np.float32)
    weights = [rows[:, :4], *[rows] * layers, rows[:4]]
    buffers = [rows[:, :4], rows, rows[:4]]
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.buffers = [schema.BufferT() for _ in range(1 + len(buffers))]
    for place, values in enumerate(buffers, 1):
        model.buffers[place].data = np.frombuffer(values.tobytes(), np.uint8)
    sizes = [4, *[width] * (layers + 1), 4]
    names = ["x", *(f"a{n}" for n in range(layers + 1)), "y"]
    graph.tensors = [tflite_tensor(n, (1, size)) for n, size in zip(names, sizes, strict=True)]
    graph.operators = []
    for place, values in enumerate(weights):
        number = 1 if place == 0 else 3 if place == len(weights) - 1 else 2
        graph.tensors.append(tflite_tensor(f"w{place}", values.shape, buffer=number))
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.outputs = 0, [place + 1]
        operator.inputs = [place, len(graph.tensors) - 1, -1]
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        graph.operators.append(operator)
    graph.inputs, graph.outputs = [0], [len(weights)]
    model.operatorCodes = [operator_code(schema.BuiltinOperator.FULLY_CONNECTED)]
    model.version, model.subgraphs = 3, [graph]
    return tflite_bytes(model)


def _options() -> bytes:
    """The map that the compiler leaves: version, executable, preference."""
    builder = flexbuffers.Builder()
    with builder.Map():
        builder.Key("1")
        builder.Int(1)
        builder.Key("4")
        builder.Blob(b"an executable")
        builder.Key("5")
        builder.Int(0)
    return bytes(builder.Finish())
