"""Where the operators of a loaded ONNX model are said to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest

from agent.errors import ModelRejected
from agent.runtimes.api import Wanted
from agent.runtimes.onnx import OnnxRuntime
from agent.runtimes.onnx_providers import CPU
from agent.runtimes.onnx_session import placement
from tests.runtimes import models

CUDA = "CUDAExecutionProvider"


class Operator(NamedTuple):
    op_type: str


class Part(NamedTuple):
    ep_name: str
    operators: Sequence[Operator]

    def get_nodes(self) -> Sequence[Operator]:
        return self.operators


class Told:
    """What a session of the library says of itself."""

    def __init__(self, providers: list[str], **operators: list[str]) -> None:
        self._providers = providers
        self._parts = [Part(name, [*map(Operator, ops)]) for name, ops in operators.items()]

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> list[Part]:
        return self._parts


class OlderTold:
    """The same from a version that cannot tell of operators."""

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]


def test_all_operators_on_the_wanted_provider() -> None:
    told = placement(Told([CUDA, CPU], CUDAExecutionProvider=["Conv", "Relu"]), CUDA)
    assert (told.got, told.operators, told.time, told.why) == (CUDA, 1.0, 1.0, "")


def test_a_session_that_has_fallen_back_says_cpu_and_why() -> None:
    told = placement(Told([CPU], CPUExecutionProvider=["Conv"]), CUDA)
    assert (told.wanted, told.got, told.operators) == (CUDA, CPU, 1.0)
    assert told.why.startswith(f"{CUDA} does not work here")


def test_a_provider_that_takes_no_operator_is_not_what_was_got() -> None:
    told = placement(Told([CUDA, CPU], CPUExecutionProvider=["TreeEnsembleClassifier"]), CUDA)
    assert (told.got, told.operators) == (CPU, 1.0)
    assert told.why == f"{CUDA} takes none of the model's 1 operators"


def test_operators_that_run_elsewhere_are_counted_and_named() -> None:
    session = Told(
        [CUDA, CPU],
        CUDAExecutionProvider=["Conv"] * 6,
        CPUExecutionProvider=["NonMaxSuppression", "NonMaxSuppression"],
    )
    told = placement(session, CUDA)
    assert (told.got, told.operators, told.time) == (CUDA, 0.75, None)
    assert told.why == "2 of 8 operators run elsewhere: 2 NonMaxSuppression"


def test_an_older_version_is_not_believed_to_know() -> None:
    told = placement(OlderTold(), CUDA)
    assert (told.got, told.operators) == (CUDA, None)
    assert told.why


@pytest.fixture(scope="module")
def runtime() -> OnnxRuntime:
    return OnnxRuntime()


def test_its_facts_are_the_library_s_own(runtime: OnnxRuntime) -> None:
    facts = runtime.facts()
    assert facts.package == "onnxruntime"
    assert facts.opset
    assert facts.ir_version
    assert set(facts.providers) <= set(onnxruntime.get_available_providers())


def test_the_newest_opset_and_layout_in_the_facts_are_loaded_and_the_next_are_not(
    runtime: OnnxRuntime, tmp_path: Path
) -> None:
    facts = runtime.facts()
    assert facts.opset
    assert facts.ir_version

    def load(opset: int, ir_version: int) -> None:
        data = models.relu_onnx(opsets=(("", opset),), ir_version=ir_version)
        (tmp_path / "m.onnx").write_bytes(data)
        runtime.load(tmp_path / "m.onnx", Wanted())

    load(facts.opset, facts.ir_version)
    with pytest.raises(ModelRejected, match=f"opset {facts.opset + 1}"):
        load(facts.opset + 1, facts.ir_version)
    with pytest.raises(ModelRejected, match=f"IR version {facts.ir_version + 1}"):
        load(facts.opset, facts.ir_version + 1)


@pytest.mark.parametrize("name", ["model.ort", "model"])
def test_a_model_in_ort_format_loads_whatever_it_is_called(
    runtime: OnnxRuntime, tmp_path: Path, name: str
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / name)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(models.relu_onnx(), options, providers=[CPU])
    session = runtime.load(tmp_path / name, Wanted())
    row = np.array([[-1, 2, -3, 4]], np.float32)
    assert session.run({"x": row})["y"].tolist() == [[0, 2, 0, 4]]


def test_a_layout_of_ort_format_that_is_unknown_is_told(
    runtime: OnnxRuntime, tmp_path: Path
) -> None:
    (tmp_path / "m.ort").write_bytes(b"\x14\0\0\0ORTM" + bytes(40))
    with pytest.raises(ModelRejected, match=r"m\.ort"):
        runtime.load(tmp_path / "m.ort", Wanted())
