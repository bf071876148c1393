"""Coral's Edge TPU: in a USB port, on PCI Express (cards and Coral's own boards)."""

from __future__ import annotations

from collections.abc import Iterator

from agent.device.buses import Usb
from agent.device.surroundings import Surroundings
from agent.documents.device import Accelerator

# Before and after the runtime has given the stick its firmware (libedgetpu's udev rules).
_USB_IDS = frozenset({("1a6e", "089a"), ("18d1", "9302")})
_PCI_ID = (0x1AC1, 0x089A)
_PAGE_BYTES = 4096
_USB3_MBIT = 5000
_LIBRARY = "libedgetpu.so.1"


def probe(around: Surroundings) -> Iterator[Accelerator]:
    """Find Edge TPUs."""
    yield from _on_pci(around)
    for device in around.usb:
        if (device.vendor, device.product) in _USB_IDS:
            yield _on_usb(around, device)


def _on_pci(around: Surroundings) -> Iterator[Accelerator]:
    tree = around.tree
    nodes = tree.names("/dev", r"apex_\d{1,3}")
    chips = [found for found in around.pci if (found.vendor, found.device) == _PCI_ID]
    for index in range(max(len(nodes), len(chips))):
        node = f"/dev/{nodes[index]}" if index < len(nodes) else ""
        why = _why_not(around, node)
        yield Accelerator(
            kind="edgetpu",
            bus="pci",
            name="Coral Edge TPU",
            node=node,
            driver=(chips[index].driver if index < len(chips) else "") or ("apex" if node else ""),
            driver_version=around.module_version("apex", "gasket"),
            ready=not why,
            why=why or _remark(around),
        )


def _why_not(around: Surroundings, node: str) -> str:
    if not node:
        return (
            "the kernel modules gasket and apex are not loaded, so there is no /dev/apex_0: "
            "install gasket-dkms; the modules do not build for all kernels from 6.12 on"
        )
    page_bytes = around.machine.page_bytes
    if page_bytes not in (0, _PAGE_BYTES):
        return (
            f"the kernel has memory pages of {page_bytes // 1024} KiB and the driver needs 4 KiB: "
            "on a Raspberry Pi 5 put kernel=kernel8.img into config.txt and reboot"
        )
    if not around.tree.may_use(node):
        return f"we may not use {node}: add the agent's user to the group apex"
    return ""


def _on_usb(around: Surroundings, device: Usb) -> Accelerator:
    why = ""
    if not around.tree.has(device.node):
        why = f"{device.node} is absent: give the container /dev/bus/usb, whole"
    elif not around.tree.may_use(device.node):
        why = (
            "we may not use its file under /dev/bus/usb: install libedgetpu's udev rules and add "
            "the agent's user to the group plugdev"
        )
    slow = (
        f"it is at a USB 2 port ({device.speed_mbit} Mbit/s): a USB 3 port is faster"
        if 0 < device.speed_mbit < _USB3_MBIT
        else ""
    )
    return Accelerator(
        kind="edgetpu",
        bus="usb",
        # Nothing that changes when the stick gets its firmware at its first use.
        name="Coral USB Accelerator",
        driver="usb",
        ready=not why,
        why=why or "; ".join(filter(None, (_remark(around), slow))),
    )


def _remark(around: Surroundings) -> str:
    if around.has_library(_LIBRARY):
        return ""
    return f"{_LIBRARY} is not in the usual folders: install it (libedgetpu1-std)"
