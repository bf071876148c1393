"""What a model in ORT format says of itself: the same as the ONNX model that it was made from."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from agent.errors import ModelRejected
from agent.formats.description import OnnxNeeds
from agent.formats.registry import describe, recognise
from tests.formats.building import onnx_model

NAMES = (
    "digits_mlp/digits_mlp_dynamic_batch",
    "digits_mlp/digits_mlp_dynamic_batch_int8",
    "breast_cancer_tabular/breast_cancer_logreg_zipmap",
    "silero_vad/silero_vad_16k_op15",
)


def converted(data: bytes, folder: Path) -> bytes:
    """The same model in ORT format, its operators left as they are."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "model.ort")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return (folder / "model.ort").read_bytes()


def test_it_is_recognised(tmp_path: Path) -> None:
    assert recognise(converted(onnx_model().SerializeToString(), tmp_path)[:512]) == "ort"


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_the_onnx_model_says(name: str, shared_models: Path, tmp_path: Path) -> None:
    data = (shared_models / f"{name}.onnx").read_bytes()
    said, original = describe(converted(data, tmp_path)), describe(data)
    assert said.format == "ort"
    assert said.inputs == original.inputs
    assert said.outputs == original.outputs
    assert said.quantised == original.quantised
    # Constants have become weights, and the operators that only served shapes may be gone.
    assert set(said.needs.operators) <= set(original.needs.operators)
    assert isinstance(said.needs, OnnxNeeds)
    assert isinstance(original.needs, OnnxNeeds)
    assert said.needs.opsets.items() <= original.needs.opsets.items()


def test_a_file_that_is_cut_anywhere_is_rejected(tmp_path: Path) -> None:
    data = converted(onnx_model().SerializeToString(), tmp_path)
    described = 0
    for end in range(8, len(data)):
        try:
            describe(data[:end])
            described += 1
        except ModelRejected:
            pass
    # The tail holds what only the runtime reads.
    assert described < len(data) // 2
