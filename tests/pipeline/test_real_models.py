"""The pipelines that real models ask for, from the bytes of a sample to the expected prediction."""

from __future__ import annotations

import csv
import io
import json
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.documents.manifest import Manifest, StatePair, Tensor, Window
from agent.pipeline.assembly import real
from agent.pipeline.chain import Chain, Incoming, Prediction
from agent.pipeline.tensors import Arrays
from agent.runtimes import registry
from agent.runtimes.api import Session, Wanted
from tests.pipeline.support import make_chain, make_manifest, v2_request

Array = NDArray[Any]


class Loaded:
    """One model file in a session of its own."""

    def __init__(self, path: Path) -> None:
        pytest.importorskip("onnxruntime" if path.suffix == ".onnx" else "ai_edge_litert")
        self.path = path
        self.runtime = registry.find("onnx" if path.suffix == ".onnx" else "tflite")
        self.session: Session = self.runtime.load(path, Wanted())

    def chain(self, inputs: Sequence[Tensor], **pipeline: Any) -> Chain:
        """Compile a pipeline around it; its outputs are public in real numbers."""
        fed = {pair.output for pair in pipeline.get("state", ())}
        outputs = [real(tensor) for tensor in self.session.outputs if tensor.name not in fed]
        manifest: Manifest = make_manifest(
            inputs,
            outputs,
            file_inputs=self.session.inputs,
            file_outputs=self.session.outputs,
            **pipeline,
        )
        return make_chain(manifest)

    def predict(self, chain: Chain, payload: bytes, topic: str = "a") -> Prediction | None:
        step = chain.accept(Incoming(1, topic, payload))
        if step.inputs is None:
            return None
        prediction = chain.predict(step, self.session.run(step.inputs))
        assert chain.encode(step, prediction, 1)
        return prediction


def labels_of(folder: Path) -> tuple[str, ...]:
    return tuple((folder / "labels.txt").read_text().splitlines())


def as_png(path: Path) -> bytes:
    image = pytest.importorskip("PIL.Image")
    target = io.BytesIO()
    image.open(path).save(target, "png")
    return bytes(target.getvalue())


def samples_of(path: Path) -> bytes:
    with wave.open(str(path)) as file:
        return bytes(file.readframes(file.getnframes()))


@pytest.mark.parametrize(
    ("picture", "index", "score"), [("parrot.jpg", 89, 0.7617), ("sunflower.bmp", 986, 0.6992)]
)
def test_mobilenet_names_what_a_photograph_shows(
    shared_models: Path, picture: str, index: int, score: float
) -> None:
    folder = shared_models / "mobilenet_v1_025_128"
    model = Loaded(folder / "mobilenet_v1_0.25_128_quant.tflite")
    chain = model.chain(
        [Tensor("image", "UINT8", (-1, -1, 3))],
        decode={"codec": "image", "formats": ["jpeg", "png", "bmp"]},
        pre=[{"step": "resize", "width": 128, "height": 128}],
        post=[{"step": "top_k", "k": 3}],
        labels=labels_of(folder),
    )
    prediction = model.predict(chain, (folder / picture).read_bytes())
    assert prediction is not None
    assert prediction.class_index == index
    assert chain.class_labels[index] == prediction.tensors["labels"][0, 0]
    assert abs(float(prediction.tensors["scores"][0, 0]) - score) <= 0.12


@pytest.mark.parametrize("number", ["fp32", "int8"])
@pytest.mark.parametrize(("picture", "index"), [("cat_720p.jpg", 3), ("bird.bmp", 2)])
def test_both_variants_of_the_cifar_network_agree_on_a_cropped_picture(
    shared_models: Path, number: str, picture: str, index: int
) -> None:
    folder = shared_models / "cifar10_resnet8"
    model = Loaded(folder / f"resnet8_{number}.tflite")
    chain = model.chain(
        [Tensor("image", "UINT8", (-1, -1, 3))],
        decode={"codec": "image", "formats": ["jpeg", "bmp"]},
        pre=[{"step": "resize", "width": 32, "height": 32, "crop": "center"}],
        post=[{"step": "argmax"}],
        labels=labels_of(folder),
    )
    step = chain.accept(Incoming(1, "a", (folder / picture).read_bytes()))
    assert step.inputs is not None
    pixels = np.load(folder / f"{Path(picture).stem}_pixels_uint8.npy")
    given = next(iter(step.inputs.values()))
    difference = given.astype(int) + (128 if number == "int8" else 0) - pixels.reshape(given.shape)
    assert abs(difference).max() <= 2
    prediction = chain.predict(step, model.session.run(step.inputs))
    assert prediction.class_index == index
    assert prediction.tensors["score"][0] > 0.97


