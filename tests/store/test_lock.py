"""One agent per state directory."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import StoreError
from agent.store.files import Files, OpenFile, Operation
from agent.store.lock import lock_state_dir

HOLDER = """
import sys, time
from pathlib import Path
from agent.store.lock import lock_state_dir
lock = lock_state_dir(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_second_agent_is_told_who_has_the_directory(tmp_path: Path) -> None:
    lock = lock_state_dir(tmp_path / "state")
    with pytest.raises(StoreError, match=rf"another edgeward \(pid {os.getpid()}\) uses"):
        lock_state_dir(tmp_path / "state")
    lock.close()
    lock_state_dir(tmp_path / "state").close()


def test_the_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    lock_state_dir(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / "lock").stat().st_mode & 0o777 == 0o600


def test_a_killed_agent_leaves_no_lock_behind(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(StoreError, match=f"pid {holder.pid}"):
            lock_state_dir(tmp_path)
        holder.send_signal(signal.SIGKILL)
    lock_state_dir(tmp_path).close()


def test_a_child_started_by_the_agent_does_not_inherit_the_lock(tmp_path: Path) -> None:
    lock = lock_state_dir(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock.close()
        lock_state_dir(tmp_path).close()
        child.communicate()


class ReadOnly(Files):
    """A disk that nothing can be written to."""

    def before(self, op: object, path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def open(self, path: Path) -> OpenFile:
        self.perform(Operation("touch", path))  # to open it for writing is refused too
        raise AssertionError


@pytest.mark.parametrize("used_before", [True, False])
def test_a_read_only_disk_can_be_locked_once(tmp_path: Path, used_before: bool) -> None:
    if used_before:
        lock_state_dir(tmp_path).close()
    lock = lock_state_dir(tmp_path, ReadOnly())
    with pytest.raises(StoreError, match="another edgeward"):
        lock_state_dir(tmp_path, ReadOnly())
    lock.close()
    lock_state_dir(tmp_path, ReadOnly()).close()


def test_a_directory_that_is_not_there_on_a_read_only_disk_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="read-only"):
        lock_state_dir(tmp_path / "absent", ReadOnly())
