"""How the machine is doing: CPU, memory, temperature, disk, uptime, clock (psutil, adjtimex)."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

# adjtimex(2): the return value of a clock that no source disciplines.
_TIME_ERROR = 5
_TIMEX_BYTES = 256
# Near enough to the start of the process; the wall clock may be set at any time.
_STARTED = time.monotonic()


def device_metrics(folder: Path) -> dict[str, int | float]:
    """The machine's numbers by their OpenTelemetry names; what cannot be read is left out.

    Args:
        folder: A folder on the file system whose fill level matters (the state directory).
    """
    memory = psutil.virtual_memory()
    metrics: dict[str, int | float] = {
        # Since the last call, so that no time is spent waiting for a sample.
        "system.cpu.utilization": round(psutil.cpu_percent(interval=None) / 100, 4),
        "system.memory.usage": memory.total - memory.available,
        "system.memory.linux.available": memory.available,
        "system.uptime": round(time.clock_gettime(time.CLOCK_BOOTTIME), 1),
    }
    with suppress(OSError):
        disk = os.statvfs(folder)
        used = disk.f_blocks - disk.f_bavail
        metrics["system.filesystem.utilization"] = round(used / max(1, disk.f_blocks), 4)
    hottest = temperature_c()
    if hottest is not None:
        metrics["hw.temperature"] = hottest
    return metrics


def process_metrics() -> dict[str, int | float]:
    """This process's own numbers."""
    process = psutil.Process()
    times = process.cpu_times()
    return {
        "process.cpu.time": round(times.user + times.system, 3),
        "process.memory.usage": process.memory_info().rss,
        "process.uptime": round(time.monotonic() - _STARTED, 1),
        "process.unix.file_descriptor.count": process.num_fds(),
    }


def memory_of(pid: int) -> int | None:
    """Resident bytes of a process, or None when it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def temperature_c(root: Path = Path("/sys/class/thermal")) -> float | None:
    """The hottest thermal zone in degrees Celsius, or None where the machine tells none."""
    hottest: float | None = None
    for zone in sorted(root.glob("thermal_zone*/temp")):
        with suppress(OSError, ValueError):
            value = int(zone.read_text()) / 1000
            hottest = value if hottest is None or value > hottest else hottest
    return hottest


def clock_is_synced() -> bool:
    """Whether the kernel holds the wall clock for disciplined (adjtimex(2), read only)."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
        state = int(libc.adjtimex(buffer))
        return 0 <= state < _TIME_ERROR
    return False
