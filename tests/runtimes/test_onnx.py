"""What is particular to ONNX Runtime."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from agent.documents.manifest import Datatype
from agent.errors import BadInput, ModelRejected
from agent.runtimes.api import Wanted
from agent.runtimes.onnx import OnnxRuntime, OnnxSession
from tests.formats.building import onnx_model
from tests.runtimes import models

ROW = [1, 4]


@pytest.fixture(scope="module")
def runtime() -> OnnxRuntime:
    return OnnxRuntime()


def load(runtime: OnnxRuntime, folder: Path, data: bytes) -> OnnxSession:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return runtime.load(path, Wanted())


def identity(kind: int, shape: list[int]) -> bytes:
    node = helper.make_node("Identity", ["x"], ["y"])
    return models.onnx_bytes([node], {"x": (kind, shape)}, {"y": (kind, shape)})


@pytest.mark.parametrize(
    ("kind", "datatype", "value"),
    [
        (TensorProto.BOOL, "BOOL", np.array([True, False])),
        (TensorProto.UINT8, "UINT8", np.array([0, 255], np.uint8)),
        (TensorProto.INT8, "INT8", np.array([-128, 127], np.int8)),
        (TensorProto.INT32, "INT32", np.array([-1, 1], np.int32)),
        (TensorProto.INT64, "INT64", np.array([-(2**62), 2**62])),
        (TensorProto.UINT64, "UINT64", np.array([0, 2**63], np.uint64)),
        (TensorProto.FLOAT16, "FP16", np.array([0.5, -2], np.float16)),
        (TensorProto.DOUBLE, "FP64", np.array([0.1, 1e300])),
        (TensorProto.STRING, "BYTES", np.array(["größe", ""], object)),
    ],
)
def test_every_datatype_goes_through_unchanged(
    runtime: OnnxRuntime, tmp_path: Path, kind: int, datatype: Datatype, value: np.ndarray
) -> None:
    session = load(runtime, tmp_path, identity(kind, [2]))
    assert session.inputs[0].datatype == session.outputs[0].datatype == datatype
    result = session.run({"x": value})["y"]
    assert result.dtype == value.dtype
    assert result.tolist() == value.tolist()


def test_a_scalar_stays_an_array(runtime: OnnxRuntime, tmp_path: Path) -> None:
    session = load(runtime, tmp_path, identity(TensorProto.INT64, []))
    result = session.run({"x": np.array(16000)})["y"]
    assert isinstance(result, np.ndarray)
    assert result.shape == ()
    assert result.dtype == np.int64
    assert int(result) == 16000


def test_an_output_that_is_the_input_does_not_share_its_memory(
    runtime: OnnxRuntime, tmp_path: Path
) -> None:
    session = load(runtime, tmp_path, identity(TensorProto.FLOAT, [2]))
    given = np.array([1, 2], np.float32)
    result = session.run({"x": given})["y"]
    given[:] = 9
    assert result.tolist() == [1, 2]


def test_an_output_that_is_a_constant_cannot_be_spoilt(
    runtime: OnnxRuntime, tmp_path: Path
) -> None:
    constant = helper.make_tensor("c", TensorProto.FLOAT, [2], [1.0, 2.0])
    nodes = [helper.make_node("Constant", [], ["y"], value=constant)]
    pair = (TensorProto.FLOAT, [2])
    data = models.onnx_bytes(nodes, {"x": pair}, {"y": pair})
    session = load(runtime, tmp_path, data)
    given = {"x": np.zeros(2, np.float32)}
    session.run(given)["y"][:] = 9
    assert session.run(given)["y"].tolist() == [1, 2]


def zipmap(keys: dict[str, Any], kind: int) -> bytes:
    output = helper.make_value_info(
        "scores",
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        ),
    )
    data: bytes = onnx_model(
        [helper.make_node("ZipMap", ["x"], ["scores"], domain="ai.onnx.ml", **keys)],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        outputs=[output],
        opsets=(("", 17), ("ai.onnx.ml", 3)),
    ).SerializeToString()
    return data


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"classlabels_int64s": [5, 1, 3]}, TensorProto.INT64),
        ({"classlabels_strings": ["c", "a", "b"]}, TensorProto.STRING),
    ],
)
def test_maps_of_scores_become_a_tensor_in_the_order_of_the_classes(
    runtime: OnnxRuntime, tmp_path: Path, keys: dict[str, Any], kind: int
) -> None:
    session = load(runtime, tmp_path, zipmap(keys, kind))
    (scores,) = session.outputs
    assert (scores.datatype, scores.shape) == ("FP32", (-1, -1))
    result = session.run({"x": np.array([[0.5, 0.25, 0.125], [1, 2, 3]], np.float32)})["scores"]
    assert result.dtype == np.float32
    assert result.tolist() == [[0.25, 0.125, 0.5], [2, 3, 1]]
    assert session.run({"x": np.zeros((0, 3), np.float32)})["scores"].shape == (0, 0)


def test_a_sequence_of_tensors_is_refused_by_name(runtime: OnnxRuntime, tmp_path: Path) -> None:
    output = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)
    data = onnx_model(
        [helper.make_node("SplitToSequence", ["x"], ["parts"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        outputs=[output],
    ).SerializeToString()
    with pytest.raises(ModelRejected, match=r"'parts' is a seq\(tensor\(float\)\)"):
        load(runtime, tmp_path, data)


def test_a_type_without_arrays_is_refused_by_name(runtime: OnnxRuntime, tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"'x' is a tensor\(bfloat16\)"):
        load(runtime, tmp_path, identity(TensorProto.BFLOAT16, [2]))


def test_a_newer_opset_is_named(runtime: OnnxRuntime, tmp_path: Path) -> None:
    model = onnx_model(opsets=(("", 999),)).SerializeToString()
    with pytest.raises(ModelRejected, match="this runtime does not know opset 999") as caught:
        load(runtime, tmp_path, model)
    assert runtime.version in caught.value.hint


def test_a_newer_file_layout_is_named(runtime: OnnxRuntime, tmp_path: Path) -> None:
    model = onnx_model(ir_version=99).SerializeToString()
    with pytest.raises(ModelRejected, match="does not know IR version 99"):
        load(runtime, tmp_path, model)


@pytest.mark.parametrize(("domain", "name"), [("my.domain", "my.domain:Frob"), ("", "Frob with")])
def test_an_unknown_operator_is_named(
    runtime: OnnxRuntime, tmp_path: Path, domain: str, name: str
) -> None:
    row = (TensorProto.FLOAT, ROW)
    opsets = (("", 17), ("my.domain", 1)) if domain else (("", 17),)
    node = helper.make_node("Frob", ["x"], ["y"], domain=domain)
    data = models.onnx_bytes([node], {"x": row}, {"y": row}, opsets=opsets)
    with pytest.raises(ModelRejected, match=f"does not know the operator {name}"):
        load(runtime, tmp_path, data)


def test_a_name_without_end_does_not_keep_the_refusal_busy(
    runtime: OnnxRuntime, tmp_path: Path
) -> None:
    node = helper.make_node("NoSuchOperator" * 10_000, ["x"], ["y"])
    (tmp_path / "model.onnx").write_bytes(onnx_model([node]).SerializeToString())
    started = time.process_time()
    with pytest.raises(ModelRejected):
        runtime.load(tmp_path / "model.onnx", Wanted())
    assert time.process_time() - started < 2


@pytest.mark.parametrize("said", [["n"], None], ids=["free", "unranked"])
def test_a_shape_that_the_graph_cannot_digest_is_the_messages_fault(
    runtime: OnnxRuntime, tmp_path: Path, said: list[str] | None
) -> None:
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2, -1])
    data = models.onnx_bytes(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": (TensorProto.FLOAT, said)},
        {"y": (TensorProto.FLOAT, [2, None])},
        initializers=[shape],
    )
    session = load(runtime, tmp_path, data)
    assert session.run({"x": np.zeros(6, np.float32)})["y"].shape == (2, 3)
    with pytest.raises(BadInput) as caught:
        session.run({"x": np.zeros(5, np.float32)})
    assert "onnxruntime_src" not in caught.value.message
