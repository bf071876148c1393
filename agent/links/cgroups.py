"""Control groups for workers (cgroup v2): memory, threads and processor time that the kernel counts
for a whole process, page cache and shared memory included.

Only below a group that was delegated to the agent, as its systemd unit asks for (`Delegate=`). The
agent itself moves to a leaf of it, because a group that limits others may hold no process:

    …/edgeward.service             delegated; its controllers are enabled for what is below
    …/edgeward.service/daemon      the agent and its templates
    …/edgeward.service/worker-7    one worker

A worker enters its group itself, by the descriptor that its template is handed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from agent.errors import IsolationUnavailable

# Beside what RLIMIT_DATA counts: code, page tables, sockets, and a part of the model's file.
EXTRA_BYTES = 64 * 1024 * 1024
PROCESSES = 256
_LEAF = "daemon"
_CONTROLLERS = ("memory", "pids")
_DELEGATED = (b"1", b"true")


class WorkerGroups:
    """The groups of this agent's workers. Made by `find`."""

    def __init__(self, base: Path) -> None:
        self._base = base

    @classmethod
    def find(
        cls, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
    ) -> WorkerGroups:
        """Move this process to a leaf of its delegated group, and get ready to limit others.

        Call it once, before the first worker is started; templates that run already move too.

        Raises:
            IsolationUnavailable: There is no such group; says why and what helps.
        """
        base = _delegated(root, own)
        try:
            available = (base / "cgroup.controllers").read_text().split()
        except OSError as error:
            raise _unavailable(f"{base}: {error.strerror}") from None
        missing = [name for name in _CONTROLLERS if name not in available]
        if missing:
            raise _unavailable(f"the controller {missing[0]} is not enabled for {base.name}")
        try:
            _empty(base)
            enabled = " ".join(f"+{name}" for name in _CONTROLLERS)
            (base / "cgroup.subtree_control").write_text(enabled)
        except OSError as error:
            raise _unavailable(f"{base}: {error.strerror}") from None
        return cls(base)

    def open(self, number: int, memory_mb: int) -> int:
        """Make the group of a worker.

        Args:
            number: The worker's.
            memory_mb: The worker's limit of private memory; the group's is a little higher, so that
                the process itself is told first and can say so.

        Returns:
            Its open `cgroup.procs`, for `request_worker`; close it afterwards.

        Raises:
            OSError: It cannot be made now.
        """
        group = self._group(number)
        self.remove(number)
        group.mkdir()
        try:
            limit = memory_mb * 1024 * 1024 + EXTRA_BYTES
            (group / "memory.max").write_text(str(limit))
            # Absent where the kernel was built without swap.
            with suppress(OSError):
                (group / "memory.swap.max").write_text("0")
            # One process with threads: there is nothing to be saved by ending a part of it.
            (group / "memory.oom.group").write_text("1")
            (group / "pids.max").write_text(str(PROCESSES))
            return os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            group.rmdir()
            raise

    def ran_out_of_memory(self, number: int) -> bool:
        """Whether the kernel has ended a worker because its group was full; ask before `remove`."""
        try:
            lines = (self._group(number) / "memory.events").read_text().splitlines()
        except OSError:
            return False
        counts = dict(line.split(maxsplit=1) for line in lines if " " in line)
        return counts.get("oom_kill", "0") != "0"

    def remove(self, number: int) -> None:
        """Remove the group of a worker that has ended. Safe to call twice."""
        with suppress(OSError):
            self._group(number).rmdir()

    def _group(self, number: int) -> Path:
        return self._base / f"worker-{number}"


def _delegated(root: Path, own: Path) -> Path:
    """Return the group that was delegated to this process, its own or the one above it."""
    try:
        lines = own.read_text().splitlines()
    except OSError as error:
        raise _unavailable(f"{own}: {error.strerror}") from None
    place = next((line[3:] for line in lines if line.startswith("0::")), None)
    if place is None or not (root / "cgroup.controllers").exists():
        raise _unavailable("this machine has no unified control groups (cgroup v2)")
    group = root / place.lstrip("/")
    # With DelegateSubgroup= the service manager has moved the agent already.
    for candidate in (group, group.parent):
        if candidate != root and _is_delegated(candidate):
            return candidate
    raise _unavailable("no control group was delegated to the agent")


def _is_delegated(group: Path) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            return os.getxattr(group, name) in _DELEGATED
    # An older service manager marks nothing, but hands the folder over. Root may write everywhere.
    return os.geteuid() != 0 and os.access(group, os.W_OK)


def _empty(base: Path) -> None:
    """Move every process of a group to its leaf; they are all the agent's."""
    leaf = base / _LEAF
    leaf.mkdir(exist_ok=True)
    for pid in (base / "cgroup.procs").read_text().split():
        # One that has ended meanwhile needs no place.
        with suppress(ProcessLookupError):
            (leaf / "cgroup.procs").write_text(pid)


def _unavailable(why: str) -> IsolationUnavailable:
    return IsolationUnavailable(
        f"workers' memory cannot be limited by control groups: {why}",
        hint="run the agent by its systemd unit (Delegate=memory pids); on a Raspberry Pi add "
        "cgroup_enable=memory to /boot/firmware/cmdline.txt",
    )
