"""Small model files for tests, made with the formats' own public tools."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any

import flatbuffers
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def integer_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx_model(
    nodes: Sequence[Any] | None = None,
    *,
    inputs: Sequence[Any] | None = None,
    outputs: Sequence[Any] | None = None,
    initializers: Sequence[Any] = (),
    ir_version: int = 8,
    opsets: Sequence[tuple[str, int]] = (("", 17),),
    **model_fields: Any,
) -> Any:
    """A ModelProto; by default y = Relu(x)."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(
        nodes if nodes is not None else [helper.make_node("Relu", ["x"], ["y"])],
        "graph",
        inputs if inputs is not None else [x],
        outputs if outputs is not None else [y],
        initializers,
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    return helper.make_model(graph, ir_version=ir_version, opset_imports=imports, **model_fields)


def external_tensor(location: str, **entries: str) -> Any:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def nested_if(depth: int, innermost: Sequence[Any]) -> Any:
    """An If inside an If … whose deepest branch holds the given nodes."""
    nodes = list(innermost)
    for _ in range(depth):
        branch = helper.make_graph(nodes, "branch", [], [onnx.ValueInfoProto(name="y")])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    return nodes[0]


def quantised(scale: Sequence[float], zero_point: Sequence[int]) -> Any:
    parameters = schema.QuantizationParametersT()
    parameters.scale, parameters.zeroPoint = list(scale), list(zero_point)
    return parameters


def tflite_tensor(name: str, shape: Sequence[int] = (1, 4), **fields: Any) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape = name.encode(), list(shape)
    for field, value in fields.items():
        setattr(tensor, field, value)
    return tensor


def operator_code(code: int, *, custom: str = "", version: int = 1) -> Any:
    entry = schema.OperatorCodeT()
    entry.builtinCode, entry.deprecatedBuiltinCode = code, min(code, 127)
    entry.version = version
    entry.customCode = custom.encode() or None
    return entry


def tflite_model(tensors: Sequence[Any] | None = None, codes: Sequence[Any] | None = None) -> Any:
    """A ModelT; by default y = relu(x). The first tensor is the input, the last the output."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    graph.tensors = list(tensors or [tflite_tensor("x"), tflite_tensor("y")])
    graph.inputs, graph.outputs = [0], [len(graph.tensors) - 1]
    model.operatorCodes = list(codes or [operator_code(schema.BuiltinOperator.RELU)])
    graph.operators = []
    for index in range(len(model.operatorCodes)):
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = index, [0], graph.outputs
        graph.operators.append(operator)
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    return model


def sum_and_difference_model() -> Any:
    """A ModelT of sum = a + b, difference = a - b."""
    tensors = [tflite_tensor(name) for name in ("a", "b", "sum", "difference")]
    codes = (schema.BuiltinOperator.ADD, schema.BuiltinOperator.SUB)
    model = tflite_model(tensors, [operator_code(code) for code in codes])
    options = (
        (schema.BuiltinOptions.AddOptions, schema.AddOptionsT()),
        (schema.BuiltinOptions.SubOptions, schema.SubOptionsT()),
    )
    for place, operator in enumerate(model.subgraphs[0].operators):
        operator.inputs, operator.outputs = [0, 1], [2 + place]
        operator.builtinOptionsType, operator.builtinOptions = options[place]
    model.subgraphs[0].inputs, model.subgraphs[0].outputs = [0, 1], [2, 3]
    return model


def tflite_bytes(model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def add_metadata_buffer(model: Any, name: str, content: bytes) -> None:
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(content)
    entry.name, entry.buffer = name.encode(), len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]


def archive(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as out:
        for name, content in files.items():
            # With a date of its own, or each worker of a test run would name its tests otherwise.
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            out.writestr(entry, content)
    return target.getvalue()
