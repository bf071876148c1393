"""`edgeward bench` as a person or a program calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.author.pack import pack
from agent.author.spec import Spec
from agent.cli import exits
from agent.cli.main import run
from tests.runtimes import models


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    model = folder / "relu.onnx"
    model.write_bytes(models.relu_onnx())
    pack(model, folder / "pack", spec=Spec(name="relu", version="1"))
    return folder / "pack"


def test_a_program_is_told_what_was_tried_and_what_is_chosen(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(packed), "--budget", "0", "--json"]) == exits.DONE
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == "relu"
    assert told["chosen"]["variant"] == "onnx-fp32"
    chosen = told["tried"][0]
    assert chosen["way"] == told["chosen"]
    assert 0 < chosen["best_ms"] <= chosen["median_ms"] <= chosen["p95_ms"] < 1000
    assert chosen["placement"]["got"]
    runtimes = {tried["way"]["runtime"] for tried in told["tried"]}
    assert {"onnx", "reference"} <= runtimes


def test_what_is_asked_for_alone_is_measured(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--runtime", "reference", "--threads", "1", "--budget", "0", "--json"]
    assert run(["bench", str(packed), *asked]) == exits.DONE
    told = json.loads(capsys.readouterr().out)
    assert [tried["way"]["runtime"] for tried in told["tried"]] == ["reference"]


def test_a_person_sees_a_table_and_the_reason(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(packed), "--budget", "0"]) == exits.DONE
    page = capsys.readouterr().out
    assert "onnx-fp32 on onnx, 1 thread" in page
    assert "chosen: onnx-fp32 on" in page


def test_what_cannot_be_had_is_said_and_nothing_is_measured(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(packed), "--runtime", "tensorrt"]) == exits.WILL_NOT_RUN
    assert "left out: pin: " in capsys.readouterr().out
