"""Memory, and how much of it we may have."""

from __future__ import annotations

import re

from agent.device.cgroup import Limits
from agent.device.tree import Tree
from agent.documents.device import Memory

_KIB = 1024


def probe(tree: Tree, limits: Limits) -> Memory:
    """Say how much there is."""
    text = tree.text("/proc/meminfo")
    total, available = _field(text, "MemTotal"), _field(text, "MemAvailable")
    limit = limits.memory_bytes
    return Memory(
        total_bytes=total,
        available_bytes=min(available, total),
        limit_bytes=limit if limit is not None and (not total or limit < total) else None,
        can_be_limited=limits.memory_controller,
    )


def _field(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s*([0-9]{{1,15}}) kB$", text, re.MULTILINE)
    return int(found[1]) * _KIB if found else 0
