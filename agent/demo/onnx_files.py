"""The demo's bearing models as ONNX graphs that take acceleration in g and do the rest inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agent.demo import features
from agent.demo.networks import Network
from agent.demo.physics import WINDOW

# Opset 13 and IR 8 load in every ONNX Runtime that a supported board may carry (1.17 on).
OPSET, IR_VERSION = 13, 8


class _Graph:
    """Nodes and constants in the order they were added, each named after its only output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        node = helper.make_node(op, list(inputs), [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def write_overall_level(path: Path, network: Network, labels: Sequence[str]) -> None:
    """The graph of `features.overall_level` and the network."""
    graph = _Graph()
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
    graph = _Graph()
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


def _envelope_spectrum(graph: _Graph, power: str, floor: str, axis: str) -> str:
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


def _classify(graph: _Graph, rows: str, network: Network) -> None:
    last = len(network.layers) - 1
    for number, layer in enumerate(network.layers):
        weights = graph.constant(f"weights_{number}", layer.weights)
        bias = graph.constant(f"bias_{number}", layer.bias)
        rows = graph.add("Gemm", [rows, weights, bias], f"dense_{number}")
        if number < last:
            rows = graph.add("Relu", [rows], f"relu_{number}")
    graph.add("Softmax", [rows], "probabilities", axis=1)


def _save(
    path: Path, graph: _Graph, *, version: int, labels: Sequence[str], description: str
) -> None:
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "bearing",
            [helper.make_tensor_value_info("acceleration", TensorProto.FLOAT, [1, WINDOW])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, len(labels)])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="edgeward demo",
        model_version=version,
        doc_string=description,
    )
    helper.set_model_props(model, {"labels": ",".join(labels), "unit": "g"})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
