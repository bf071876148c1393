"""What the kernel tells of another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.links import process
from tests.scenarios.device import until

SLEEPS = "import time; time.sleep(1000)"
SPINS = "while True: pass"
# One thread of two computes.
HALF = f"import threading; threading.Thread(target=lambda: exec({SLEEPS!r})).start()\n{SPINS}"
SLEEP_TWICE = (
    f"import threading; threading.Thread(target=lambda: exec({SLEEPS!r})).start()\n{SLEEPS}"
)
UNIFIED = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]


@contextmanager
def running(code: str) -> Iterator[int]:
    """A process that has begun to do this."""
    program = f"print('on', flush=True)\n{code}"
    with subprocess.Popen([sys.executable, "-I", "-c", program], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            yield child.pid
        finally:
            child.kill()


def threads(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


def test_processor_time_of_one_that_computes_grows() -> None:
    with running(SPINS) as pid:
        before = process.cpu_s(pid)
        until(lambda: process.cpu_s(pid) > before + 0.02, "20 ms of processor time")


def test_one_that_sleeps_uses_no_processor_time() -> None:
    with running(SLEEPS) as pid:
        until(lambda: process.is_asleep(pid), "it sleeps")
        before = process.cpu_s(pid)
        assert process.is_asleep(pid)
        assert process.cpu_s(pid) == before


def test_all_threads_must_sleep() -> None:
    with running(SLEEP_TWICE) as pid:
        until(lambda: threads(pid) == 2, "two threads")
        until(lambda: process.is_asleep(pid), "both sleep")
    with running(HALF) as pid:
        until(lambda: threads(pid) == 2, "two threads")
        assert not process.is_asleep(pid)


def test_one_that_was_stopped_does_not_sleep() -> None:
    with running(SLEEPS) as pid:
        os.kill(pid, signal.SIGSTOP)
        until(lambda: not process.is_asleep(pid), "it is stopped")
        os.kill(pid, signal.SIGCONT)
        until(lambda: process.is_asleep(pid), "it goes on")


def test_one_that_is_gone_is_an_error() -> None:
    with subprocess.Popen(["/bin/true"]) as child:
        child.wait()
    with pytest.raises(OSError):
        process.cpu_s(child.pid)
    with pytest.raises(OSError):
        process.is_asleep(child.pid)


@pytest.mark.parametrize(
    ("states", "asleep"),
    [
        ("S", True),
        ("SSS", True),
        ("SR", False),
        ("SD", False),
        ("T", False),
        ("tS", False),
        ("SZ", True),
        ("Z", False),
        ("", False),
    ],
)
def test_only_interruptible_sleep_of_all_living_threads_counts(
    states: str, asleep: bool, tmp_path: Path
) -> None:
    for number, state in enumerate(states):
        thread = tmp_path / "7" / "task" / str(number)
        thread.mkdir(parents=True)
        (thread / "stat").write_text(f"{number} (a) R ) {state} 1 7 7 0\n")
    (tmp_path / "7" / "task").mkdir(parents=True, exist_ok=True)
    (tmp_path / "7" / "cgroup").write_text("0::/\n")
    assert process.is_asleep(7, tmp_path) is asleep


def test_a_hidden_process_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        process.is_asleep(7, tmp_path)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of version 2 that this test may freeze."""
    base = next((at for at in UNIFIED if (at / "cgroup.subtree_control").exists()), None)
    if base is None or not os.access(base, os.W_OK):
        pytest.skip("no control group can be made here: freezing is not tried")
    made = base / f"edgeward-test-{os.getpid()}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error}): freezing is not tried")
    yield made
    until(lambda: "populated 0" in (made / "cgroup.events").read_text(), "it is empty")
    made.rmdir()


def test_a_frozen_process_does_not_sleep_though_it_looks_so(group: Path) -> None:
    if not (group / "cgroup.freeze").exists():
        pytest.skip("this kernel's control groups cannot be frozen")
    with running(SLEEPS) as pid:
        try:
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            pytest.skip(f"no process can be put into a control group here: {error}")
        until(lambda: process.is_asleep(pid), "it sleeps")
        (group / "cgroup.freeze").write_text("1")
        until(lambda: "frozen 1" in (group / "cgroup.events").read_text(), "it is frozen")
        assert "S" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert not process.is_asleep(pid)
        (group / "cgroup.freeze").write_text("0")
