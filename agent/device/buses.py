"""Devices on the PCI and USB buses, as sysfs lists them."""

from __future__ import annotations

import re

import msgspec

from agent.device.tree import Tree, short

_PCI = "/sys/bus/pci/devices"
_USB = "/sys/bus/usb/devices"


class Pci(msgspec.Struct, frozen=True):
    """One function of a PCI device; numbers as the PCI registry has them."""

    vendor: int
    device: int
    kind: int
    driver: str


class Usb(msgspec.Struct, frozen=True):
    """One USB device.

    Args:
        node: Its file under /dev/bus/usb; it changes at each plugging.
        speed_mbit: 480 is USB 2, 5000 USB 3.
    """

    vendor: str
    product: str
    node: str
    speed_mbit: int


def pci_devices(tree: Tree) -> tuple[Pci, ...]:
    """All devices on PCI buses."""
    found = []
    for name in tree.names(_PCI, r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"):
        base = f"{_PCI}/{name}"
        vendor, device = tree.number(f"{base}/vendor"), tree.number(f"{base}/device")
        if vendor is not None and device is not None:
            kind = tree.number(f"{base}/class") or 0
            found.append(Pci(vendor, device, kind >> 16, driver_of(tree, base)))
    return tuple(found)


def usb_devices(tree: Tree) -> tuple[Usb, ...]:
    """All devices on USB buses; hubs, too."""
    found = []
    for name in tree.names(_USB, r"\d+-[\d.]+"):
        base = f"{_USB}/{name}"
        vendor = tree.line(f"{base}/idVendor")
        if vendor:
            bus, device = tree.number(f"{base}/busnum") or 0, tree.number(f"{base}/devnum") or 0
            node = f"/dev/bus/usb/{bus:03d}/{device:03d}"
            speed = tree.number(f"{base}/speed") or 0
            found.append(Usb(vendor, tree.line(f"{base}/idProduct"), node, speed))
    return tuple(found)


def driver_of(tree: Tree, base: str) -> str:
    """The driver that a device is bound to; nothing: none."""
    found = re.search(r"^DRIVER=(.{1,64})$", tree.text(f"{base}/uevent"), re.MULTILINE)
    return short(found[1]) if found else ""
