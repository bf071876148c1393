"""The demo's models load in their runtimes, agree with NumPy and are as good as they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.demo import physics
from agent.demo.datasets import snapshots, thermal_windows
from agent.demo.models import ANOMALY_THRESHOLD, DemoModel, DemoModels, build_models

Arrays = dict[str, NDArray[np.float32]]
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> DemoModels:
    return build_models(tmp_path_factory.mktemp("models"))


class _Onnx:
    def __init__(self, file: Path) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._names, self._session.run(None, inputs), strict=True))


class _LiteRt:
    def __init__(self, file: Path) -> None:
        interpreter = pytest.importorskip("ai_edge_litert.interpreter")
        self._interpreter = interpreter.Interpreter(model_path=str(file), num_threads=1)
        self._runner = self._interpreter.get_signature_runner()

    def __call__(self, inputs: Arrays) -> Arrays:
        return dict(self._runner(**inputs))


RUNTIMES = {".onnx": _Onnx, ".tflite": _LiteRt}


def _loaded(model: DemoModel) -> Any:
    return RUNTIMES[model.file.suffix](model.file)


def _arrays(tensors: list[dict[str, Any]]) -> Arrays:
    return {
        tensor["name"]: np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        for tensor in tensors
    }


@pytest.mark.parametrize("number", [0, 1, 2], ids=DemoModels._fields)
def test_the_runtime_gives_the_golden_outputs(models: DemoModels, number: int) -> None:
    model = models[number]
    run = _loaded(model)
    golden = json.loads(model.golden.read_text(encoding="utf-8"))
    assert {sample["truth"] for sample in golden["samples"]} == set(model.labels)
    for sample in golden["samples"]:
        inputs, expected = _arrays(sample["inputs"]), _arrays(sample["outputs"])
        assert inputs[model.input_name].shape == model.input_shape
        answered = run(inputs)
        assert set(answered) == set(model.output_names) == set(expected)
        for name, values in expected.items():
            assert np.allclose(answered[name], values, rtol=TOLERANCE, atol=TOLERANCE), name


def test_the_second_bearing_model_is_clearly_better_where_it_runs(models: DemoModels) -> None:
    windows, truth = snapshots(30, 15, np.random.default_rng(99))
    first, second = (
        _share_right(_loaded(model), windows, truth)
        for model in (models.bearing_v1, models.bearing_v2)
    )
    assert second > 0.9
    assert second > first + 0.1


def _share_right(run: Any, windows: NDArray[np.float32], truth: NDArray[np.intp]) -> float:
    answers = [run({"acceleration": window[None]})["probabilities"].argmax() for window in windows]
    return float(np.mean(answers == truth))


def test_the_thermal_model_finds_every_faulty_bearing_and_few_healthy_ones(
    models: DemoModels,
) -> None:
    windows, truth = thermal_windows(6, np.random.default_rng(98))
    run = _loaded(models.thermal)
    scores = np.array([run({"readings": window[None]})["anomaly"][0, 0] for window in windows])
    alarms = scores >= ANOMALY_THRESHOLD
    assert alarms[truth == physics.CONDITIONS.index("faulty")].mean() > 0.99
    assert alarms[truth == physics.CONDITIONS.index("healthy")].mean() < 0.08


def test_accuracy_is_the_diagonal_of_the_confusion(models: DemoModels) -> None:
    for model in models:
        confusion = np.array(model.confusion)
        assert model.accuracy == pytest.approx(np.trace(confusion) / confusion.sum(), abs=1e-4)


def test_the_files_are_small_enough_for_any_broker(models: DemoModels) -> None:
    assert all(model.file.stat().st_size < 100_000 for model in models)


def test_the_same_seed_gives_the_same_bytes(models: DemoModels, tmp_path: Path) -> None:
    again = build_models(tmp_path)
    for first, second in zip(models, again, strict=True):
        assert first.file.read_bytes() == second.file.read_bytes(), first.name
        assert first.golden.read_bytes() == second.golden.read_bytes(), first.name


def test_the_onnx_files_say_what_they_are(models: DemoModels) -> None:
    onnx = pytest.importorskip("onnx")
    for number, model in enumerate((models.bearing_v1, models.bearing_v2), start=1):
        loaded = onnx.load(model.file)
        properties = {entry.key: entry.value for entry in loaded.metadata_props}
        assert properties["labels"].split(",") == list(model.labels)
        assert loaded.model_version == number
