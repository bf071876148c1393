"""Model files that look as if they were compiled for the Edge TPU, and what they stand beside."""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from tests.formats.building import operator_code, tflite_bytes, tflite_model, tflite_tensor

OPERATOR = "edgetpu-custom-op"


def compiled(*, relu_after: bool = False) -> bytes:
    """y = x, one operator of the Edge TPU; with a Relu behind it that the CPU computes."""
    codes = [operator_code(schema.BuiltinOperator.CUSTOM, custom=OPERATOR)]
    tensors = [tflite_tensor(name) for name in ("x", "y")]
    if relu_after:
        tensors.insert(1, tflite_tensor("between"))
        codes.append(operator_code(schema.BuiltinOperator.RELU))
    model = tflite_model(tensors, codes)
    first, last = model.subgraphs[0].operators[0], model.subgraphs[0].operators[-1]
    first.customOptions = list(_options())
    if relu_after:
        first.outputs, last.inputs, last.outputs = [1], [1], [2]
    return tflite_bytes(model)


def plain() -> bytes:
    """y = relu(x): what `compiled` gives, where nothing is negative."""
    return tflite_bytes(tflite_model())


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