@pytest.mark.parametrize(
    ("gesture", "expected"),
    [("ring", [0.0393, 0.8009, 0.0307, 0.1291]), ("slope", [0.0004, 0.0, 0.9538, 0.0457])],
)
def test_a_window_of_csv_readings_names_a_gesture(
    shared_models: Path, gesture: str, expected: list[float]
) -> None:
    folder = shared_models / "magic_wand_gesture"
    model = Loaded(folder / "magic_wand.tflite")
    chain = model.chain(
        [Tensor("mg", "FP32", (3,))],
        decode={
            "codec": "csv",
            "columns": ["t_s", "x_mg", "y_mg", "z_mg"],
            "fields": ["x_mg", "y_mg", "z_mg"],
        },
        window=Window("sliding", size=128),
        pre=[{"step": "reorder", "shape": [1, 128, 3, 1]}],
        labels=labels_of(folder),
    )
    lines = (folder / f"{gesture}.csv").read_bytes().splitlines()[1:]
    predictions = [model.predict(chain, line) for line in lines]
    assert predictions[:-1] == [None] * 127
    assert predictions[-1] is not None
    (scores,) = predictions[-1].tensors.values()
    np.testing.assert_allclose(scores[0], expected, atol=1e-3)


@pytest.mark.parametrize("number", ["fp32", "int8"])
def test_the_lstm_reads_digits_from_png(shared_models: Path, number: str) -> None:
    folder = shared_models / "mnist_lstm"
    model = Loaded(folder / f"mnist_lstm_{number}.tflite")
    chain = model.chain(
        [Tensor("image", "UINT8", (28, 28))],
        decode={"codec": "image", "mode": "L"},
        pre=[{"step": "normalize", "std": 255}],
        labels=labels_of(folder),
    )
    for digit in range(10):
        model.session.reset()
        prediction = model.predict(chain, as_png(folder / f"digit{digit}.png"))
        assert prediction is not None
        assert prediction.class_index == digit


def silero(model: Loaded) -> Chain:
    return model.chain(
        [Tensor("samples", "FP32", (512,))],
        decode={"codec": "pcm", "sample_rate_hz": 16000},
        pre=[
            {"step": "overlap", "size": 64, "input": "samples"},
            {"step": "constant", "name": "sr", "value": 16000, "datatype": "INT64"},
            {"step": "select", "names": ["samples", "sr"], "rename": {"samples": "input"}},
        ],
        state=[StatePair("state", "stateN")],
        post=[{"step": "threshold", "threshold": 0.5, "output": "speech"}],
    )


def test_voice_activity_follows_two_streams_at_once(shared_models: Path) -> None:
    folder = shared_models / "silero_vad"
    index = json.loads((shared_models / "index.json").read_text())["models"]
    (expected,) = next(m for m in index if m["name"] == "silero_vad_16k")["expected"]
    model = Loaded(folder / "silero_vad_16k_op15.onnx")
    chain = silero(model)
    data = samples_of(folder / "silence_yes_noise_no_4s.wav")
    found, speech = [], []
    for block in range(125):
        payload = data[1024 * block : 1024 * (block + 1)]
        prediction = model.predict(chain, payload)
        assert prediction is not None
        found.append(float(prediction.tensors["output"][0, 0]))
        speech.append(bool(prediction.tensors["speech"][0, 0]))
        # A second source, of noise: were anything shared, the first one would hear it.
        noise = np.random.default_rng(block).integers(-20000, 20000, 512, np.int16)
        assert model.predict(chain, noise.tobytes(), topic="b") is not None
    np.testing.assert_allclose(found, expected["probabilities"], atol=0.01)
    assert [i for i, is_speech in enumerate(speech) if is_speech] == expected["speech_blocks"]


