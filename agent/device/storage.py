"""What the state directory lies on, and how worn it is.

An NVMe disk tells of its wear only through an administrator's command, which is not sent.
"""

from __future__ import annotations

import re
from typing import Literal

from agent.device.machine import Machine
from agent.device.tree import Tree, short
from agent.documents.device import Storage

Kind = Literal["sd", "emmc", "nvme", "ssd", "hdd", "usb", "memory", "unknown"]

_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_SECTOR_BYTES = 512
_WRITTEN_SECTORS = 6
_MAX_HOPS = 4
# `pre_eol_info` of the MMC standard (JESD84-B51); 1 is normal.
_WEAR = {2: "warning", 3: "urgent"}
_EXCEEDED = 0x0B
_BY_NAME: tuple[tuple[str, Kind], ...] = (
    (r"nvme\d+n\d+", "nvme"),
    (r"zram\d+|ram\d+", "memory"),
)


def probe(tree: Tree, machine: Machine) -> Storage:
    """Say what the state directory lies on."""
    disk = machine.disk
    name = _whole_disk(tree, disk.device)
    written = _written(tree, name)
    used, wear = _emmc_wear(tree, name) if name.startswith("mmcblk") else (None, "")
    return Storage(
        device=name,
        kind="memory" if disk.kind in _IN_MEMORY else _kind(tree, name),
        free_bytes=disk.free_bytes,
        free_inodes=disk.free_inodes,
        read_only=disk.read_only,
        life_used_percent=used,
        wear=wear,
        written_bytes=written,
    )


def _whole_disk(tree: Tree, device: str) -> str:
    """The disk that a block device `MAJOR:MINOR` is, is a part of, or is mapped to."""
    if not device:
        return ""
    found = re.search(
        r"^DEVNAME=([\w!-]{1,64})$", tree.text(f"/sys/dev/block/{device}/uevent"), re.MULTILINE
    )
    name = found[1] if found else ""
    for _ in range(_MAX_HOPS):
        name = _parent(tree, name)
        below = tree.names(f"/sys/block/{name}/slaves") if name.startswith(("dm-", "md")) else ()
        if len(below) != 1:
            break
        name = below[0]
    return short(name)


def _parent(tree: Tree, name: str) -> str:
    """The disk of a partition: partitions of `mmcblk0` and `nvme0n1` are `mmcblk0p1` and so on."""
    found = re.fullmatch(r"(.*\d)p\d+|([a-z]+)\d+", name)
    disk = (found[1] or found[2]) if found else ""
    return disk if disk and tree.has(f"/sys/block/{disk}/{name}") else name


def _kind(tree: Tree, name: str) -> Kind:
    for pattern, kind in _BY_NAME:
        if re.fullmatch(pattern, name):
            return kind
    base = f"/sys/block/{name}"
    if name.startswith("mmcblk"):
        told = tree.line(f"{base}/device/type")
        return "sd" if told == "SD" else "emmc" if told == "MMC" else "unknown"
    if not name.startswith("sd"):
        return "unknown"
    if "/usb" in tree.link(base):
        return "usb"
    turning = tree.number(f"{base}/queue/rotational")
    return "unknown" if turning is None else "hdd" if turning else "ssd"


def _written(tree: Tree, name: str) -> int | None:
    fields = tree.text(f"/sys/block/{name}/stat").split() if name else []
    if len(fields) <= _WRITTEN_SECTORS or not re.fullmatch(r"\d{1,15}", fields[_WRITTEN_SECTORS]):
        return None
    return int(fields[_WRITTEN_SECTORS]) * _SECTOR_BYTES


def _emmc_wear(tree: Tree, name: str) -> tuple[int | None, str]:
    """Used life in percent, rounded up to tens, and the card's own warning."""
    base = f"/sys/block/{name}/device"
    steps = [
        int(word, 16)
        for word in tree.text(f"{base}/life_time").split()
        if re.fullmatch(r"0x[0-9a-fA-F]{2}", word)
    ]
    # 0: the card does not say.
    used = max((step for step in steps if 0 < step <= _EXCEEDED), default=None)
    warning = tree.number(f"{base}/pre_eol_info")
    return (None if used is None else used * 10), _WEAR.get(warning or 0, "")
