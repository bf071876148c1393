"""Whole models on the reference runtime: the real ones, and those that it must refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from agent.errors import BadInput, ModelError, ModelRejected
from agent.runtimes.api import Wanted
from agent.runtimes.onnx import OnnxRuntime
from agent.runtimes.reference.runtime import ReferenceRuntime
from tests.formats.building import external_tensor, nested_if, onnx_model
from tests.runtimes import models

FLOAT = TensorProto.FLOAT
# Model → how far its answers may be from ONNX Runtime's; one step of its scale for the quantised.
MODELS = {
    "breast_cancer_tabular/breast_cancer_forest_tensor": 0.0,
    "breast_cancer_tabular/breast_cancer_logreg_tensor": 1e-6,
    "breast_cancer_tabular/breast_cancer_logreg_zipmap": 1e-6,
    "digits_mlp/digits_mlp_dynamic_batch": 1e-6,
    "digits_mlp/digits_mlp_dynamic_batch_int8": 0.0353,
    "machine_temperature/machine_temperature_autoencoder": 1e-4,
}


def load(folder: Path, data: bytes) -> None:
    path = folder / "m.onnx"
    path.write_bytes(data)
    ReferenceRuntime().load(path, Wanted())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [0, 1, 32])
def test_a_real_model_answers_as_with_onnx_runtime(
    shared_models: Path, name: str, rows: int
) -> None:
    path = shared_models / f"{name}.onnx"
    own, other = ReferenceRuntime().load(path, Wanted()), OnnxRuntime().load(path, Wanted())
    assert (own.inputs, own.outputs) == (other.inputs, other.outputs)
    rng = np.random.default_rng(5)
    inputs = {
        tensor.name: (
            16 * rng.random([rows if size == -1 else size for size in tensor.shape])
        ).astype(np.float32)
        for tensor in own.inputs
    }
    for key, expected in other.run(inputs).items():
        given = own.run(inputs)[key]
        assert (given.dtype, given.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(given, expected, rtol=0, atol=MODELS[name])


def test_the_forest_gives_the_labels_of_the_golden_table(shared_models: Path) -> None:
    folder = shared_models / "breast_cancer_tabular"
    table = np.genfromtxt(folder / "golden.csv", delimiter=",", names=True)
    rows = np.array([list(row)[:30] for row in table], np.float32)
    path = folder / "breast_cancer_forest_tensor.onnx"
    own, other = ReferenceRuntime().load(path, Wanted()), OnnxRuntime().load(path, Wanted())
    labels = own.run({own.inputs[0].name: rows})["label"]
    assert set(labels.tolist()) == {0, 1}
    np.testing.assert_array_equal(labels, other.run({other.inputs[0].name: rows})["label"])


@pytest.mark.parametrize("name", ["basic_pitch/nmp.onnx", "silero_vad/silero_vad_16k_op15.onnx"])
def test_a_model_with_other_operators_is_rejected_by_their_name(
    shared_models: Path, name: str
) -> None:
    with pytest.raises(ModelRejected, match="does not know the operator"):
        ReferenceRuntime().load(shared_models / name, Wanted())


def test_its_facts_name_all_operators() -> None:
    operators = ReferenceRuntime().facts().operators
    assert {"Gemm", "ai.onnx.ml:TreeEnsembleClassifier", "ai.onnx.ml:ZipMap"} <= set(operators)
    assert all(len(name) < 128 for name in operators)


def test_a_newer_opset_and_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"does not know opset 99 \(of ai\.onnx"):
        load(tmp_path, models.relu_onnx(opsets=(("", 99),)))
    with pytest.raises(ModelRejected, match="does not know IR version 99"):
        load(tmp_path, models.relu_onnx(ir_version=99))


def test_what_only_a_full_runtime_can_do_is_refused_with_what_it_is(tmp_path: Path) -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    function = helper.make_function(
        "mine", "f", ["x"], ["y"], [relu], [helper.make_opsetid("", 17)]
    )
    for model, what in (
        (onnx_model(initializers=[external_tensor("w.bin")]), "in another file"),
        (onnx_model(functions=[function]), "functions of its own"),
        (onnx_model([nested_if(1, [relu])]), "If"),
    ):
        with pytest.raises(ModelRejected, match=what):
            load(tmp_path, model.SerializeToString())


def test_a_wiring_that_cannot_be_is_refused(tmp_path: Path) -> None:
    pair = (FLOAT, (1, 4))
    for nodes, why in (
        ([("Relu", "z", "y")], "reads 'z', which nothing makes"),
        ([("Relu", "x", "x")], "two things in the model are called 'x'"),
        ([("Relu", "x", "z")], "nothing makes the output 'y'"),
    ):
        made = [helper.make_node(op, [source], [target]) for op, source, target in nodes]
        with pytest.raises(ModelRejected, match=why):
            load(tmp_path, models.onnx_bytes(made, {"x": pair}, {"y": pair}))


def test_operands_of_two_types_are_never_widened_in_silence(tmp_path: Path) -> None:
    data = models.onnx_bytes(
        [helper.make_node("Add", ["x", "i"], ["y"])],
        {"x": (FLOAT, (1,)), "i": (TensorProto.INT64, (1,))},
        {"y": (FLOAT, (1,))},
    )
    (tmp_path / "m.onnx").write_bytes(data)
    session = ReferenceRuntime().load(tmp_path / "m.onnx", Wanted())
    with pytest.raises((BadInput, ModelError), match="float32, int64"):
        session.run({"x": np.zeros(1, np.float32), "i": np.zeros(1, np.int64)})


def test_an_output_that_is_an_input_or_a_constant_is_a_copy(tmp_path: Path) -> None:
    pair = (FLOAT, (2,))
    constant = helper.make_tensor("c", FLOAT, [2], [1.0, 2.0])
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Identity", ["w"], ["weights"]),
        helper.make_node("Constant", [], ["constant"], value=constant),
        helper.make_node("Reshape", ["x", "shape"], ["view"]),
    ]
    outputs = dict.fromkeys(("same", "weights", "constant", "view"), pair)
    weights = [
        helper.make_tensor("w", FLOAT, [2], [3.0, 4.0]),
        helper.make_tensor("shape", TensorProto.INT64, [1], [2]),
    ]
    data = models.onnx_bytes(nodes, {"x": pair}, outputs, initializers=weights)
    (tmp_path / "m.onnx").write_bytes(data)
    session = ReferenceRuntime().load(tmp_path / "m.onnx", Wanted())
    given = np.array([5, 6], np.float32)
    first = session.run({"x": given})
    for array in first.values():
        array[:] = 9
    assert given.tolist() == [5, 6]
    again = {name: array.tolist() for name, array in session.run({"x": given}).items()}
    assert again == {"same": [5, 6], "weights": [3, 4], "constant": [1, 2], "view": [5, 6]}


def test_a_division_of_integers_by_zero_ends_no_process(tmp_path: Path) -> None:
    pair = (TensorProto.INT64, ("n",))
    data = models.onnx_bytes([helper.make_node("Div", ["x", "x"], ["y"])], {"x": pair}, {"y": pair})
    (tmp_path / "m.onnx").write_bytes(data)
    session = ReferenceRuntime().load(tmp_path / "m.onnx", Wanted())
    with pytest.raises(BadInput, match="division by zero"):
        session.run({"x": np.array([0])})
    assert session.run({"x": np.array([7])})["y"].tolist() == [1]
