"""What another process does, as the kernel tells: processor time, and whether it sleeps.

Neither needs a right over that process, but /proc may be mounted so that it hides it (`hidepid`).
"""

from __future__ import annotations

import time
from pathlib import Path

_PROC = Path("/proc")
# Where cgroup v2 is mounted, alone or beside v1.
_GROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
# Of threads, as in proc(5): those that have ended say nothing of the others.
_SLEEPING, _ENDED = {"S"}, {"Z", "X"}


def cpu_s(pid: int) -> float:
    """Return the processor time that all threads of a process have used, ended ones included.

    Exact for one that sleeps; of one that runs, up to the kernel's last tick (1 to 10 ms).

    Raises:
        OSError: There is no such process, or this system does not tell.
    """
    # clock_getcpuclockid(3), which Python lacks: the clock of a process, CPUCLOCK_SCHED of Linux.
    return time.clock_gettime((~pid << 3) | 2)


def is_asleep(pid: int, proc: Path = _PROC) -> bool:
    """Return whether all threads of a process sleep: interruptibly, so for no disk, and neither
    stopped nor traced nor frozen.

    Raises:
        OSError: There is no such process, or /proc hides it.
    """
    threads = list((proc / str(pid) / "task").iterdir())
    states = set(map(_state, threads)) - _ENDED
    return states == _SLEEPING and not _is_frozen(proc / str(pid))


def _state(thread: Path) -> str:
    try:
        # The name in front may hold anything, brackets and blanks included.
        return (thread / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _is_frozen(process: Path, mounts: tuple[Path, ...] = _GROUPS) -> bool:
    """Whether the process's control group is frozen: with v2 its threads look asleep."""
    lines = (process / "cgroup").read_text(errors="replace").splitlines()
    group = next((line[3:] for line in lines if line.startswith("0::/")), None)
    if group is None:
        return False
    for mount in mounts:
        try:
            events = (mount / group.strip("/") / "cgroup.events").read_text()
        except OSError:
            continue
        return "frozen 1" in events.splitlines()
    return False
