"""`edgeward detect` as a person or a program calls it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.cli import exits
from agent.cli.main import run
from agent.device.recording import open_root
from agent.documents.codec import convert
from agent.documents.device import Device
from tests.device import trees


def test_this_machine_is_told_with_its_runtimes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["detect", "--json"]) == exits.DONE
    told = json.loads(capsys.readouterr().out)
    device = convert(told["device"], Device, name="device").value
    assert device.system.kernel
    assert device.cpu.usable > 0
    assert device.storage.free_bytes > 0
    assert {"onnx", "tflite"} <= {runtime.name for runtime in device.runtimes}


@pytest.mark.parametrize("name", ["pi-3b-32bit", "jetson-orin-nano", "pi-5-coral-pcie", "nothing"])
def test_another_device_is_told_from_its_files(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trees.build(name, tmp_path / "tree")
    assert run(["detect", "--root", str(root), "--json"]) == exits.DONE
    told = json.loads(capsys.readouterr().out)
    assert convert(told["device"], Device, name="device").value == trees.detected(open_root(root))
    assert run(["detect", "--root", str(root)]) == exits.DONE
    page = capsys.readouterr().out
    assert told["device"].get("board", {}).get("model", "unknown") in page


def test_a_recording_is_a_device_to_look_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trees.build("jetson-orin-nano", tmp_path / "tree")
    tar = tmp_path / "board.tar"
    assert run(["detect", "--root", str(root), "--record", str(tar), "--json"]) == exits.DONE
    first = json.loads(capsys.readouterr().out)
    assert run(["detect", "--root", str(tar), "--json"]) == exits.DONE
    assert json.loads(capsys.readouterr().out) == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_profile_is_told_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trees.build("pi-5-coral-pcie", tmp_path / "tree")
    run(["detect", "--root", str(root), "--json"])
    profile = json.loads(capsys.readouterr().out)["profile"]
    matched = {one["name"]: one["why"] for one in profile["matched"]}
    assert "raspberrypi,5-model-b" in matched["raspberry-pi-5"]
    assert "coral-pcie" in matched
    assert any("16 KiB" in fault["says"] for fault in profile["faults"])
    assert all(other["why_not"] for other in profile["considered"])


def test_escapes_in_a_boards_files_do_nothing_to_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = trees.read("generic-aarch64")
    told["strings"]["/proc/device-tree/model"] = ["\x1b[2J[bold]Acme[/]"]
    root = trees.build_from(told, tmp_path / "tree")
    assert run(["detect", "--root", str(root)]) == exits.DONE
    page = capsys.readouterr().out
    assert "\x1b[2J" not in page
    assert "[bold]Acme[/]" in page


def test_a_recording_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = trees.build("nothing", tmp_path / "tree")
    code = run(["detect", "--root", str(root), "--record", str(tmp_path / "no/board.tar")])
    assert code == exits.USAGE
    assert "No such file" in capsys.readouterr().err


def test_a_root_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    assert run(["detect", "--root", str(tmp_path / "none")]) == exits.USAGE


def test_detection_costs_the_daemon_nothing_that_is_heavy() -> None:
    program = (
        "import sys\nimport agent.device.detect, agent.device.machine\n"
        "heavy = ('tarfile', 'psutil', 'numpy', 'subprocess', 'socket', 'asyncio', 'json')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    # msgspec brings json along.
    assert set(json.loads(done.stdout.replace("'", '"'))) <= {"json", "subprocess"}


def test_files_are_read_in_a_moment() -> None:
    from agent.device.detect import detect
    from agent.device.machine import from_here
    from agent.device.tree import Tree

    best = min(_timed(lambda: detect(Tree(), from_here())) for _ in range(5))
    assert best < 0.5


def _timed(work: object) -> float:
    begin = time.perf_counter()
    assert callable(work)
    work()
    return time.perf_counter() - begin
