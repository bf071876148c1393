"""Makes the demo's models from the demo's physics: training, files, golden samples.

`bearing` names the condition of a bearing from one vibration snapshot. Its first version knows
only the overall level and was trained on two machines; its second looks at the envelope spectrum
and has seen hundreds. `thermal` says how far a bearing is hotter than load and surroundings
explain. No machine that a model was trained on is among those it is judged by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from agent.demo import features, physics
from agent.demo.datasets import Classes, Floats, Labelled, snapshots, thermal_windows
from agent.demo.networks import Layer, Network, softmax, train_classifier, train_regressor
from agent.demo.onnx_files import write_envelope_spectrum, write_overall_level
from agent.demo.tflite_files import write_excess_heat

Confusion: TypeAlias = tuple[tuple[int, ...], ...]

THERMAL_UNITS = ("°C", "°C", "A")
THERMAL_LABELS = ("normal", "anomalous")
ANOMALY_THRESHOLD = 0.5
_QUIET_SHARE = 0.99  # one healthy window in a hundred may raise an alarm
_GOLDEN_PER_CLASS = 2


@dataclass(frozen=True)
class DemoModel:
    """One model file and what was measured of it.

    Args:
        name: `bearing` or `thermal`.
        version: As a pack would carry it.
        file: The `.onnx` or `.tflite` file.
        golden: JSON: samples with V2 `inputs`, the `outputs` they must give, and the truth.
        input_name: The only input; float32.
        input_shape: With the batch of 1.
        input_unit: One for all values, or one for each channel.
        output_names: In the file's order; each float32.
        labels: Of the class probabilities; for `thermal`, of below and above the threshold.
        accuracy: Share of right answers on machines that training never saw.
        confusion: Held-out counts: one row per true label, one column per answer.
    """

    name: str
    version: str
    file: Path
    golden: Path
    input_name: str
    input_shape: tuple[int, ...]
    input_unit: str
    output_names: tuple[str, ...]
    labels: tuple[str, ...]
    accuracy: float
    confusion: Confusion


class DemoModels(NamedTuple):
    """Everything `build_models` wrote."""

    bearing_v1: DemoModel
    bearing_v2: DemoModel
    thermal: DemoModel


def build_models(folder: Path, seed: int = 7) -> DemoModels:
    """Train the three models and write them with their golden samples, in a few seconds.

    Args:
        folder: Must exist.
        seed: Same seed, same files on the same machine.
    """
    few, many, judged, hot, hot_judged = (
        np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(5)
    )
    held_out = snapshots(40, 30, judged)
    return DemoModels(
        _bearing_v1(folder, snapshots(2, 60, few), held_out, seed),
        _bearing_v2(folder, snapshots(300, 30, many), held_out, seed),
        _thermal(folder, thermal_windows(40, hot), thermal_windows(20, hot_judged), seed),
    )


@dataclass(frozen=True)
class _HeldOut:
    """What a model said of data it was not trained on; rows belong together."""

    windows: Floats
    truth: Classes
    answers: Classes
    outputs: Mapping[str, Floats]


def _bearing_v1(folder: Path, known: Labelled, held_out: Labelled, seed: int) -> DemoModel:
    rows = features.overall_level(known[0])
    network = train_classifier(rows, known[1], hidden=(), epochs=400, seed=seed)
    file = folder / "bearing-1.0.0.onnx"
    write_overall_level(file, network, physics.CONDITIONS)
    return _bearing(file, network(features.overall_level(held_out[0])), held_out)


def _bearing_v2(folder: Path, known: Labelled, held_out: Labelled, seed: int) -> DemoModel:
    rows = features.envelope_spectrum(known[0])
    network = train_classifier(rows, known[1], hidden=(32,), epochs=20, seed=seed)
    file = folder / "bearing-2.0.0.onnx"
    write_envelope_spectrum(file, network, physics.CONDITIONS)
    return _bearing(file, network(features.envelope_spectrum(held_out[0])), held_out)


def _bearing(file: Path, logits: Floats, held_out: Labelled) -> DemoModel:
    windows, truth = held_out
    outputs = {"probabilities": softmax(logits)}
    judged = _HeldOut(windows, truth, logits.argmax(axis=1), outputs)
    return _described(file, judged, "acceleration", "g", physics.CONDITIONS)


def _thermal(folder: Path, known: Labelled, held_out: Labelled, seed: int) -> DemoModel:
    """Learn what a healthy bearing's temperature would be; score the excess over it.

    Training is on healthy machines alone: the score needs no example of a failure.
    """
    rows = _flat(known[0][known[1] == 0])
    network, measured = _expected(rows, seed), _last_temperature(rows.shape[1])
    excess_k = rows @ measured.weights - network(rows)
    scale = _logit_scale(float(np.quantile(excess_k, _QUIET_SHARE)))
    windows, truth = held_out
    file = folder / "thermal-1.0.0.tflite"
    write_excess_heat(file, network, measured, scale, windows.shape[1:])
    expected_c = network(_flat(windows))
    logits = (_flat(windows) @ measured.weights - expected_c) @ scale.weights + scale.bias
    anomaly = (1 / (1 + np.exp(-logits))).astype(np.float32)
    outputs = {"anomaly": anomaly, "expected_c": expected_c}
    answers = (anomaly[:, 0] >= ANOMALY_THRESHOLD).astype(np.intp)
    judged = _HeldOut(windows, (truth > 0).astype(np.intp), answers, outputs)
    return _described(file, judged, "readings", ", ".join(THERMAL_UNITS), THERMAL_LABELS)


def _flat(windows: Floats) -> Floats:
    return windows.reshape(len(windows), -1)


def _expected(rows: Floats, seed: int) -> Network:
    """From a flat window to the temperature a healthy bearing ends it with.

    It may see the first temperature, not the later ones: those already carry the excess heat.
    """
    channels = len(physics.THERMAL_CHANNELS)
    seen = np.array([i for i in range(rows.shape[1]) if i % channels != 0])
    small = train_regressor(rows[:, seen], rows[:, -channels], hidden=(16,), epochs=20, seed=seed)
    weights = np.zeros((rows.shape[1], 16), np.float32)
    weights[seen] = small.layers[0].weights
    return Network((Layer(weights, small.layers[0].bias), *small.layers[1:]))


def _last_temperature(size: int) -> Layer:
    """Picks the last reading's bearing temperature out of a flat window."""
    weights = np.zeros((size, 1), np.float32)
    weights[-len(physics.THERMAL_CHANNELS)] = 1
    return Layer(weights, np.zeros(1, np.float32))


