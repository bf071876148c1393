"""Changes of a TFLite file that keep most of it meaningful."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from tests.campaign import flat_changes
from tests.campaign.flat import Sites
from tests.campaign.flat_changes import Change, numbers

_LONG_NAME = 70_000
_MANY = 3000  # Building that many takes the schema's own code half a second.

# Changes of a model that is taken apart and built anew.

Rebuild = Callable[[Any, Random], bool]


def rebuilt(change: Rebuild) -> Change:
    def apply(data: bytes, sites: Sites, random: Random) -> bytes | None:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        if not change(model, random):
            return None
        builder = flatbuffers.Builder(len(data) + 4096)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    return apply


def _graph(model: Any, random: Random) -> Any:
    return random.choice(model.subgraphs)


def operators(model: Any, random: Random) -> bool:
    """Operators are left out, doubled or shuffled, or take their own answer as an input."""
    graph = _graph(model, random)
    if not graph.operators:
        return False
    place = random.randrange(len(graph.operators))
    operator = graph.operators[place]
    how = random.choice(("removed", "doubled", "shuffled", "cycle", "many"))
    if how == "removed":
        del graph.operators[place]
    elif how == "doubled":
        graph.operators.insert(place, copy.copy(operator))
    elif how == "shuffled":
        random.shuffle(graph.operators)
    elif how == "many":
        graph.operators += [operator] * _MANY
    else:
        operator.inputs = [int(operator.outputs[0]), *list(operator.inputs)[1:]]
    return True


def subgraphs(model: Any, random: Random) -> bool:
    """Graphs that call themselves, call each other, or are empty."""
    graph = _graph(model, random)
    how = random.choice(("call itself", "call each other", "many", "empty", "none"))
    if how == "none":
        model.subgraphs = []
    elif how == "empty":
        graph.operators, graph.tensors = [], []
    elif how == "many":
        room = _MANY // (len(graph.tensors) + len(graph.operators) + 1)
        model.subgraphs += [graph] * max(1, min(room, random.choice((1, 64, 1000))))
    else:
        model.subgraphs.append(copy.deepcopy(graph))
        last = len(model.subgraphs) - 1
        _call(model, model.subgraphs[0], 0 if how == "call itself" else last, random)
        _call(model, model.subgraphs[last], 0, random)
    return True


def _call(model: Any, graph: Any, target: int, random: Random) -> None:
    """Put an operator in front that runs a subgraph."""
    code, call = schema.OperatorCodeT(), schema.OperatorT()
    kind = random.choice(("CALL_ONCE", "WHILE", "IF"))
    number = getattr(schema.BuiltinOperator, kind)
    code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
    options = {"CALL_ONCE": "CallOnceOptions", "WHILE": "WhileOptions", "IF": "IfOptions"}[kind]
    call.builtinOptions = getattr(schema, options + "T")()
    call.builtinOptionsType = getattr(schema.BuiltinOptions, options)
    for name in vars(call.builtinOptions):
        setattr(call.builtinOptions, name, target)
    call.inputs = [] if kind == "CALL_ONCE" else list(graph.inputs)
    call.outputs = [] if kind == "CALL_ONCE" else list(graph.outputs)
    call.opcodeIndex = len(model.operatorCodes)
    model.operatorCodes.append(code)
    graph.operators.insert(0, call)


def names(model: Any, random: Random) -> bool:
    """Names that clash, are missing, endless, or not for a terminal."""
    graph = _graph(model, random)
    if not graph.tensors:
        return False
    tensor, other = random.choice(graph.tensors), random.choice(graph.tensors)
    if random.random() < 0.5 and len(graph.outputs):
        tensor = graph.tensors[random.choice([*graph.inputs, *graph.outputs])]
    odd = (b"", b"\x00", b"\x1b[31m\n", b"\xff\xfe", b"n" * _LONG_NAME, other.name)
    tensor.name = random.choice(odd)
    return True


def operator_names(model: Any, random: Random) -> bool:
    """Builtin operators become others, unknown or custom ones."""
    code = random.choice(model.operatorCodes)
    number = random.choice((random.randrange(210), random.randrange(210), 32, 127, 999_999, -1))
    code.builtinCode, code.deprecatedBuiltinCode = number, max(min(number, 127), -128)
    if number == schema.BuiltinOperator.CUSTOM or random.random() < 0.2:
        code.customCode = random.choice(
            (b"edgetpu-custom-op", b"FlexAddV2", b"TFLite_Detection_PostProcess", b"\x07", b"")
        )
    return True


def buffers(model: Any, random: Random) -> bool:
    """Weights that are shorter, longer, missing, or said to lie elsewhere."""
    filled = [b for b in model.buffers if b.data is not None and len(b.data)]
    if not filled:
        return False
    buffer = random.choice(filled)
    how = random.choice(("shorter", "longer", "missing", "elsewhere", "swapped"))
    if how == "missing":
        buffer.data = None
    elif how == "elsewhere":
        buffer.data = None
        buffer.offset, buffer.size = random.choice(((2, 8), (100, 2**40), (2**63, 1), (8, 0)))
    elif how == "swapped":
        other = random.choice(model.buffers)
        buffer.data, other.data = other.data, buffer.data
    else:
        size = len(buffer.data)
        count = random.randrange(size) if how == "shorter" else size + random.choice((1, 4, 65536))
        buffer.data = (list(buffer.data[:count]) + [0] * (count - size))[:count]
    return True


CHANGES: dict[str, Change] = {
    **flat_changes.CHANGES,
    "shape": numbers("Tensor.shape", "Tensor.shape_signature", near=512),
    "data type": numbers("Tensor.type", near=24),
    "buffer index": numbers("Tensor.buffer", "Metadata.buffer", near=64),
    "tensor index": numbers(
        *("Operator.inputs", "Operator.outputs", "Operator.intermediates"),
        *("SubGraph.inputs", "SubGraph.outputs", "TensorMap.tensor_index"),
        near=32,
    ),
    "operator code": numbers(
        *("Operator.opcode_index", "OperatorCode.version", "OperatorCode.builtin_code"),
        "OperatorCode.deprecated_builtin_code",
        near=200,
    ),
    "operator options": numbers(
        *("Operator.builtin_options_type", *(f"Options.slot_{n}" for n in range(4, 40, 2))),
        near=128,
    ),
    "quantisation": numbers(
        *("Quantization.scale", "Quantization.zero_point", "Quantization.quantized_dimension"),
        *("Quantization.min", "Quantization.max", "Quantization.details_type"),
        near=256,
    ),
    "flags": numbers(
        *("Tensor.is_variable", "Tensor.has_rank", "Model.version", "SignatureDef.subgraph_index"),
        near=4,
    ),
    "operators": rebuilt(operators),
    "subgraphs": rebuilt(subgraphs),
    "names": rebuilt(names),
    "operator names": rebuilt(operator_names),
    "buffers": rebuilt(buffers),
}
