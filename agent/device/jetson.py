"""NVIDIA's Jetson: which Linux for Tegra, which JetPack, which power mode.

No `nvpmodel` is run: it keeps its mode in a file.
"""

from __future__ import annotations

import re

import msgspec

from agent.device.tree import Tree, short
from agent.documents.device import Board, Jetson

_TEGRA = re.compile(r"nvidia,(tegra\d+)")
_RELEASE = re.compile(r"# R(\d{1,3}) \(release\), REVISION: (\d{1,3}(?:\.\d{1,3}){1,2})")
_MODE = re.compile(r"pmode:0*(\d{1,4})")


class _Family(msgspec.Struct, frozen=True):
    name: str
    compute_capability: str


_FAMILIES = {
    "tegra210": _Family("nano", "5.3"),
    "tegra186": _Family("tx2", "6.2"),
    "tegra194": _Family("xavier", "7.2"),
    "tegra234": _Family("orin", "8.7"),
    "tegra264": _Family("thor", "11.0"),
}
# NVIDIA's release pages: each JetPack has its L4T. What is not here is not guessed.
JETPACKS = {
    **{f"32.7.{n}": f"4.6.{n}" for n in range(1, 7)},
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    **{f"35.6.{n}": "5.1.5" for n in range(1, 4)},
    "35.6.4": "5.1.6",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    **{f"38.2.{n}": "7.0" for n in range(10)},
    "38.4.0": "7.1",
    "39.2.0": "7.2",
}


def probe(tree: Tree, board: Board) -> Jetson | None:
    """Say what is particular about a Jetson; None: it is none."""
    chips = (_TEGRA.fullmatch(entry) for entry in board.compatible)
    chip = next((found[1] for found in chips if found), "")
    if not chip:
        return None
    family = _FAMILIES.get(chip, _Family(chip, ""))
    l4t = _l4t(tree)
    return Jetson(
        family=family.name,
        l4t=l4t,
        jetpack=JETPACKS.get(l4t, ""),
        compute_capability=family.compute_capability,
        power_mode=power_mode(tree),
    )


def _l4t(tree: Tree) -> str:
    found = _RELEASE.match(tree.line("/etc/nv_tegra_release"))
    return f"{found[1]}.{found[2]}" if found else ""


def power_mode(tree: Tree) -> str:
    """The mode by its name, or its number where no name is known; nothing where there is none."""
    found = _MODE.search(tree.line("/var/lib/nvpmodel/status"))
    if not found:
        return ""
    named = re.search(
        rf"^<\s*POWER_MODEL\s+ID=0*{found[1]}\s+NAME=(\S{{1,64}})\s*>",
        tree.text("/etc/nvpmodel.conf"),
        re.MULTILINE,
    )
    return short(named[1]) if named else found[1]
