"""What is read from TFLite models that are made for one question each."""

from __future__ import annotations

import struct
from typing import Any

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as schema

from agent.errors import ModelRejected
from agent.formats.description import ModelDescription, Signature, TfliteNeeds
from agent.formats.registry import describe
from agent.formats.tflite_operators import BUILTIN_OPERATORS, builtin_name
from agent.formats.tflite_tensors import DATATYPES
from tests.formats.building import (
    add_metadata_buffer,
    archive,
    operator_code,
    quantised,
    tflite_bytes,
    tflite_model,
    tflite_tensor,
)

OPERATORS = schema.BuiltinOperator
TYPES = schema.TensorType


def read(model: Any) -> ModelDescription:
    return describe(tflite_bytes(model))


def needs_of(model: Any) -> TfliteNeeds:
    needs = read(model).needs
    assert isinstance(needs, TfliteNeeds)
    return needs


def test_the_tables_of_names_are_those_of_the_schema() -> None:
    codes = {v: k for k, v in vars(OPERATORS).items() if isinstance(v, int)}
    assert dict(enumerate(BUILTIN_OPERATORS)) == codes
    types = {v: k for k, v in vars(TYPES).items() if isinstance(v, int)}
    renamed = {
        "FLOAT32": "FP32",
        "FLOAT16": "FP16",
        "FLOAT64": "FP64",
        "BFLOAT16": "BF16",
        "STRING": "BYTES",
    }
    assert {code: renamed.get(name, name) for code, name in types.items()} == DATATYPES


def test_a_plain_model_is_described_whole() -> None:
    model = tflite_model()
    model.description = "made here"
    description = read(model)
    assert description.format == "tflite"
    assert description.producer == "made here"
    assert description.needs == TfliteNeeds(3, {"RELU": 1})
    (x,) = description.inputs
    assert (x.name, x.datatype, x.shape, x.default_shape) == ("x", "FP32", (1, 4), (1, 4))
    assert (x.scale, x.zero_point) == (None, None)
    assert description.state == "none"
    assert description.notes == ()


def test_a_shape_signature_frees_dimensions_and_keeps_the_default() -> None:
    x = tflite_tensor("x", (1, 4), shapeSignature=[-1, 4])
    (described,) = read(tflite_model([x, tflite_tensor("y")])).inputs
    assert (described.shape, described.default_shape) == ((-1, 4), (1, 4))


def test_a_scalar_is_ranked_only_where_the_file_says_so() -> None:
    said, unsaid = tflite_tensor("x", (), hasRank=True), tflite_tensor("y", ())
    description = read(tflite_model([said, unsaid]))
    assert description.inputs[0].ranked
    assert not description.outputs[0].ranked


def test_quantisation_of_the_whole_tensor_is_given_and_per_channel_is_not() -> None:
    x = tflite_tensor("x", type=TYPES.INT8, quantization=quantised([0.5], [-3]))
    y = tflite_tensor("y", type=TYPES.INT8, quantization=quantised([0.5] * 4, [0] * 4))
    description = read(tflite_model([x, y]))
    assert (description.inputs[0].scale, description.inputs[0].zero_point) == (0.5, -3)
    assert (description.outputs[0].scale, description.outputs[0].zero_point) == (None, None)
    assert description.quantised


def test_a_float_tensor_is_not_quantised_whatever_its_parameters_say() -> None:
    x = tflite_tensor("x", quantization=quantised([0.5], [0]))
    description = read(tflite_model([x, tflite_tensor("y")]))
    assert description.inputs[0].scale is None
    assert not description.quantised


def test_a_scale_that_is_no_number_is_refused() -> None:
    x = tflite_tensor("x", type=TYPES.INT8, quantization=quantised([float("nan")], [0]))
    with pytest.raises(ModelRejected, match="tensor 'x' has the scale nan"):
        read(tflite_model([x, tflite_tensor("y")]))


def test_strings_are_bytes_and_resources_are_no_plain_tensors() -> None:
    x = tflite_tensor("x", type=TYPES.STRING)
    y = tflite_tensor("y", type=TYPES.RESOURCE)
    description = read(tflite_model([x, y]))
    assert (description.inputs[0].datatype, description.inputs[0].kind) == ("BYTES", "tensor")
    assert (description.outputs[0].datatype, description.outputs[0].kind) == (
        "",
        "tensor(RESOURCE)",
    )


