"""What a process and all that it started has used: CPU and memory, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def tree(root: int) -> list[int]:
    """The process and its living descendants; empty when it has ended."""
    try:
        process = psutil.Process(root)
        return [root, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of processes and of the children that they have waited for.

    The sum never falls: when a worker ends, its time goes to the parent that reaps it.
    """
    total = 0.0
    for pid in pids:
        with suppress(OSError):
            total += _cpu_of(_PROC / str(pid))
    return total


def _cpu_of(folder: Path) -> float:
    own_s, reaped_s = parse_stat((folder / "stat").read_text())
    precise_s = 0.0
    for task in (folder / "task").iterdir():
        with suppress(OSError):
            precise_s += parse_schedstat((task / "schedstat").read_text())
    # The same quantity twice: `stat` counts in ticks of 10 ms, `schedstat` in ns, but only for the
    # threads that still live.
    return max(own_s, precise_s) + reaped_s


def parse_stat(text: str) -> tuple[float, float]:
    """Seconds of a process itself, and of its children that it has waited for: proc(5), stat."""
    # The name in parentheses may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    user, system, child_user, child_system = (int(value) * _TICK_S for value in fields[11:15])
    return user + system, child_user + child_system


def parse_schedstat(text: str) -> float:
    """Seconds that a thread has run: Documentation/scheduler/sched-stats.rst."""
    return int(text.split()[0]) / 1e9


def pss_mb(pids: Iterable[int]) -> float:
    """Proportional set size: shared pages divided by how many processes share them.

    Raises:
        PermissionError: The agent hides its memory from other processes of its user; root may look.
    """
    return sum(parse_pss((_PROC / str(pid) / "smaps_rollup").read_text()) for pid in pids)


def parse_pss(text: str) -> float:
    """Megabytes (2**20) from a `smaps_rollup`."""
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError("no Pss in smaps_rollup")
