"""The demo's bearing models as ONNX graphs that take acceleration in g and do the rest inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agent.demo import features
from agent.demo.networks import Network
from agent.demo.onnx_graph import OnnxGraph
from agent.demo.physics import WINDOW


def write_overall_level(path: Path, network: Network, labels: Sequence[str]) -> None:
    """The graph of `features.overall_level` and the network."""
    graph = _graph()
    floor = graph.constant("floor", np.array([features.FLOOR], np.float32))
    mean = graph.add("ReduceMean", ["acceleration"], "mean", axes=[1])
    centred = graph.add("Sub", ["acceleration", mean], "centred")
    square = graph.add("Mul", [centred, centred], "square")
    power = graph.add("ReduceMean", [square], "power", axes=[1])
    level = graph.add("Log", [graph.add("Add", [power, floor], "power_floor")], "level")
    _classify(graph, level, network)
    _save(path, graph, version=1, labels=labels, description="Overall vibration level")


def write_envelope_spectrum(path: Path, network: Network, labels: Sequence[str]) -> None:
    """The graph of `features.envelope_spectrum` and the network."""
    graph = _graph()
    floor = graph.constant("floor", np.array([features.FLOOR], np.float32))
    axis = graph.constant("channel_axis", np.array([1], np.int64))
    signal = graph.add("Unsqueeze", ["acceleration", axis], "signal")
    filters = graph.constant("filters", features.band_filters()[:, None, :])
    filtered = graph.add("Conv", [signal, filters], "filtered")
    power = graph.add("Mul", [filtered, filtered], "band_power")
    energy = graph.add("ReduceMean", [power], "energy", axes=[2], keepdims=0)
    bands = graph.add("Log", [graph.add("Add", [energy, floor], "energy_floor")], "bands")
    spectrum = _envelope_spectrum(graph, power, floor, axis)
    features_row = graph.add("Concat", [bands, spectrum], "features", axis=1)
    _classify(graph, features_row, network)
    _save(path, graph, version=2, labels=labels, description="Band energies and envelope spectrum")


def _envelope_spectrum(graph: OnnxGraph, power: str, floor: str, axis: str) -> str:
    """One strided convolution adds up the upper bands and averages them to the envelope's rate."""
    step, bands = features.ENVELOPE_STEP, features.BANDS
    average = np.zeros((1, bands, step), np.float32)
    average[:, bands // 2 :] = 1 / step
    average_name = graph.constant("average", average)
    envelope = graph.add("Conv", [power, average_name], "envelope_1", strides=[step])
    envelope = graph.add("Squeeze", [envelope, axis], "envelope")
    mean = graph.add("ReduceMean", [envelope], "envelope_mean", axes=[1])
    mean = graph.add("Add", [mean, floor], "envelope_floor")
    ratio = graph.add("Div", [envelope, mean], "ratio")
    relative = graph.add("Sub", [ratio, graph.constant("one", np.ones(1, np.float32))], "relative")
    squares = []
    for name, basis in zip(("cosine", "sine"), features.envelope_basis(), strict=True):
        part = graph.add("MatMul", [relative, graph.constant(f"{name}s", basis)], name)
        squares.append(graph.add("Mul", [part, part], f"{name}_square"))
    total = graph.add("Add", squares, "spectrum")
    return graph.add("Log", [graph.add("Add", [total, floor], "spectrum_floor")], "log_spectrum")


def _graph() -> OnnxGraph:
    return OnnxGraph("bearing", "acceleration", np.float32, [1, WINDOW])


def _classify(graph: OnnxGraph, rows: str, network: Network) -> None:
    last = len(network.layers) - 1
    for number, layer in enumerate(network.layers):
        rows = graph.dense(rows, f"dense_{number}", layer.weights, layer.bias)
        if number < last:
            rows = graph.add("Relu", [rows], f"relu_{number}")
    graph.add("Softmax", [rows], "probabilities", axis=1)


def _save(
    path: Path, graph: OnnxGraph, *, version: int, labels: Sequence[str], description: str
) -> None:
    graph.write(
        path,
        "probabilities",
        [1, len(labels)],
        version=version,
        description=description,
        properties={"labels": ",".join(labels), "unit": "g"},
    )