def test_operators_come_with_their_highest_version_and_custom_ones_by_name() -> None:
    codes = [
        operator_code(OPERATORS.CONV_2D, version=2),
        operator_code(OPERATORS.CONV_2D, version=5),
        operator_code(OPERATORS.STABLEHLO_CASE),
        operator_code(OPERATORS.CUSTOM, custom="TFLite_Detection_PostProcess"),
        operator_code(999),
    ]
    needs = needs_of(tflite_model(codes=codes))
    assert needs.operators == {"BUILTIN_999": 1, "CONV_2D": 5, "STABLEHLO_CASE": 1}
    assert needs.custom_operators == ("TFLite_Detection_PostProcess",)
    assert not needs.edgetpu
    assert builtin_name(-1) == "BUILTIN_-1"


def test_an_old_file_with_only_the_short_operator_code_is_read() -> None:
    code = operator_code(OPERATORS.SOFTMAX)
    code.builtinCode = 0
    assert needs_of(tflite_model(codes=[code])).operators == {"SOFTMAX": 1}


def test_a_model_compiled_for_the_edge_tpu_is_recognised_beside_other_custom_operators() -> None:
    codes = [
        operator_code(OPERATORS.CUSTOM, custom="edgetpu-custom-op"),
        operator_code(OPERATORS.CUSTOM, custom="TFLite_Detection_PostProcess"),
    ]
    assert needs_of(tflite_model(codes=codes)).edgetpu


def test_hidden_state_is_told_by_its_kind() -> None:
    variable = tflite_tensor("cell", isVariable=True)
    tensors = [tflite_tensor("x"), variable, tflite_tensor("y")]
    assert read(tflite_model(tensors)).state == "variable_tensors"
    resource = operator_code(OPERATORS.ASSIGN_VARIABLE)
    assert read(tflite_model(tensors, [resource])).state == "resource_variables"
    # Hash tables are filled by CALL_ONCE too, and do not change afterwards.
    assert read(tflite_model(codes=[operator_code(OPERATORS.CALL_ONCE)])).state == "none"


def test_random_operators_are_noticed() -> None:
    (note,) = read(tflite_model(codes=[operator_code(OPERATORS.RANDOM_UNIFORM)])).notes
    assert "random" in note


def test_a_schema_version_of_the_future_is_carried_and_noticed() -> None:
    model = tflite_model()
    model.version = 4
    description = read(model)
    assert isinstance(description.needs, TfliteNeeds)
    assert description.needs.schema_version == 4
    assert description.notes == ("its schema version is 4, not 3",)


def test_signatures_give_arguments_their_tensors() -> None:
    model, signature = tflite_model(), schema.SignatureDefT()
    argument, result = schema.TensorMapT(), schema.TensorMapT()
    argument.name, argument.tensorIndex = b"features", 0
    result.name, result.tensorIndex = b"scores", 1
    signature.signatureKey, signature.subgraphIndex = b"serve", 0
    signature.inputs, signature.outputs = [argument], [result]
    model.signatureDefs = [signature]
    assert read(model).signatures == (Signature("serve", {"features": "x"}, {"scores": "y"}),)
    result.tensorIndex = 2
    with pytest.raises(ModelRejected, match="refers to a tensor 2 of 2"):
        read(model)


