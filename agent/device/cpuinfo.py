"""/proc/cpuinfo: `name : value` lines, one block for each processor."""

from __future__ import annotations

from agent.device.tree import Tree

_PATH = "/proc/cpuinfo"


def values(tree: Tree, name: str) -> tuple[str, ...]:
    """The distinct values of one name over all processors, in the order of the file."""
    found: dict[str, None] = {}
    for line in tree.text(_PATH).splitlines():
        before, colon, after = line.partition(":")
        if colon and before.strip() == name:
            found[after.strip()] = None
    return tuple(found)


def value(tree: Tree, name: str) -> str:
    """The first value of one name."""
    return next(iter(values(tree, name)), "")


def count(tree: Tree) -> int:
    """How many processors have a block."""
    return sum(line.startswith("processor") for line in tree.text(_PATH).splitlines())
