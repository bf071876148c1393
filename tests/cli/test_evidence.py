"""`edgeward evidence` as a person or a program calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.cli import exits
from agent.cli.main import run
from agent.control.evidence import Entry
from agent.store.evidence import EvidenceLog
from agent.store.files import Files

AT = "2026-11-24T10:00:00.000Z"


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEWARD_STATE_DIR", str(tmp_path / "state"))
    log = EvidenceLog(Files(), tmp_path / "state" / "evidence", file_bytes=900, files_max=3)
    log.append([Entry("activated", f"slot-{n}", "sha256:" + "a" * 64) for n in range(20)], AT)
    out = tmp_path / "press-7.jsonl"
    assert run(["evidence", "export", "--out", str(out)]) == exits.DONE
    return out


def test_an_export_verifies_and_names_its_head(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evidence", "verify", str(exported), "--json"]) == exits.DONE
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["ok"]
    assert verdict["first"] > 1
    assert verdict["first"] + verdict["lines"] - 1 == 20
    assert run(["evidence", "export"]) == exits.DONE
    assert verdict["head"] in capsys.readouterr().err
    assert run(["evidence", "verify", str(exported), "--head", verdict["head"]]) == exits.DONE
    assert "older ones were given up" in capsys.readouterr().out


def test_a_later_export_goes_on_from_the_head_of_an_earlier_one(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["evidence", "verify", str(exported), "--json"])
    head = json.loads(capsys.readouterr().out)["head"]
    log = EvidenceLog(Files(), tmp_path / "state" / "evidence", file_bytes=900, files_max=3)
    log.append([Entry("removed", "slot-1")], AT)
    later = tmp_path / "later.jsonl"
    assert run(["evidence", "export", "--out", str(later)]) == exits.DONE
    assert run(["evidence", "verify", str(later), "--head", head]) == exits.DONE
    assert run(["evidence", "verify", str(later), "--head", "ab" * 32]) == exits.FAILED


def test_a_line_that_was_changed_is_named(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = exported.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"activated", b"returned_")
    exported.write_bytes(b"".join(lines))
    assert run(["evidence", "verify", str(exported)]) == exits.FAILED
    told = capsys.readouterr().out
    assert "broken at line 2" in told
    assert run(["evidence", "verify", str(exported), "--json"]) == exits.FAILED
    assert json.loads(capsys.readouterr().out)["broken_line"] == 2


def test_an_existing_file_is_not_written_over(exported: Path) -> None:
    before = exported.read_bytes()
    assert run(["evidence", "export", "--out", str(exported)]) == exits.FAILED
    assert exported.read_bytes() == before


def test_no_evidence_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEWARD_STATE_DIR", str(tmp_path / "none"))
    assert run(["evidence", "export"]) == exits.USAGE
    assert "there is no evidence at" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["export", "verify"])
def test_the_help_shows_examples_and_exit_codes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evidence", name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"  edgeward evidence {name}" in text
    assert "Exit codes:" in text
