"""Codecs and steps of somebody else's package join by an entry point."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.documents.manifest import Tensor
from agent.errors import DocumentError
from tests.pipeline.support import incoming, make_chain, make_manifest, v2_request

STEP = """
import msgspec
from agent.pipeline.steps.api import CompiledStep, StepKind, pick

class Double(msgspec.Struct, frozen=True):
    '''Twice as much.'''
    input: str = ""

def compile_double(options, context):
    tensor = pick(context, options.input)

    def run(arrays, memory):
        arrays[tensor.name] = arrays[tensor.name] * 2
        return arrays

    return CompiledStep(run, context.tensors)

KIND = StepKind(Double, compile_double)
"""
ENTRY_POINTS = """
[edgeward.steps]
double = their_step:KIND
broken = their_step:LOST
"""


@pytest.fixture
def their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_step.py").write_text(STEP)
    metadata = tmp_path / "their_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("their_package")
def test_a_step_of_an_installed_package_joins_by_its_name() -> None:
    tensor = Tensor("x", "FP32", (1,))
    chain = make_chain(make_manifest([tensor], [tensor], pre=[{"step": "double"}]))
    request = {"name": "x", "shape": [1], "datatype": "FP32", "data": [21]}
    step = chain.accept(incoming(v2_request(request)))
    assert step.inputs is not None
    assert step.inputs["x"].tolist() == [42]


@pytest.mark.usefixtures("their_package")
@pytest.mark.parametrize("name", ["broken", "absent"])
def test_a_step_that_cannot_be_had_is_named_with_its_path(name: str) -> None:
    tensor = Tensor("x", "FP32", (1,))
    with pytest.raises(DocumentError) as caught:
        make_chain(make_manifest([tensor], [tensor], pre=[{"step": name}]))
    assert caught.value.path == "manifest.pipeline.pre[0].step"
