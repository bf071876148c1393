"""Which board: the device tree's words, a PC's firmware, or what the kernel says of a Raspberry Pi.

Containers usually hide the device tree (it is under /sys/firmware); /proc/cpuinfo stays.
"""

from __future__ import annotations

import re

from agent.device import cpuinfo
from agent.device.tree import Tree, number, short
from agent.documents.device import Board

DEVICE_TREES = ("/proc/device-tree", "/sys/firmware/devicetree/base")
_DMI = "/sys/class/dmi/id"
# What firmware says where nobody filled it in.
_NOTHING = re.compile(
    r"default string|to be filled by o\.?e\.?m\.?|system (product name|manufacturer)|none"
    r"|not (specified|applicable)|o\.?e\.?m\.?|unknown|standard",
    re.IGNORECASE,
)
_TEGRA = re.compile(r"nvidia,tegra\d+")
# Modules of NVIDIA's boards, as device trees and part numbers name them.
_MODULE = re.compile(r"(?<!\d)p?(2180|2888|3310|3448|3489|3636|3668|3701|3767|3834)(?!\d)")
# Bits 4 to 11 of a new-style revision code ("Raspberry Pi revision codes") → entry of `compatible`.
_PI_TYPES = {
    0x04: "2-model-b",
    0x08: "3-model-b",
    0x0A: "3-compute-module",
    0x0D: "3-model-b-plus",
    0x0E: "3-model-a-plus",
    0x10: "3-compute-module-plus",
    0x11: "4-model-b",
    0x12: "model-zero-2-w",
    0x13: "400",
    0x14: "4-compute-module",
    0x15: "4-compute-module-s",
    0x17: "5-model-b",
    0x18: "5-compute-module",
    0x19: "500",
    0x1A: "5-compute-module",
}
# Bits 12 to 15.
_PI_SOCS = {0: "brcm,bcm2835", 1: "brcm,bcm2836", 2: "brcm,bcm2837", 3: "brcm,bcm2711"} | {
    4: "brcm,bcm2712"
}
_NEW_STYLE = 1 << 23


def probe(tree: Tree) -> Board:
    """Say which board it is; nothing where it does not say."""
    for base in DEVICE_TREES:
        compatible = tree.strings(f"{base}/compatible")
        model = tree.line(f"{base}/model")
        if compatible or model:
            return Board(
                model=model,
                compatible=compatible,
                soc=_soc(compatible),
                module=_module(tree, base, compatible),
            )
    return _pc(tree) or _pi(tree)


def _soc(compatible: tuple[str, ...]) -> str:
    # Some of NVIDIA's kernels add the name of a family behind the chip's.
    tegra = (entry for entry in compatible if _TEGRA.fullmatch(entry))
    return next(tegra, compatible[-1] if compatible else "")


def _module(tree: Tree, base: str, compatible: tuple[str, ...]) -> str:
    if not any(entry.startswith("nvidia,") for entry in compatible):
        return ""
    told = (
        *compatible,
        short(tree.text(f"{base}/nvidia,dtsfilename").rpartition("/")[2]),
        *tree.strings(f"{base}/nvidia,boardids"),
    )
    # A carrier board has a number of the same form; only a module's is one of ours.
    found = (match for text in told for match in _MODULE.finditer(text))
    first = next(found, None)
    return f"p{first[1]}" if first else ""


def _pc(tree: Tree) -> Board | None:
    names = ("sys_vendor", "product_name", "board_name")
    vendor, product, board = (_filled(tree.line(f"{_DMI}/{name}")) for name in names)
    if not (vendor or product or board):
        return None
    return Board(model=product or board, vendor=vendor)


def _filled(text: str) -> str:
    return "" if _NOTHING.fullmatch(text) else text


def _pi(tree: Tree) -> Board:
    model = short(cpuinfo.value(tree, "Model"))
    code = number("0x" + cpuinfo.value(tree, "Revision")) or 0
    kind = _PI_TYPES.get(code >> 4 & 0xFF)
    if kind is None or not code & _NEW_STYLE or not model.startswith("Raspberry Pi"):
        return Board(model=model)
    soc = _PI_SOCS.get(code >> 12 & 0xF, "")
    compatible = tuple(filter(None, (f"raspberrypi,{kind}", soc)))
    return Board(model=model, compatible=compatible, soc=soc)
