"""The command line itself: what it imports, how it fails, what its exit codes say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent import errors
from agent.cli import exits
from agent.cli.main import COMMANDS, run
from agent.links import local

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


def test_the_help_lists_every_command_and_every_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert name in text
        assert entry.help in text
    for code, meaning in exits.MEANINGS.items():
        assert f"{code}  {meaning}" in text


@pytest.mark.parametrize("name", ["deploy", "status", "rollback", "load", "logs"])
def test_each_command_shows_an_example_and_its_exit_codes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"  edgeward {name} " in text
    assert "Exit codes:" in text


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fly"]) == exits.USAGE
    assert "No such command 'fly'" in capsys.readouterr().err


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--fly"]) == exits.USAGE
    assert "--fly" in capsys.readouterr().err


def test_an_error_is_one_sentence_and_for_programs_one_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SERVICE_FOLDER", tmp_path)
    monkeypatch.setenv("EDGEWARD_STATE_DIR", str(tmp_path))
    assert run(["status", "--json"]) == exits.LINK
    captured = capsys.readouterr()
    assert captured.err.startswith("edgeward: no agent listens at ")
    assert captured.err.count("\n") == 1
    failure = json.loads(captured.out)["error"]
    assert failure["code"] == "link_unreachable"
    assert failure["hint"]


def test_a_missing_extra_is_named() -> None:
    # `python -S` knows no site-packages; only our own package is put back.
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from agent.cli.main import run; "
    told = subprocess.run(
        [sys.executable, "-S", "-c", code + "sys.exit(run(['status']))"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert told.returncode == exits.USAGE
    assert "needs click, which is not installed (pip install 'edgeward[cli]')" in told.stderr


def test_an_interrupt_before_anything_is_loaded_is_no_traceback() -> None:
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'agent.cli.main': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from agent.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (exits.INTERRUPTED, "")


def test_run_imports_nothing_that_the_bare_install_lacks(tmp_path: Path) -> None:
    code = (
        "import sys; from agent.cli.main import run; "
        f"code = run(['run', '--check', '--config', {str(tmp_path / 'none.toml')!r}]); "
        "heavy = {'click', 'rich', 'paho', 'numpy', 'onnxruntime'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy or code != 2 else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "kind", [k for k in ERRORS if issubclass(k, errors.AgentError)], ids=lambda k: k.__name__
)
def test_every_error_has_an_exit_code_that_is_listed(kind: type[errors.AgentError]) -> None:
    assert exits.of_error(kind.code) in exits.MEANINGS


def test_a_failure_of_the_disk_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pack"
    (folder / "manifest.json").mkdir(parents=True)
    line = ["deploy", str(folder), "--slot", "s", "--input-topic", "a", "--output-topic", "b"]
    assert run([*line, "--broker", "mqtt://127.0.0.1:1", "--device", "d"]) == exits.USAGE
    assert "holds no pack" in capsys.readouterr().err