def test_the_real_temperature_stream_raises_its_alarms(shared_models: Path) -> None:
    folder = shared_models / "machine_temperature"
    model = Loaded(folder / "machine_temperature_autoencoder.onnx")
    chain = model.chain(
        [Tensor("value", "FP32", ())],
        decode={"codec": "csv", "columns": ["timestamp", "value"], "fields": ["value"]},
        window=Window("sliding", size=24),
        post=[{"step": "threshold", "input": "score", "threshold": 0.23223, "output": "alarm"}],
    )
    lines = (folder / "machine_temperature_system_failure.csv").read_bytes().splitlines()[1:4200]
    scores = {}
    for line in lines:
        prediction = model.predict(chain, line)
        if prediction is not None:
            time = line.split(b",")[0].decode()
            scores[time] = float(prediction.tensors["score"][0])
            assert prediction.class_index == (scores[time] > 0.23223)
    assert len(scores) == len(lines) - 23
    assert scores["2013-12-02 23:10:00"] == pytest.approx(0.0167, abs=5e-4)
    assert scores["2013-12-13 09:10:00"] == pytest.approx(0.0079, abs=5e-4)
    assert scores["2013-12-16 18:55:00"] == pytest.approx(13.1453, rel=1e-4)


@pytest.mark.parametrize(("recording", "wakes"), [("hey_jarvis", True), ("not_hey_jarvis", False)])
def test_the_wake_word_is_heard_in_stored_frames(
    shared_models: Path, recording: str, wakes: bool
) -> None:
    folder = shared_models / "hey_jarvis_wakeword"
    model = Loaded(folder / "hey_jarvis.tflite")
    (file,) = model.session.inputs
    chain = model.chain(
        [Tensor("frame", "INT8", (40,), scale=file.scale, zero_point=file.zero_point)],
        decode={"codec": "raw"},
        window=Window("tumbling", size=3),
        post=[
            {"step": "smooth", "size": 5},
            {"step": "threshold", "threshold": 0.85, "output": "awake"},
        ],
    )
    frames = np.load(folder / f"{recording}_frames_int8.npy").reshape(-1, 40)
    predictions = [model.predict(chain, frame.tobytes()) for frame in frames]
    made = [prediction for prediction in predictions if prediction is not None]
    assert len(made) == len(frames) // 3
    assert any(prediction.tensors["awake"].any() for prediction in made) is wakes


@pytest.mark.parametrize("name", ["logreg_tensor", "forest_tensor", "logreg_zipmap"])
def test_a_table_row_as_json_or_csv_is_classified(shared_models: Path, name: str) -> None:
    folder = shared_models / "breast_cancer_tabular"
    model = Loaded(folder / f"breast_cancer_{name}.onnx")
    with (folder / "golden.csv").open() as file:
        rows = list(csv.DictReader(file))
    features = list(rows[0])[:30]
    inputs = [Tensor("features", "FP32", (-1, 30))]
    as_json = model.chain(
        inputs, decode={"codec": "features", "fields": features}, labels=labels_of(folder)
    )
    as_csv = model.chain(inputs, decode={"codec": "csv"}, labels=labels_of(folder))
    for row in rows:
        numbers = {name: float(row[name]) for name in features}
        payloads: list[tuple[Chain, bytes]] = [
            (as_json, json.dumps({**numbers, "time": "now"}).encode()),
            (as_csv, ",".join(row[name] for name in features).encode()),
        ]
        for chain, payload in payloads:
            prediction = model.predict(chain, payload)
            assert prediction is not None
            wanted = float(row[f"{name.split('_')[0]}_p_malignant"])
            scores = next(t for t in prediction.tensors.values() if t.dtype == np.float32)
            assert scores[0, 0] == pytest.approx(wanted, abs=1e-4)
            assert prediction.class_index == (0 if wanted > 0.5 else 1)


