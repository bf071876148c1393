"""What is particular to OpenVINO, where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino", reason="openvino is not installed")

from agent.errors import ModelRejected, RuntimeUnavailable
from agent.runtimes.api import Session, Wanted
from agent.runtimes.onnx import OnnxRuntime
from agent.runtimes.openvino import BLOB, OpenvinoRuntime
from agent.runtimes.tflite import TfliteRuntime
from tests.runtimes import models
from tests.scenarios.models import Affine, write_affine

# Model → how far its answers may be from the usual runtime's.
MODELS = {
    "digits_mlp/digits_mlp_dynamic_batch.onnx": 1e-6,
    "machine_temperature/machine_temperature_autoencoder.onnx": 1e-4,
    "basic_pitch/nmp.onnx": 1e-4,
    "cifar10_resnet8/resnet8_fp32.tflite": 1e-5,
    "magic_wand_gesture/magic_wand.tflite": 1e-5,
    "micro_speech_kws/micro_speech_quantized.tflite": 4,
}


def inputs_of(session: Session) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    dtypes = {"FP32": "f4", "INT8": "i1"}
    return {
        tensor.name: (20 * rng.random([1 if s == -1 else s for s in tensor.shape])).astype(
            dtypes[tensor.datatype]
        )
        for tensor in session.inputs
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_real_model_answers_as_with_its_usual_runtime(shared_models: Path, name: str) -> None:
    usual = OnnxRuntime() if name.endswith("onnx") else TfliteRuntime()
    own = OpenvinoRuntime().load(shared_models / name, Wanted())
    other = usual.load(shared_models / name, Wanted())
    assert [tensor.name for tensor in own.inputs] == [tensor.name for tensor in other.inputs]
    inputs = inputs_of(own)
    given = own.run(inputs)
    for key, expected in other.run(inputs).items():
        assert given[key].dtype == expected.dtype
        difference = given[key].astype(np.float64) - expected.astype(np.float64)
        assert np.abs(difference).max() <= MODELS[name]


def test_a_device_that_is_not_there_is_told_and_the_cpu_computes(tmp_path: Path) -> None:
    runtime = OpenvinoRuntime()
    if "NPU" not in runtime.facts().providers:
        pytest.skip("this build has no plugin for a neural unit")
    (tmp_path / "m.onnx").write_bytes(models.relu_onnx())
    placement = runtime.load(tmp_path / "m.onnx", Wanted("NPU")).placement
    assert placement.got == "NPU" or placement.why.startswith("NPU does not work here: ")


@pytest.mark.parametrize(
    "options", [{"CACHE_DIR": "/tmp"}, {"PERFORMANCE_HINT": "QUICK"}, {"performance_hint": "x"}]
)
def test_an_option_that_names_a_file_or_is_misspelt_is_refused(
    tmp_path: Path, options: dict[str, str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(models.relu_onnx())
    with pytest.raises(RuntimeUnavailable, match=next(iter(options))):
        OpenvinoRuntime().load(tmp_path / "m.onnx", Wanted(options=options))


def test_a_tflite_model_of_another_name_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(models.relu_tflite())
    with pytest.raises(ModelRejected, match=r"called \*\.tflite"):
        OpenvinoRuntime().load(tmp_path / "model", Wanted())


@pytest.mark.parametrize("name", MODELS)
def test_what_it_compiled_answers_the_same_and_takes_the_weights_along(
    shared_models: Path, tmp_path: Path, name: str
) -> None:
    model = shared_models / name
    runtime = OpenvinoRuntime()
    first = runtime.load(model, Wanted(cache=tmp_path, fill=True))
    assert [path.name for path in tmp_path.iterdir()] == [BLOB]
    again = runtime.load(model, Wanted(cache=tmp_path))
    assert (first.compiled, again.compiled) == ("", "used")
    assert (again.inputs, again.outputs) == (first.inputs, first.outputs)
    assert again.placement == first.placement
    inputs = inputs_of(first)
    expected, given = first.run(inputs), again.run(inputs)
    for key in expected:
        np.testing.assert_array_equal(given[key], expected[key])


@pytest.mark.parametrize("blob", [b"", b"junk" * 1000, None])
def test_what_is_no_blob_of_its_own_is_refused_and_the_model_compiled_anew(
    tmp_path: Path, blob: bytes | None
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "m.onnx").write_bytes(models.relu_onnx())
    runtime = OpenvinoRuntime()
    if blob is None:
        runtime.load(tmp_path / "m.onnx", Wanted(cache=cache, fill=True))
        blob = (cache / BLOB).read_bytes()[:-40]
    (cache / BLOB).write_bytes(blob)
    session = runtime.load(tmp_path / "m.onnx", Wanted(cache=cache))
    assert session.compiled == "refused"
    row = np.array([[-1, 2, -3, 4]], np.float32)
    np.testing.assert_array_equal(session.run({"x": row})["y"], [[0, 2, 0, 4]])


@pytest.mark.parametrize("outputs", [(), ("y",)])
def test_an_output_keeps_its_name_where_its_operator_does_nothing(
    tmp_path: Path, outputs: tuple[str, ...]
) -> None:
    write_affine(tmp_path / "m.onnx", Affine(2.0, 0.0))
    runtime, row = OpenvinoRuntime(), np.array([[1, 2, 3, 4]], np.float32)
    for wanted in (Wanted(), Wanted(cache=tmp_path, fill=True), Wanted(cache=tmp_path)):
        session = runtime.load(tmp_path / "m.onnx", wanted, outputs=outputs)
        assert [tensor.name for tensor in session.outputs] == ["y"]
        np.testing.assert_array_equal(session.run({"x": row})["y"], 2 * row)
