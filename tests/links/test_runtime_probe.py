"""Asking runtimes what they can do, with libraries that die, hang and lie."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from agent.links.runtime_probe import declared_runtimes, probe_runtimes
from agent.runtimes import registry

_ENTRY = """
import sys
sys.path.insert(0, {folder!r})
sys.argv = ["agent.worker", *sys.argv[1:]]
from agent.worker.__main__ import main
main()
"""
_KILL = "import os, signal\nos.kill(os.getpid(), signal.{})\n"
_NO_NUMPY = "raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')\n"


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, package: str, body: str) -> None:
    """Put a package of this name before all others in each template that starts."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(body)
    (folder / "entry.py").write_text(_ENTRY.format(folder=str(folder)))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} -I {folder}/entry.py "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


def test_what_an_installed_package_declares_is_asked() -> None:
    names = declared_runtimes()
    assert set(names) == set(registry.names())


def test_runtimes_that_work_say_what_they_can_do() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")
    onnx, tflite = probe_runtimes(["onnx", "tflite"])
    assert (onnx.name, onnx.usable, onnx.why) == ("onnx", True, "")
    assert "CPUExecutionProvider" in onnx.providers
    assert (tflite.name, tflite.usable) == ("tflite", True)


def test_facts_come_in_the_order_that_was_asked_for_and_once() -> None:
    found = probe_runtimes(["tflite", "no-such", "onnx", "tflite"])
    assert [facts.name for facts in found] == ["tflite", "no-such", "onnx"]
    assert not found[1].usable
    assert "no-such" in found[1].why


@pytest.mark.parametrize(
    ("body", "why", "hint"),
    [
        (_KILL.format("SIGILL"), "SIGILL", "another build"),
        (_KILL.format("SIGSEGV"), "SIGSEGV", ""),
        ("import os\nos._exit(7)\n", "exit status 7", ""),
        ("raise ImportError('libgomp.so.1: cannot open shared object file')", "libgomp", "libgomp"),
        ("raise ImportError('numpy.core.multiarray failed to import')", "multiarray", "numpy<2"),
        ("raise RuntimeError('x' * 100_000)", "RuntimeError", ""),
        ("print('\\033[2J' * 10_000)\nraise ImportError('\\033[2J')", "ImportError", ""),
    ],
    ids=["sigill", "sigsegv", "exit", "library", "numpy", "long", "escapes"],
)
def test_a_library_that_dies_on_import_is_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, why: str, hint: str
) -> None:
    install(monkeypatch, tmp_path, "onnxruntime", body)
    (facts,) = probe_runtimes(["onnx"])
    assert not facts.usable
    assert why in facts.why
    assert hint in facts.hint
    assert facts.why.isprintable()
    assert facts.hint.isprintable()
    assert max(len(facts.why), len(facts.hint)) <= 1024


def test_a_library_that_hangs_on_import_is_ended_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "onnxruntime", "import time\ntime.sleep(600)\n")
    begin = time.monotonic()
    (facts,) = probe_runtimes(["onnx"], deadline_s=1.0)
    assert time.monotonic() - begin < 20
    assert not facts.usable
    assert "within 1 s" in facts.why


def test_one_that_hangs_does_not_keep_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ai_edge_litert")
    install(monkeypatch, tmp_path, "onnxruntime", "import time\ntime.sleep(600)\n")
    onnx, tflite = probe_runtimes(["onnx", "tflite"], deadline_s=8.0)
    assert (onnx.usable, tflite.usable) == (False, True)


def test_where_there_is_no_numpy_every_runtime_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "numpy", _NO_NUMPY)
    for facts in probe_runtimes(["onnx", "tflite"]):
        assert not facts.usable
        assert "numpy" in facts.why + facts.hint


def test_names_are_known_where_there_is_no_numpy(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(_NO_NUMPY)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    program += "from agent.worker.names import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert "onnx" in done.stdout


def test_no_process_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "onnxruntime", "import time\ntime.sleep(600)\n")
    before = set(psutil.Process().children())
    probe_runtimes(["onnx", "no-such"], deadline_s=0.5)
    assert set(psutil.Process().children()) <= before


def test_asking_imports_neither_numpy_nor_a_runtime_here() -> None:
    program = (
        "import sys\nfrom agent.links.runtime_probe import probe_runtimes\n"
        "probe_runtimes()\n"
        "print([m for m in ('numpy', 'onnxruntime', 'agent.runtimes', 'agent.worker')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