@pytest.mark.parametrize("batch", [0, 1, 32])
@pytest.mark.parametrize("number", ["", "_int8"])
def test_digits_come_in_batches(shared_models: Path, batch: int, number: str) -> None:
    folder = shared_models / "digits_mlp"
    model = Loaded(folder / f"digits_mlp_dynamic_batch{number}.onnx")
    chain = model.chain(list(model.session.inputs), labels=labels_of(folder))
    rows = np.load(folder / "digits_batch32.npy")[:batch]
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [batch, 64], "data": rows.tolist()}
    prediction = model.predict(chain, v2_request(tensor))
    assert prediction is not None
    (probabilities,) = prediction.tensors.values()
    assert probabilities.shape == (batch, 10)
    digits = [1, 7, 6, 7, 3, 3, 8, 5, 1, 2, 5, 8, 5, 7, 3, 8, 6, 2, 8, 7, 3, 8, 0, 1, 3, 1, 0]
    assert probabilities.argmax(axis=1).tolist()[:27] == digits[:batch]
    assert prediction.class_index == (1 if batch == 1 else -1)


@pytest.mark.parametrize("file", ["nmp.tflite", "nmp.onnx"])
def test_a_wav_file_becomes_notes_on_both_runtimes(shared_models: Path, file: str) -> None:
    folder = shared_models / "basic_pitch"
    model = Loaded(folder / file)
    chain = model.chain(
        [Tensor("sound", "FP32", (1, 43844, 1))],
        decode={"codec": "pcm", "sample_rate_hz": 22050},
    )
    prediction = model.predict(chain, (folder / "vocadito_10_part_22050.wav").read_bytes())
    assert prediction is not None
    note = prediction.tensors["StatefulPartitionedCall:1"]
    assert note.shape == (1, 172, 88)
    assert note[0, 20, 33] == pytest.approx(0.8777, abs=1e-3)
    assert note.mean() == pytest.approx(0.111042, abs=1e-3)


@pytest.mark.parametrize(("number", "tolerance"), [("float", 5e-4), ("int8", 0.02)])
def test_real_numbers_go_into_the_sine_and_come_out(
    shared_models: Path, number: str, tolerance: float
) -> None:
    model = Loaded(shared_models / "hello_world_sine" / f"hello_world_{number}.tflite")
    (file,) = model.session.inputs
    chain = model.chain([real(file)], decode={"codec": "features"})
    expected = {
        "int8": [-0.0083, 0.6964, 1.0032, 0.7047, -0.0083, -0.655, -1.0861, -0.7711, -0.1161],
        "float": [np.sin(0.785 * i) for i in range(9)],
    }[number]
    for i, y in enumerate(expected):
        prediction = model.predict(chain, json.dumps([0.785 * i]).encode())
        assert prediction is not None
        (got,) = prediction.tensors.values()
        assert got.shape == (1, 1)
        assert abs(float(got[0, 0]) - y) <= max(tolerance, 0.05 if number == "float" else 0)


@pytest.mark.parametrize("word", ["yes", "no"])
def test_a_request_may_hold_the_integers_of_the_file(shared_models: Path, word: str) -> None:
    folder = shared_models / "micro_speech_kws"
    model = Loaded(folder / "micro_speech_quantized.tflite")
    (file,) = model.session.inputs
    stored = np.load(folder / f"{word}_features_int8.npy").ravel()
    chain = model.chain([real(file)], labels=labels_of(folder))
    base = {"name": file.name, "shape": [1, 1960]}
    as_integers = {**base, "datatype": "INT8", "data": stored.tolist()}
    numbers = (stored.astype(np.float64) - (file.zero_point or 0)) * (file.scale or 1)
    as_numbers = {**base, "datatype": "FP32", "data": numbers.tolist()}
    accepted = [chain.accept(Incoming(1, "a", v2_request(t))) for t in (as_integers, as_numbers)]
    for step in accepted:
        inputs: Arrays | None = step.inputs
        assert inputs is not None
        np.testing.assert_array_equal(inputs[file.name].ravel(), stored)
        prediction = chain.predict(step, model.session.run(inputs))
        assert chain.class_labels[prediction.class_index] == word
