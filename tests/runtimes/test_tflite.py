"""What is particular to LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.errors import ModelError, ModelRejected
from agent.runtimes.api import Wanted
from agent.runtimes.tflite import TfliteRuntime, TfliteSession
from agent.runtimes.tflite_placement import left_out, placement
from tests.formats import building
from tests.runtimes import models


@pytest.fixture(scope="module")
def runtime() -> TfliteRuntime:
    return TfliteRuntime()


def load(runtime: TfliteRuntime, folder: Path, data: bytes) -> TfliteSession:
    path = folder / "model.tflite"
    path.write_bytes(data)
    return runtime.load(path, Wanted())


def test_quantisation_is_told_and_values_pass_as_stored(
    runtime: TfliteRuntime, tmp_path: Path
) -> None:
    session = load(runtime, tmp_path, models.quantised_tflite())
    (x,), (y,) = session.inputs, session.outputs
    assert (x.datatype, x.scale, x.zero_point) == ("INT8", 0.5, 3)
    assert (y.datatype, y.scale, y.zero_point) == ("INT8", 0.5, 3)
    result = session.run({"x": np.array([[3, 5, 1, -128]], np.int8)})["y"]
    assert result.tolist() == [[3, 5, 3, 3]]


def test_a_model_compiled_for_the_edge_tpu_says_so(runtime: TfliteRuntime, tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="the variant needs an Edge TPU"):
        load(runtime, tmp_path, models.custom_operator_tflite("edgetpu-custom-op"))


def test_an_unknown_custom_operator_is_named(runtime: TfliteRuntime, tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"the custom operator Frobnicate$"):
        load(runtime, tmp_path, models.custom_operator_tflite("Frobnicate"))


def test_operators_of_tensorflow_itself_are_named(runtime: TfliteRuntime, tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="TensorFlow's own"):
        load(runtime, tmp_path, models.custom_operator_tflite("FlexErf"))


def test_a_reset_clears_recurrent_state(runtime: TfliteRuntime, shared_models: Path) -> None:
    session = runtime.load(shared_models / "mnist_lstm" / "mnist_lstm_fp32.tflite", Wanted())
    digit = np.random.default_rng(7).random((1, 28, 28), np.float32)
    (name,), (output,) = session.inputs, session.outputs
    first = session.run({name.name: digit})[output.name]
    carried = session.run({name.name: digit})[output.name]
    session.reset()
    again = session.run({name.name: digit})[output.name]
    assert not np.array_equal(first, carried)
    np.testing.assert_array_equal(first, again)


def test_a_state_that_no_graph_allocates_cannot_be_reset(
    runtime: TfliteRuntime, tmp_path: Path
) -> None:
    model = building.tflite_model()
    other = building.tflite_model([building.tflite_tensor("state", isVariable=True)] * 2)
    model.subgraphs.append(other.subgraphs[0])
    session = load(runtime, tmp_path, building.tflite_bytes(model))
    with pytest.raises(ModelError, match="state cannot be reset"):
        session.reset()


def test_a_reset_clears_resource_variables(runtime: TfliteRuntime, shared_models: Path) -> None:
    folder = shared_models / "hey_jarvis_wakeword"
    session = runtime.load(folder / "hey_jarvis.tflite", Wanted())
    frames = np.load(folder / "hey_jarvis_frames_int8.npy").reshape(-1, 40)
    # Until the wake word has been heard; the model then holds it in its state.
    heard = frames[:150].reshape(-1, 1, 3, 40)
    (name,), (output,) = session.inputs, session.outputs

    def stream(count: int) -> list[int]:
        return [int(session.run({name.name: x})[output.name][0, 0]) for x in heard[:count]]

    first = stream(50)
    assert first[-1] > 200
    assert stream(3) != first[:3]
    session.reset()
    assert stream(50) == first


def test_the_delegate_that_computes_is_named(runtime: TfliteRuntime, tmp_path: Path) -> None:
    assert load(runtime, tmp_path, models.relu_tflite()).placement.got in ("XNNPACK", "CPU")


def operator(name: str, inputs: list[int], outputs: list[int]) -> dict[str, Any]:
    return {"op_name": name, "inputs": inputs, "outputs": outputs}


def test_the_operators_of_a_partition_are_those_between_its_inputs_and_its_outputs() -> None:
    own = [
        operator("QUANTIZE", [0], [1]),
        operator("CONV_2D", [1, 7], [2]),
        operator("RELU", [2], [3]),
        operator("SOFTMAX", [3], [4]),
    ]
    assert left_out(own) is None
    partition = operator("DELEGATE", [1, 7], [3])
    assert left_out([*own, partition]) == ["QUANTIZE", "SOFTMAX"]
    placed = placement("", "XNNPACK", [*own, partition])
    assert (placed.wanted, placed.got, placed.operators) == ("XNNPACK", "XNNPACK", 0.5)
    assert placed.why == "2 of 4 operators run elsewhere: 1 QUANTIZE, 1 SOFTMAX"


def test_a_delegate_that_takes_nothing_is_not_what_was_got() -> None:
    placed = placement("XNNPACK", "XNNPACK", [operator("CUSTOM", [0], [1])])
    assert (placed.wanted, placed.got) == ("XNNPACK", "CPU")
    assert placed.why == "XNNPACK takes none of the model's operators"


def test_the_cpu_alone_is_without_xnnpack(runtime: TfliteRuntime, shared_models: Path) -> None:
    path = shared_models / "micro_speech_kws" / "micro_speech_quantized.tflite"
    alone = runtime.load(path, Wanted("CPU")).placement
    assert (alone.wanted, alone.got, alone.operators) == ("CPU", "CPU", 1.0)
    usual = runtime.load(path, Wanted()).placement
    assert (usual.got, usual.operators) == ("XNNPACK", 0.75)
    assert "1 SOFTMAX" in usual.why
