"""Neural processors beside the Edge TPU: what is there, and whether its driver is."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from agent.device.buses import driver_of
from agent.device.surroundings import Surroundings
from agent.documents.device import Accelerator

_HAILO_VENDOR = 0x1E60
_INTEL_VENDOR = 0x8086
# Meteor Lake, Arrow Lake, Lunar Lake, Panther Lake (the kernel's intel_vpu).
_INTEL_NPUS = frozenset({0x7D1D, 0xAD1D, 0x643E, 0xB03E})
_ROCKCHIP_NPUS = ("rk3562", "rk3566", "rk3568", "rk3576", "rk3588")
# Driver of a node /dev/accel/accelN → kind, bus, name. The folder is shared by many.
_ACCEL_DRIVERS = {
    "intel_vpu": ("intel_npu", "pci", "Intel NPU"),
    "rocket": ("rknpu", "soc", "Rockchip NPU"),
    "amdxdna": ("amd_npu", "pci", "AMD NPU"),
}


class _Nxp(msgspec.Struct, frozen=True):
    kind: str
    chip: str
    node: str
    library: str
    name: str


_NXP = (
    _Nxp("ethosu", "fsl,imx93", "/dev/ethosu0", "libethosu_delegate.so", "Arm Ethos-U65"),
    _Nxp("vsi_npu", "fsl,imx8mp", "/dev/galcore", "libvx_delegate.so", "VeriSilicon NPU"),
)


def accel_nodes(around: Surroundings) -> Iterator[Accelerator]:
    """Find what has a node under /dev/accel, the kernel's folder for compute accelerators."""
    tree = around.tree
    nodes = tree.names("/sys/class/accel", r"accel\d{1,3}", most=16)
    for name in nodes:
        driver = driver_of(tree, f"/sys/class/accel/{name}/device")
        if driver not in _ACCEL_DRIVERS:
            continue
        kind, bus, title = _ACCEL_DRIVERS[driver]
        node = f"/dev/accel/{name}"
        ready = tree.may_use(node)
        yield Accelerator(
            kind=kind,
            bus="pci" if bus == "pci" else "soc",
            name=title,
            node=node,
            driver=driver,
            ready=ready,
            why="" if ready else f"we may not use {node}: add the agent's user to the group render",
        )
    if not nodes and any((p.vendor, p.device) in _intel_ids() for p in around.pci):
        yield Accelerator(
            kind="intel_npu",
            bus="pci",
            name="Intel NPU",
            why="the kernel's driver intel_vpu is not loaded: it needs Linux 6.3 or newer",
        )


def _intel_ids() -> frozenset[tuple[int, int]]:
    return frozenset((_INTEL_VENDOR, device) for device in _INTEL_NPUS)


def hailo(around: Surroundings) -> Iterator[Accelerator]:
    """Find Hailo's. Its PCI id does not tell one model from another."""
    tree = around.tree
    nodes = tree.names("/dev", r"hailo\d{1,3}", most=16)
    chips = [found for found in around.pci if found.vendor == _HAILO_VENDOR]
    for index in range(max(len(nodes), len(chips))):
        node = f"/dev/{nodes[index]}" if index < len(nodes) else ""
        ready = bool(node) and tree.may_use(node)
        why = ""
        if not node:
            why = "Hailo's kernel module is not loaded: install hailo-all or HailoRT's driver"
        elif not ready:
            why = f"we may not use {node}"
        yield Accelerator(
            kind="hailo",
            bus="pci",
            name="Hailo",
            node=node,
            driver=chips[index].driver if index < len(chips) else "",
            driver_version=around.module_version("hailo_pci", "hailo1x_pci"),
            ready=ready,
            why=why,
        )


def rockchip(around: Surroundings) -> Iterator[Accelerator]:
    """Find Rockchip's with the vendor's driver; `accel_nodes` finds those with the mainline's."""
    tree = around.tree
    chips = [entry for entry in around.board.compatible if _rockchip_npu(entry)]
    folders = tree.names("/sys/class/devfreq", r"[0-9a-f]+\.npu", most=4)
    if not chips or tree.names("/sys/class/accel", r"accel\d{1,3}"):
        return
    told = tree.line("/sys/kernel/debug/rknpu/version").rpartition("v")[2]
    library = around.has_library("librknnrt.so")
    why = ""
    if not folders:
        why = "the kernel has no driver for it: use the vendor's image, or a kernel with rocket"
    elif not library:
        why = "librknnrt.so is not in the usual folders: install Rockchip's runtime"
    yield Accelerator(
        kind="rknpu",
        bus="soc",
        name="Rockchip NPU",
        driver="rknpu" if folders else "",
        driver_version=around.module_version("rknpu") or told,
        ready=not why,
        why=why,
    )


def _rockchip_npu(entry: str) -> bool:
    vendor, _, chip = entry.partition(",")
    # Variants of a chip have a letter behind its number: rk3588s.
    return vendor == "rockchip" and any(chip in (name, f"{name}s") for name in _ROCKCHIP_NPUS)


def nxp(around: Surroundings) -> Iterator[Accelerator]:
    """Find those of i.MX chips, which only NXP's images bring to life."""
    for known in _NXP:
        if known.chip not in around.board.compatible:
            continue
        there = around.tree.has(known.node)
        why = ""
        if not there:
            why = f"there is no {known.node}: NXP's kernel has its driver"
        elif not around.tree.may_use(known.node):
            why = f"we may not use {known.node}"
        elif not around.has_library(known.library):
            why = f"{known.library} is not in the usual folders: NXP's image has it"
        yield Accelerator(
            kind=known.kind,
            bus="soc",
            name=known.name,
            node=known.node if there else "",
            driver=known.node.rpartition("/")[2].rstrip("0") if there else "",
            ready=not why,
            why=why,
        )
