"""From a file's own words to a variant: names, types, tolerances and what cannot be carried."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.author import signature
from agent.author.spec import Spec, TensorSpec
from agent.documents.manifest import Pipeline, StatePair, Tensor
from agent.errors import DocumentError, ModelRejected
from agent.formats.description import (
    ModelDescription,
    OnnxNeeds,
    TensorDescription,
    TfliteNeeds,
)

X = TensorDescription("x", "FP32", (-1, 4), ("batch", ""))
Y = TensorDescription("y", "FP32", (-1, 2), ("batch", ""))


def describe(*tensors: TensorDescription, **more: Any) -> ModelDescription:
    needs = OnnxNeeds(8, {"ai.onnx": 17}, (("ai.onnx", "Relu"), ("ai.onnx.ml", "ZipMap")))
    return ModelDescription(
        "onnx", (tensors or (X,))[:1], (tensors or (Y,))[1:] or (Y,), needs, **more
    )


def variant(description: ModelDescription, spec: Spec | None = None) -> Any:
    return signature.variant_of(description, "model.onnx", None, spec or Spec())


def tolerance(*public: Tensor, file: tuple[Tensor, ...] = (), quantised: bool = False) -> float:
    return signature.default_tolerance(public, file or public, quantised=quantised).absolute


def test_a_variant_says_what_it_needs_of_a_runtime() -> None:
    made = variant(describe())
    assert made.name == "onnx-fp32"
    assert made.needs.opsets == {"ai.onnx": 17}
    assert made.needs.operators == ("Relu", "ai.onnx.ml:ZipMap")


def test_the_operators_of_a_tflite_file_are_named_with_their_versions() -> None:
    needs = TfliteNeeds(3, {"CONV_2D": 8, "ADD": 2}, min_runtime_version="2.15.0")
    made = variant(ModelDescription("tflite", (X,), (Y,), needs))
    assert made.needs.operators == ("ADD:2", "CONV_2D:8")
    assert made.needs.min_runtime_version == "2.15.0"


def test_an_edgetpu_file_is_recognised() -> None:
    needs = TfliteNeeds(3, {}, ("edgetpu-custom-op",), edgetpu=True)
    described = ModelDescription("tflite", (X,), (Y,), needs, quantised=True)
    made = variant(described)
    assert made.name == "tflite-int8-edgetpu"
    assert made.needs.edgetpu


def test_a_map_of_scores_becomes_a_tensor() -> None:
    zipmap = TensorDescription("p", "", ranked=False, kind="sequence(map(INT64,FP32))")
    made = variant(describe(X, zipmap))
    assert made.outputs == (Tensor("p", "FP32", (-1, -1)),)
    notes = signature.notes_of(describe(X, zipmap, notes=(f"output 'p' is of type {zipmap.kind}",)))
    assert len(notes) == 1
    assert "rows" in notes[0]


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (TensorDescription("y", "", kind="tensor(COMPLEX64)"), "COMPLEX64"),
        (TensorDescription("y", "", kind="sequence(FP32)"), "sequence"),
        (TensorDescription("y", "", kind="unknown"), "does not say what type"),
        (TensorDescription("", "FP32", (1,)), "has no name"),
        (TensorDescription("y", "FP32", (1,) * 17), "17 dimensions"),
    ],
)
def test_a_tensor_that_no_payload_can_carry_is_refused_with_the_reason(
    tensor: TensorDescription, reason: str
) -> None:
    with pytest.raises(ModelRejected, match=reason):
        variant(describe(X, tensor))


def test_an_unknown_type_may_be_stated_by_the_author() -> None:
    unknown = TensorDescription("y", "", kind="unknown")
    spec = Spec(outputs=(TensorSpec("y", datatype="FP32", shape=(1, 2)),))
    assert variant(describe(X, unknown), spec).outputs == (Tensor("y", "FP32", (1, 2)),)


def test_an_input_of_unknown_rank_must_be_stated() -> None:
    unranked = TensorDescription("x", "FP32", ranked=False)
    with pytest.raises(ModelRejected, match="how many dimensions input 'x'"):
        variant(describe(unranked, Y))
    spec = Spec(inputs=(TensorSpec("x", shape=(2, 3)),))
    assert variant(describe(unranked, Y), spec).inputs[0].shape == (2, 3)


def test_state_that_the_file_keeps_may_not_be_denied() -> None:
    keeps = describe(state="variable_tensors")
    assert variant(keeps).hidden_state == "reset"
    assert variant(keeps, Spec(hidden_state="per_source")).hidden_state == "per_source"
    assert variant(describe(state="resource_variables")).hidden_state == "per_source"
    with pytest.raises(DocumentError, match="keeps state between runs"):
        variant(keeps, Spec(hidden_state="none"))


def test_tolerances_suit_the_numbers() -> None:
    stored = Tensor("y", "INT8", (1, 4), scale=0.25, zero_point=3)
    real = Tensor("y", "FP32", (1, 4))
    assert tolerance(stored) == 26
    assert tolerance(real, file=(stored,)) == 26 * 0.25
    assert tolerance(real, quantised=True) == 0.06
    assert tolerance(real) == 1e-3
    assert tolerance(Tensor("y", "FP16", (1,))) == 1e-2
    # The number of a class is right or wrong, however coarse the scores are.
    assert tolerance(Tensor("index", "INT64", (1,)), real, file=(stored,)) == 0.4


def test_listed_inputs_change_the_files_or_replace_them() -> None:
    made = variant(describe())
    unit = Spec(inputs=(TensorSpec("x", unit="g"),))
    assert signature.public_inputs(made, unit) == (Tensor("x", "FP32", (-1, 4), unit="g"),)
    steps = Pipeline(pre=({"step": "constant"},))
    other = Spec(pipeline=steps, inputs=(TensorSpec("raw", datatype="FP32", shape=(3,)),))
    assert signature.public_inputs(made, other) == (Tensor("raw", "FP32", (3,)),)
    with pytest.raises(DocumentError, match=r"inputs\[0\].datatype"):
        signature.public_inputs(made, Spec(inputs=(TensorSpec("raw", shape=(3,)),)))


def test_state_is_no_part_of_what_messages_hold() -> None:
    state = TensorDescription("y", "FP32", (-1, 4))
    made = variant(describe(X, Y, state))
    spec = Spec(state=(StatePair("x", "y"),))
    assert signature.public_inputs(made, spec) == ()
    assert [t.name for t in signature.public_outputs(made, spec, ())] == []


def test_words_about_an_output_that_there_is_not_are_refused() -> None:
    with pytest.raises(DocumentError, match=r"outputs\[0\].name: expected one of y, got 'z'"):
        signature.public_outputs(variant(describe()), Spec(outputs=(TensorSpec("z"),)), ())


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_file_name_gives_a_pack_name(stem: str) -> None:
    name = signature.pack_name(stem)
    assert 1 <= len(name) <= 64
    assert name[0] in string.ascii_lowercase + string.digits
    assert set(name) <= set(string.ascii_lowercase + string.digits + "_-")
