"""`edgeward store check` on a device whose agent does not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.cli import exits
from agent.cli.main import run
from agent.links import local
from agent.store.lock import lock_state_dir
from tests.store.samples import NEW, OLD, deliver, store_at
from tests.store.test_check import alter, blob, model


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    state = tmp_path / "state"
    monkeypatch.setattr(local, "SERVICE_FOLDER", tmp_path)
    monkeypatch.setenv("EDGEWARD_STATE_DIR", str(state))
    store = store_at(state)
    deliver(store, OLD)
    deliver(store, NEW)
    return state


def test_a_whole_store_is_told_in_two_lines(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "check"]) == exits.DONE
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "whole"
    assert "2 packs, 6 files" in captured.out
    assert captured.err == ""


def test_damage_is_told_then_dropped_and_the_exit_codes_say_so(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alter(blob(root, model(OLD)))
    assert run(["store", "check"]) == exits.FAILED
    told = capsys.readouterr().out
    assert f"DAMAGED pack {OLD.pack_id}" in told
    assert "altered: model.onnx" in told
    assert "`--repair` drops what is damaged" in told
    assert run(["store", "check", "--repair", "--json"]) == exits.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["whole"]
    assert found["bad_packs"][0]["done"].startswith("dropped model.onnx; fetched again when")
    assert store_at(root).missing(OLD.files) == ["model.onnx"]


def test_an_agent_that_is_only_starting_keeps_its_store(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_state_dir(root):
        assert run(["store", "check"]) == exits.FAILED
    assert "another edgeward (pid" in capsys.readouterr().err


def test_no_folder_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "SERVICE_FOLDER", tmp_path)
    monkeypatch.setenv("EDGEWARD_STATE_DIR", str(tmp_path / "none"))
    assert run(["store", "check"]) == exits.USAGE
    assert not (tmp_path / "none").exists()


def test_the_help_shows_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "check", "--help"]) == 0
    text = capsys.readouterr().out
    assert "  edgeward store check --json" in text
    assert "Exit codes:" in text
