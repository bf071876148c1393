"""What condition a device is in: its sensors, summed up for decisions."""

from __future__ import annotations

from agent.control.heat import Reading, reading
from agent.device import sensors
from agent.device.firmware import throttle_word
from agent.device.jetson import power_mode
from agent.device.machine import Machine
from agent.device.tree import Folder, Source, Tree

_CPUFREQ = "/sys/devices/system/cpu/cpufreq"


def look(source: Source | None = None) -> Reading:
    """Read all sensors once; takes a fraction of a millisecond.

    Args:
        source: The machine's files; None: those of this machine, whose firmware is asked too.
    """
    tree = Tree(source or Folder())
    word = throttle_word() if source is None else None
    found = sensors.probe(tree, Machine(throttled=word))
    limits = [
        tree.number(f"{_CPUFREQ}/{name}/cpuinfo_max_freq") or 0
        for name in tree.names(_CPUFREQ, r"policy\d{1,4}", most=32)
    ]
    limit_hz = 1000.0 * max(limits, default=0)
    return reading(found, speed_limit_hz=limit_hz or None, power_mode=power_mode(tree))