def test_the_oldest_runtime_is_read_from_its_buffer() -> None:
    model = tflite_model()
    add_metadata_buffer(model, "min_runtime_version", b"2.6.0" + bytes(11))
    assert needs_of(model).min_runtime_version == "2.6.0"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m, "subgraphs", []), "no subgraph"),
        (lambda m: setattr(m.subgraphs[0], "inputs", [2]), "a tensor 2 of 2"),
        (lambda m: setattr(m.subgraphs[0], "outputs", [-1]), "a tensor -1 of 2"),
        (lambda m: setattr(m.subgraphs[0].operators[0], "opcodeIndex", 1), "operator code 1 of 1"),
        (lambda m: setattr(m.subgraphs[0].operators[0], "inputs", [-2]), "a tensor -2 of 2"),
        (lambda m: setattr(m.subgraphs[0].tensors[0], "buffer", 1), "a buffer 1 of 1"),
        (lambda m: setattr(m.subgraphs[0].tensors[0], "shape", [1, -2]), r"shape \[1, -2\]"),
        (lambda m: setattr(m.subgraphs[0].tensors[0], "shape", [1] * 65), "65 dimensions"),
        (lambda m: setattr(m.subgraphs[0].tensors[0], "name", b"\xff"), "not UTF-8"),
        (lambda m: vars(m.buffers[0]).update(offset=2, size=2**40), "weights end at byte"),
        (lambda m: vars(m.buffers[0]).update(offset=2**64 - 1, size=1), "weights end at byte"),
    ],
)
def test_a_model_that_points_where_nothing_is_is_refused(change: Any, reason: str) -> None:
    model = tflite_model()
    change(model)
    with pytest.raises(ModelRejected, match=reason):
        read(model)


def test_an_optional_operator_input_may_be_left_out() -> None:
    model = tflite_model()
    model.subgraphs[0].operators[0].inputs = [0, -1]
    assert read(model).outputs


def test_weights_in_other_files_are_refused() -> None:
    model, group = tflite_model(), schema.ExternalBufferGroupT()
    group.name = b"../secret"
    model.externalBufferGroups = [group]
    with pytest.raises(ModelRejected, match="keeps weights in other files"):
        read(model)


def test_weights_behind_the_flatbuffer_are_found_inside_the_file() -> None:
    model = tflite_model()
    model.buffers[0].offset, model.buffers[0].size = 100, 8
    assert read(model).outputs


def many_entries(table_slots: int, slot: int, count: int) -> bytes:
    """A model with one vector whose entries all point at the same, empty table."""
    builder = flatbuffers.Builder(1024)
    builder.StartObject(0)
    shared = builder.EndObject()
    builder.StartVector(4, count, 4)
    for _ in range(count):
        builder.PrependUOffsetTRelative(shared)
    vector = builder.EndVector()
    builder.StartObject(table_slots)
    builder.PrependUOffsetTRelativeSlot(slot, vector, 0)
    builder.Finish(builder.EndObject(), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("slot", [1, 2, 4, 6, 7])
def test_one_table_named_a_million_times_does_not_keep_the_reader_busy(slot: int) -> None:
    with pytest.raises(ModelRejected):
        describe(many_entries(8, slot, 1_000_000))


def test_a_list_longer_than_any_real_one_is_refused() -> None:
    model = tflite_model()
    model.subgraphs[0].inputs = [0] * 65_537
    with pytest.raises(ModelRejected, match="a list of 65537 numbers"):
        read(model)


def test_every_truncation_is_refused_or_leaves_the_tail_only() -> None:
    data = tflite_bytes(tflite_model())
    for length in range(len(data)):
        with pytest.raises(ModelRejected):
            describe(data[:length], filename="m.tflite")


def test_a_vtable_outside_the_file_is_refused() -> None:
    data = bytearray(tflite_bytes(tflite_model()))
    root = struct.unpack_from("<I", data)[0]
    for offset in (2**31 - 1, -(2**31), root + 1):
        struct.pack_into("<i", data, root, offset)
        with pytest.raises(ModelRejected):
            describe(bytes(data))


def test_labels_follow_in_an_archive_at_the_tail() -> None:
    data = tflite_bytes(tflite_model()) + archive({"labels.txt": b"cat\ndog\n"})
    description = describe(data)
    assert description.labels == ("cat", "dog")
    assert description.associated_files == ("labels.txt",)


def test_an_unreadable_archive_is_a_note_and_no_refusal() -> None:
    data = tflite_bytes(tflite_model()) + archive({"labels.txt": b"\xff\xfe"})
    description = describe(data)
    assert description.labels is None
    assert "not UTF-8" in description.notes[0]


def test_unreadable_metadata_is_a_note_and_no_refusal() -> None:
    for content in (b"", b"\x04\x00\x00\x00M001", b"\xff\xff\xff\xffM001", b"\x04\0\0\0M999"):
        model = tflite_model()
        add_metadata_buffer(model, "TFLITE_METADATA", content)
        (note,) = read(model).notes
        assert "metadata cannot be read" in note