def _logit_scale(quiet_k: float) -> Layer:
    """Excess kelvins to logits: 0 (a score of one half) at `quiet_k`, -4 where nothing is amiss."""
    steepness = 4.0
    return Layer(np.array([[steepness / quiet_k]], np.float32), np.array([-steepness], np.float32))


def _described(
    file: Path, judged: _HeldOut, input_name: str, input_unit: str, labels: tuple[str, ...]
) -> DemoModel:
    """Measure, write the golden samples beside the file, and put it all in one value."""
    name, version = file.stem.split("-")
    confusion = np.zeros((len(labels), len(labels)), int)
    np.add.at(confusion, (judged.truth, judged.answers), 1)
    model = DemoModel(
        name=name,
        version=version,
        file=file,
        golden=file.with_suffix(".golden.json"),
        input_name=input_name,
        input_shape=(1, *judged.windows.shape[1:]),
        input_unit=input_unit,
        output_names=tuple(judged.outputs),
        labels=labels,
        accuracy=round(float(np.mean(judged.truth == judged.answers)), 4),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )
    model.golden.write_text(json.dumps(_golden(model, judged)), encoding="utf-8")
    return model


def _golden(model: DemoModel, judged: _HeldOut) -> dict[str, Any]:
    """The first held-out windows of each label, as Open Inference Protocol V2 tensors."""
    rows = [
        int(row)
        for label in range(len(model.labels))
        for row in np.flatnonzero(judged.truth == label)[:_GOLDEN_PER_CLASS]
    ]
    samples = [
        {
            "truth": model.labels[judged.truth[row]],
            "inputs": [_tensor(model.input_name, judged.windows[row])],
            "outputs": [_tensor(name, values[row]) for name, values in judged.outputs.items()],
        }
        for row in rows
    ]
    return {
        "name": model.name,
        "version": model.version,
        "labels": model.labels,
        "accuracy": model.accuracy,
        "samples": samples,
    }


def _tensor(name: str, values: Floats) -> dict[str, Any]:
    # The shortest text that reads back as the same float32: 0.004, not 0.00400000018998980.
    data = [float(str(value)) for value in values.astype(np.float32).ravel()]
    return {"name": name, "datatype": "FP32", "shape": [1, *values.shape], "data": data}
