"""What the probes of accelerators look at, read once for all of them."""

from __future__ import annotations

import msgspec

from agent.device.buses import Pci, Usb, pci_devices, usb_devices
from agent.device.machine import Machine
from agent.device.tree import Tree, short
from agent.documents.device import Board

_LIBRARY_FOLDERS = (
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/arm-linux-gnueabihf",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
)


class Surroundings(msgspec.Struct, frozen=True):
    """The machine around an accelerator."""

    tree: Tree
    machine: Machine
    board: Board
    pci: tuple[Pci, ...]
    usb: tuple[Usb, ...]

    def has_library(self, name: str) -> bool:
        """Whether a shared library is in one of the usual folders; it is not loaded."""
        return any(self.tree.has(f"{folder}/{name}") for folder in _LIBRARY_FOLDERS)

    def module_version(self, *names: str) -> str:
        """The version that the first loaded one of these kernel modules tells."""
        told = (self.tree.line(f"/sys/module/{name}/version") for name in names)
        return next((short(version) for version in told if version), "")


def look_around(tree: Tree, machine: Machine, board: Board) -> Surroundings:
    """List the buses."""
    return Surroundings(tree, machine, board, pci_devices(tree), usb_devices(tree))
