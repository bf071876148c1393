"""All facts of a device, from its files and from what this process knows of itself."""

from __future__ import annotations

from collections.abc import Iterable

from agent.device import (
    accelerators,
    board,
    cgroup,
    cpu,
    jetson,
    memory,
    sensors,
    storage,
    system,
)
from agent.device.machine import Machine
from agent.device.surroundings import look_around
from agent.device.tree import Tree
from agent.documents.device import Device, RuntimeFacts

_MAX_REFUSED = 64
_MAX_REFUSAL = 1024


def detect(tree: Tree, machine: Machine, runtimes: Iterable[RuntimeFacts] = ()) -> Device:
    """Read everything once.

    Args:
        tree: The files; it remembers what was read.
        machine: What no file says.
        runtimes: What the runtimes said of themselves, each in a process of its own.

    Returns:
        The facts; whatever the files hold, they fit the document's bounds.
    """
    found = board.probe(tree)
    limits = cgroup.probe(tree)
    return Device(
        schema=1,
        board=found,
        system=system.probe(tree, machine),
        cpu=cpu.probe(tree, machine, limits),
        memory=memory.probe(tree, limits),
        storage=storage.probe(tree, machine),
        accelerators=accelerators.probe(look_around(tree, machine, found)),
        sensors=sensors.probe(tree, machine),
        jetson=jetson.probe(tree, found),
        runtimes=tuple(runtimes),
        refused=_refused(tree),
    )


def _refused(tree: Tree) -> tuple[str, ...]:
    told = (f"{path}: {reason}" for path, reason in sorted((tree.cut | tree.refused).items()))
    return tuple(line[:_MAX_REFUSAL] for line in told)[:_MAX_REFUSED]
