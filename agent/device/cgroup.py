"""What control groups allow this process: of both versions of their interface."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from agent.device.tree import Tree, number

MEMBERSHIP = "/proc/self/cgroup"
BASE = "/sys/fs/cgroup"
_MAX_LEVELS = 32
# Version 1 says "no limit" as the largest number of whole pages.
_NO_LIMIT = 2**60


class Limits(msgspec.Struct, frozen=True):
    """The least of what this process's group and those around it allow.

    Args:
        cpus: So many processors' time; None: no limit.
        memory_bytes: None: no limit.
        memory_controller: The kernel can limit memory. On a Raspberry Pi it does so only when its
            command line says `cgroup_enable=memory`; without it a limit that is asked for does
            silently nothing.
    """

    cpus: float | None
    memory_bytes: int | None
    memory_controller: bool


def probe(tree: Tree) -> Limits:
    """Read the limits of all levels, and of both versions where both are mounted."""
    groups = _memberships(tree)
    unified = list(_levels(BASE, groups.get("", "")))
    cpus = [_quota_v2(tree, folder) for folder in unified]
    cpus += [_quota_v1(tree, folder) for folder in _levels(f"{BASE}/cpu", groups.get("cpu", ""))]
    memory = [
        tree.number(f"{folder}/{name}")
        for folder in unified
        for name in ("memory.max", "memory.high")
    ]
    memory += [
        tree.number(f"{folder}/memory.limit_in_bytes")
        for folder in _levels(f"{BASE}/memory", groups.get("memory", ""))
    ]
    return Limits(
        cpus=min((value for value in cpus if value is not None), default=None),
        memory_bytes=min(
            (value for value in memory if value is not None and 0 < value < _NO_LIMIT),
            default=None,
        ),
        memory_controller=_has_memory(tree),
    )


def _memberships(tree: Tree) -> dict[str, str]:
    """Controller → this process's group; version 2 is the one without a controller."""
    found: dict[str, str] = {}
    for line in tree.text(MEMBERSHIP).splitlines()[:64]:
        fields = line.split(":", 2)
        # A group outside of what a container sees begins with `/..`.
        if len(fields) == 3 and ".." not in fields[2].split("/"):
            for controller in fields[1].split(","):
                found.setdefault(controller, fields[2])
    return found


def _levels(base: str, group: str) -> Iterator[str]:
    """The folder of a group and those of the groups around it."""
    parts = [part for part in group.split("/") if part][:_MAX_LEVELS]
    for depth in range(len(parts), -1, -1):
        yield "/".join([base, *parts[:depth]])


def _quota_v2(tree: Tree, folder: str) -> float | None:
    quota, _, period = tree.text(f"{folder}/cpu.max").partition(" ")
    return _share(number(quota), number(period))


def _quota_v1(tree: Tree, folder: str) -> float | None:
    quota = tree.number(f"{folder}/cpu.cfs_quota_us")
    return _share(quota, tree.number(f"{folder}/cpu.cfs_period_us")) if quota else None


def _share(quota: int | None, period: int | None) -> float | None:
    if quota is None or period is None or quota <= 0 or period <= 0:
        return None
    return round(quota / period, 3)


def _has_memory(tree: Tree) -> bool:
    if "memory" in tree.text(f"{BASE}/cgroup.controllers").split():
        return True
    if tree.has(f"{BASE}/memory/memory.limit_in_bytes"):
        return True
    # Name, hierarchy, number of groups, enabled. A hierarchy of 0 is nowhere mounted as version 1.
    for line in tree.text("/proc/cgroups").splitlines():
        fields = line.split()
        if fields[:1] == ["memory"] and len(fields) == 4:
            return fields[3] == "1" and fields[1] != "0"
    return False
