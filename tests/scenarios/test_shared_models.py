"""Real models, packed unedited and answering as `index.json` says; hostile files, refused.

Only packs, workers and V2 requests are used: what a model's page says of preprocessing is done here
with the samples, as a sensor would.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.author import predict
from agent.author.pack import Packed, pack
from agent.author.spec import Spec, read_spec
from agent.documents.manifest import StatePair, Tensor
from agent.errors import ModelRejected
from agent.links.worker import BlockingWorker
from tests.conftest import SHARED_MODELS

pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")

Array = NDArray[Any]
# Hostile files are given up after so long; a sound one is loaded and run in milliseconds.
DEADLINE_S = 3.0

INDEX: dict[str, Any] = {"models": [], "invalid": []}
if (SHARED_MODELS / "index.json").is_file():
    INDEX = json.loads((SHARED_MODELS / "index.json").read_text())
MODELS = {model["name"]: model for model in INDEX["models"]}
EDGETPU = "mobilenet_v1_025_128_edgetpu"


class Served(NamedTuple):
    """A packed model in a worker."""

    model: dict[str, Any]
    packed: Packed
    worker: BlockingWorker

    def __call__(self, *arrays: Array, topic: str = "sensor") -> dict[str, Array]:
        """Send one request with an array for each input; return the outputs."""
        inputs = [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": array.shape,
                "data": array.ravel().tolist(),
            }
            for tensor, array in zip(self.packed.manifest.inputs, arrays, strict=True)
        ]
        answer = predict.ask(self.worker, json.dumps({"inputs": inputs}).encode(), topic=topic)
        assert answer is not None
        return {
            output["name"]: np.array(output["data"]).reshape(output["shape"])
            for output in json.loads(answer)["outputs"]
        }


Serve = Callable[[str], Served]


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packs")


@pytest.fixture
def serve(shared_models: Path, packs: Path) -> Iterator[Serve]:
    """Packs a model of the index, with nothing but its file, and serves it."""
    workers: list[BlockingWorker] = []

    def start(name: str) -> Served:
        model = MODELS[name]
        packed = pack(shared_models / model["file"], packs / name, force=True)
        workers.append(predict.serve(packed.directory))
        return Served(model, packed, workers[-1])

    yield start
    for worker in workers:
        worker.close()


def only(outputs: dict[str, Array]) -> Array:
    (array,) = outputs.values()
    return array


def assert_within(got: Array, wanted: Any, absolute: float) -> None:
    np.testing.assert_allclose(np.asarray(got, float).ravel(), np.ravel(wanted), 0, absolute)


def test_every_valid_model_of_the_index_has_a_test_here() -> None:
    named = {name for names in TESTED for name in names}
    assert not MODELS or named | {EDGETPU} == set(MODELS)


# Pictures.


def test_mobilenet_answers_within_25_steps(serve: Serve, shared_models: Path) -> None:
    served = serve("mobilenet_v1_025_128")
    assert len(served.packed.manifest.labels) == 1001
    for expected in served.model["expected"]:
        raw = only(served(np.load(shared_models / expected["input_tensor"])))[0]
        assert raw.argmax() == expected["top3"][0]["index"]
        assert served.packed.manifest.labels[raw.argmax()] == expected["top3"][0]["label"]
        assert abs(raw.max() - expected["raw_top1"]) <= 25


def test_the_edgetpu_twin_is_refused_alone_and_taken_beside_its_source(
    shared_models: Path, tmp_path: Path
) -> None:
    twin = shared_models / MODELS[EDGETPU]["file"]
    with pytest.raises(ModelRejected, match="Edge TPU"):
        pack(twin, tmp_path / "alone")
    source = shared_models / MODELS["mobilenet_v1_025_128"]["file"]
    spec_file = tmp_path / "model.toml"
    spec_file.write_text(f'[[variants]]\nfile = "{twin}"\n')
    packed = pack(source, tmp_path / "both", spec=read_spec(spec_file))
    assert [v.needs.edgetpu for v in packed.manifest.variants] == [False, True]
    ran, left = packed.tried
    assert ran.probed is not None
    assert left.probed is None
    assert "Edge TPU" in left.why


@pytest.mark.parametrize("name", ["cifar10_resnet8_fp32", "cifar10_resnet8_int8"])
def test_cifar_names_its_photographs(serve: Serve, shared_models: Path, name: str) -> None:
    served = serve(name)
    is_int8 = name.endswith("int8")
    for expected in served.model["expected"]:
        pixels = np.load(shared_models / expected["pixels"]).reshape(1, 32, 32, 3)
        scores = only(served(pixels.astype(int) - 128 if is_int8 else pixels.astype(float)))[0]
        assert scores.argmax() == expected["top3"][0]["index"]
        if is_int8:
            assert_within(scores, expected["raw_output"], 4)
        else:
            assert_within(scores, expected["output"], 0.001)


@pytest.mark.parametrize("name", ["mnist_lstm_fp32", "mnist_lstm_int8"])
def test_each_digit_is_read_by_an_lstm_that_remembers_nothing_of_the_last(
    serve: Serve, shared_models: Path, name: str
) -> None:
    image = pytest.importorskip("PIL.Image")
    served = serve(name)
    assert served.packed.manifest.variants[0].hidden_state == "reset"
    stored = served.packed.manifest.inputs[0]
    for expected in served.model["expected"]:
        pixels = np.asarray(image.open(shared_models / expected["sample"]).convert("L")) / 255
        given = pixels.astype(np.float32).reshape(1, 28, 28)
        # Twice: the state that the first run leaves must not colour the second.
        for _ in range(2):
            scores = only(served(quantised(given, stored) if stored.scale else given))[0]
            assert scores.argmax() == expected["top1"]["index"]
            wanted, tolerance = expected.get("output"), 0.001
            if wanted is None:
                wanted, tolerance = expected["raw_output"], 6
            assert_within(scores, wanted, tolerance)


def quantised(real: Array, tensor: Tensor) -> Array:
    assert tensor.scale is not None
    stored = np.rint(real / np.float32(tensor.scale)) + (tensor.zero_point or 0)
    clipped: Array = np.clip(stored, -128, 127).astype(int)
    return clipped


# Sound and motion.


def test_keywords_are_spotted_within_4_steps(serve: Serve, shared_models: Path) -> None:
    served = serve("micro_speech_kws")
    for expected in served.model["expected"]:
        raw = only(served(np.load(shared_models / expected["sample"]).reshape(1, 1960)))[0]
        assert raw.argmax() == expected["top1"]["index"]
        assert_within(raw, expected["raw_output"], 4)


def test_gestures_are_named(serve: Serve, shared_models: Path) -> None:
    served = serve("magic_wand_gesture")
    for expected in served.model["expected"]:
        rows = table(shared_models / expected["sample"])
        readings = np.array(
            [[float(row[axis]) for axis in ("x_mg", "y_mg", "z_mg")] for row in rows]
        )
        scores = only(served(readings.reshape(1, 128, 3, 1)))[0]
        assert scores.argmax() == expected["top1"]["index"]
        assert_within(scores, expected["output"], 0.001)


def test_speech_is_found_block_by_block_with_the_state_handed_back(
    serve: Serve, shared_models: Path
) -> None:
    served = serve("silero_vad_16k")
    (expected,) = served.model["expected"]
    state, rate = np.zeros((2, 1, 128)), np.array(16000)
    probabilities = []
    for block in blocks(sound(shared_models / expected["sample"])):
        outputs = served(block, state, rate)
        state = outputs["stateN"]
        probabilities.append(outputs["output"].item())
    check_speech(probabilities, expected)
    assert abs(np.abs(state).mean() - expected["final_state_mean_abs"]) < 0.01


def test_speech_is_found_in_two_streams_whose_state_the_worker_keeps(
    shared_models: Path, tmp_path: Path
) -> None:
    model = MODELS["silero_vad_16k"]
    (expected,) = model["expected"]
    spec = Spec(state=(StatePair("state", "stateN"),))
    packed = pack(shared_models / model["file"], tmp_path / "vad", spec=spec)
    assert [tensor.name for tensor in packed.manifest.inputs] == ["input", "sr"]
    probabilities: dict[str, list[float]] = {"here": [], "there": []}
    with predict.serve(packed.directory) as worker:
        served = Served(model, packed, worker)
        for block in blocks(sound(shared_models / expected["sample"])):
            for source, found in probabilities.items():
                outputs = served(block, np.array(16000), topic=source)
                found.append(outputs["output"].item())
    for found in probabilities.values():
        check_speech(found, expected)


def sound(path: Path) -> Array:
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(np.float32) / 32768


def blocks(samples: Array) -> Iterator[Array]:
    """Blocks of 512 samples, each after the last 64 of the one before."""
    padded = np.concatenate((np.zeros(64, np.float32), samples))
    for start in range(0, len(samples) - 511, 512):
        yield padded[None, start : start + 576]


def check_speech(probabilities: Sequence[float], expected: dict[str, Any]) -> None:
    assert len(probabilities) == expected["blocks"]
    assert_within(np.array(probabilities), expected["probabilities"], 0.01)
    unsure = {i for i, p in enumerate(expected["probabilities"]) if abs(p - 0.5) < 0.05}
    speech = {i for i, p in enumerate(probabilities) if p > 0.5}
    assert speech - unsure == set(expected["speech_blocks"]) - unsure


def test_a_wake_word_is_heard_by_a_worker_that_keeps_sources_apart(
    serve: Serve, shared_models: Path
) -> None:
    served = serve("hey_jarvis_wakeword")
    assert served.packed.manifest.variants[0].hidden_state == "per_source"
    streams = {
        expected["sample"]: np.load(shared_models / expected["input_tensor"])
        for expected in served.model["expected"]
    }
    heard: dict[str, list[int]] = {source: [] for source in streams}
    # Step by step in turn: were the state shared, both answers would change.
    for step in range(66):
        for source, frames in streams.items():
            block = frames[3 * step : 3 * step + 3].reshape(1, 3, 40)
            heard[source].append(int(only(served(block, topic=source)).item()))
    for expected in served.model["expected"]:
        raw = heard[expected["sample"]]
        assert_within(np.array(raw), expected["raw_outputs"], 12)
        means = np.convolve(raw, np.ones(5) / 5, "valid") / 256
        assert (means.max() > 0.85) == expected["wake_word"]


@pytest.mark.parametrize("name", ["basic_pitch_tflite", "basic_pitch_onnx"])
def test_notes_are_the_same_from_both_runtimes(
    serve: Serve, shared_models: Path, name: str
) -> None:
    served = serve(name)
    (expected,) = served.model["expected"]
    outputs = served(sound(shared_models / expected["sample"]).reshape(1, 43844, 1))
    for wanted in expected["outputs"]:
        got = outputs[wanted["output"]]
        assert list(got.shape) == wanted["shape"]
        assert abs(got.mean() - wanted["mean"]) < 0.001
        assert abs(got.max() - wanted["max"]) < 0.001
        for frame, bin_, value in wanted["probes"]:
            assert abs(got[0, frame, bin_] - value) < 0.001


# Tables and streams of numbers.


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("breast_cancer_logreg_zipmap", "logreg"),
        ("breast_cancer_logreg_tensor", "logreg"),
        ("breast_cancer_forest_tensor", "forest"),
    ],
)
def test_a_table_gets_the_answers_of_scikit_learn(
    serve: Serve, shared_models: Path, name: str, column: str
) -> None:
    served = serve(name)
    rows = table(shared_models / served.model["samples"][0]["file"])
    features = np.array([[float(value) for value in list(row.values())[:30]] for row in rows])
    label, probabilities = served(features).values()
    assert label.tolist() == [int(row[f"{column}_label"]) for row in rows]
    malignant = [float(row[f"{column}_p_malignant"]) for row in rows]
    assert_within(probabilities[:, 0], malignant, 1e-4)
    # Row by row too: the batch is the request's choice.
    for row, whole in zip(features, probabilities, strict=True):
        assert_within(list(served(row[None]).values())[1], whole, 1e-6)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("digits_mlp_fp32", 1e-4), ("digits_mlp_int8", 0.06)]
)
def test_digits_are_read_in_batches_of_any_size(
    serve: Serve, shared_models: Path, name: str, tolerance: float
) -> None:
    served = serve(name)
    (expected,) = served.model["expected"]
    digits = np.load(shared_models / expected["sample"])
    scores = only(served(digits))
    assert scores.argmax(axis=1).tolist() == expected["argmax"]
    assert_within(scores.max(axis=1), expected["row_max"], tolerance)
    assert_within(scores[0], expected["first_row"], tolerance)
    assert_within(only(served(digits[:1])), scores[0], 1e-6)
    assert only(served(digits[:0])).shape == (0, 10)


def test_a_machine_that_runs_hot_is_an_anomaly(serve: Serve, shared_models: Path) -> None:
    served = serve("machine_temperature_autoencoder")
    expected = served.model["expected"][0]
    outputs = served(np.load(shared_models / expected["sample"]))
    np.testing.assert_allclose(outputs["score"], expected["score"], 1e-4, 5e-4)
    assert (outputs["score"] > 0.23223).tolist() == expected["alarm"]
    assert_within(outputs["reconstruction"][0, :4], expected["reconstruction_row0_first4"], 1e-3)


def test_a_machine_that_runs_hot_is_an_anomaly_in_the_whole_stream(
    serve: Serve, shared_models: Path
) -> None:
    served = serve("machine_temperature_autoencoder")
    expected = served.model["expected"][1]["whole_stream"]
    rows = table(shared_models / served.model["expected"][1]["sample"])
    values = np.array([float(row["value"]) for row in rows])
    windows = np.lib.stride_tricks.sliding_window_view(values, 24)
    assert len(windows) == expected["windows"]
    parts = np.array_split(windows, 8)
    scores = np.concatenate([served(part)["score"] for part in parts])
    assert abs(int((scores > 0.23223).sum()) - expected["alarms"]) <= 2
    times = {row["timestamp"]: index - 23 for index, row in enumerate(rows)}
    for time, wanted in expected["scores_at_window_end"].items():
        np.testing.assert_allclose(scores[times[time]], wanted, 1e-4, 5e-4)


@pytest.mark.parametrize("name", ["hello_world_sine_fp32", "hello_world_sine_int8"])
def test_a_sine_is_a_sine(serve: Serve, name: str) -> None:
    served = serve(name)
    x = np.array(served.model["samples"][0]["x"], np.float32).reshape(-1, 1)
    (expected,) = served.model["expected"]
    stored = served.packed.manifest.inputs[0]
    y = only(served(quantised(x, stored) if stored.scale else x))
    if stored.scale:
        assert_within(y, expected["raw"], 2)
    else:
        assert_within(y, expected["y"], 0.0005)


TESTED = (
    ("mobilenet_v1_025_128", "cifar10_resnet8_fp32", "cifar10_resnet8_int8"),
    ("mnist_lstm_fp32", "mnist_lstm_int8", "micro_speech_kws", "magic_wand_gesture"),
    ("silero_vad_16k", "hey_jarvis_wakeword", "basic_pitch_tflite", "basic_pitch_onnx"),
    ("breast_cancer_logreg_zipmap", "breast_cancer_logreg_tensor", "breast_cancer_forest_tensor"),
    ("digits_mlp_fp32", "digits_mlp_int8", "machine_temperature_autoencoder"),
    ("hello_world_sine_fp32", "hello_world_sine_int8"),
)


# Hostile files.


REJECTED = ("model_rejected",)
# A file made to kill the runtime does so, or is refused by it, as its memory happens to lie.
CRASHES = ("model_rejected", "worker_exited")
MEMORY = ("memory_limit",)
# What `pack` must say of a file, and `predict` of a pack made of it by force: a code, some words.
REFUSALS: dict[str, tuple[tuple[str, ...], str]] = {
    "zero_length.tflite": (REJECTED, "empty"),
    "truncated.tflite": (REJECTED, ""),
    "wrong_magic.tflite": (REJECTED, ""),
    "root_offset_outside.tflite": (REJECTED, ""),
    "crashes_runtime.tflite": (CRASHES, ""),
    "crashes_when_loaded_from_bytes.tflite": (CRASHES, ""),
    "memory_4gb.tflite": (MEMORY, "more memory than the limit"),
    "external_data_escape.onnx": (REJECTED, "outside its pack"),
    "endless_loop.onnx": (("worker_timed_out",), f"no answer within {DEADLINE_S:g} s"),
    "memory_12gb_at_run.onnx": (MEMORY, "more memory than the limit"),
    "zip_archive.onnx": (REJECTED, "ZIP archive"),
    "nan_output.onnx": (("bad_output",), "NaN"),
    "future_opset.onnx": (REJECTED, "opset 999"),
    "person_detect_refused_by_litert.tflite": (REJECTED, "refuses"),
}


def edgeward(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a person does; it must end well within the time that it promises."""
    return subprocess.run(
        [sys.executable, "-m", "agent", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S + 10,
        check=False,
    )


def check_refused(done: subprocess.CompletedProcess[str], file: str) -> None:
    codes, words = REFUSALS[file]
    assert 0 < done.returncode < 100, done
    error = json.loads(done.stdout)["error"]
    assert error["code"] in codes
    assert words in error["message"]
    # One sentence, and no trace of the program's inside.
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("file", [Path(entry["file"]).name for entry in INDEX["invalid"]])
def test_a_hostile_file_is_refused_with_one_clear_sentence(
    shared_models: Path, tmp_path: Path, file: str
) -> None:
    model, limit = shared_models / "invalid" / file, ("--deadline", str(DEADLINE_S), "--json")
    check_refused(edgeward("pack", model, "--out", tmp_path / "refused", *limit), file)
    assert list(tmp_path.iterdir()) == []

    forced = pack(model, tmp_path / "forced", unchecked=True)
    request = tmp_path / "request.json"
    request.write_text(minus_ones(forced.manifest.inputs))
    check_refused(edgeward("predict", forced.directory, "--input", request, *limit), file)


def minus_ones(inputs: Sequence[Tensor]) -> str:
    described = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": [abs(size) for size in tensor.shape],
            "data": [-1] * int(np.prod([abs(size) for size in tensor.shape])),
        }
        for tensor in inputs
    ]
    return json.dumps({"inputs": described})
