"""What a process and all that it started has used: CPU and memory, from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_CPUCLOCK_SCHED = 2


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
            total += _cpu_of(pid)
    return total


def _cpu_of(pid: int) -> float:
    # User and system time of all its threads, ended ones too, in ns where `stat` counts ticks of
    # 10 ms. The number is that of clock_getcpuclockid(3), which Python does not offer.
    own_s = time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    return own_s + parse_reaped(_read(pid, "stat"))


def parse_reaped(text: str) -> float:
    """Seconds of the children that a process has waited for: proc(5), stat, cutime and cstime."""
    # The name in parentheses may itself hold spaces and parentheses.
    user, system = text.rpartition(")")[2].split()[13:15]
    return (int(user) + int(system)) * _TICK_S


def pss_mb(pids: Iterable[int]) -> float:
    """Proportional set size: shared pages divided by how many processes share them.

    Raises:
        PermissionError: The agent hides its memory from other processes of its user; root may look.
    """
    return sum(parse_rollup(_read(pid, "smaps_rollup"))["Pss"] for pid in pids) / 1024


def alone_mb(pids: Iterable[int]) -> float:
    """What the proportional set size would be if no other program shared pages with these.

    Any other Python or runtime on the machine makes the PSS of a system smaller, of one that
    consists of files more than of one that consists of data.

    Raises:
        PermissionError: As with `pss_mb`.
    """
    data, files = 0, dict[tuple[str, ...], int]()
    for pid in pids:
        rollup = parse_rollup(_read(pid, "smaps_rollup"))
        # Only a fork shares data, and forks belong to the tree.
        data += rollup["Pss_Anon"] + rollup["Pss_Shmem"]
        for region, resident in parse_files(_read(pid, "smaps")).items():
            files[region] = max(resident, files.get(region, 0))
    return (data + sum(files.values())) / 1024


def parse_rollup(text: str) -> dict[str, int]:
    """The sums of a `smaps_rollup` in kB, by name."""
    lines = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(value) for name, value, _ in lines}


def parse_files(text: str) -> dict[tuple[str, ...], int]:
    """Resident kB that still are the file's, by mapped region of a file, from a `smaps`.

    A region is (offset, device, inode, size): processes that map the same one share its pages.
    """
    found: dict[tuple[str, ...], int] = {}
    region: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            _, _, offset, device, inode = words[:5]
            low, _, high = words[0].partition("-")
            region = (offset, device, inode, str(int(high, 16) - int(low, 16)))
        elif region[2] != "0" and words[0] in ("Rss:", "Anonymous:"):
            sign = 1 if words[0] == "Rss:" else -1
            found[region] = found.get(region, 0) + sign * int(words[1])
    return found


def _read(pid: int, name: str) -> str:
    return (_PROC / str(pid) / name).read_text()
