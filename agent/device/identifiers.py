"""What tells one device from its neighbours, found so that a recording can leave it out.

Two nets, one behind the other: the values that this very machine has as its identifiers, wherever
they turn up; and everything that has the form of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from agent.device import cpuinfo
from agent.device.tree import Tree

_HOST_NAMES = ("/etc/hostname", "/proc/sys/kernel/hostname")
_FILES = (
    "/etc/machine-id",
    "/var/lib/dbus/machine-id",
    "/proc/sys/kernel/random/boot_id",
    "/proc/device-tree/serial-number",
    "/sys/firmware/devicetree/base/serial-number",
    "/sys/class/dmi/id/product_serial",
    "/sys/class/dmi/id/product_uuid",
    "/sys/class/dmi/id/board_serial",
    "/sys/class/dmi/id/chassis_serial",
    "/sys/class/dmi/id/board_asset_tag",
    "/sys/class/dmi/id/chassis_asset_tag",
)
# Folder → files in each of its entries.
_IN_FOLDERS = {
    "/sys/class/net": ("address",),
    "/sys/class/bluetooth": ("address",),
    "/sys/class/apex": ("unique_id",),
    "/sys/bus/usb/devices": ("serial",),
    "/sys/block": ("serial", "wwid", "device/serial", "device/cid", "device/wwid"),
}
# A shorter value turns up by chance, and says little.
_MIN_VALUE, _MIN_HOST = 6, 3
_MAX_VALUES = 1024
# Whose words are the vendor's: no firmware knows a host's name, and many a host has a board's.
_FIRMWARE = ("/proc/device-tree/", "/sys/firmware/", "/sys/class/dmi/")
# Host names that images come with, and what firmware says where there is no serial number.
_NOBODYS = frozenset(
    {
        *("localhost", "debian", "ubuntu", "raspberrypi", "raspberry", "jetson", "linux"),
        *("armbian", "mendel", "buildroot", "default string", "to be filled by o.e.m."),
        *("not specified", "system serial number", "unknown", "00:00:00:00:00:00"),
    }
)
_FORMS = re.compile(
    rb"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{2}[:-]){5,7}[0-9A-Fa-f]{2}(?![0-9A-Za-z])"  # MAC, EUI-64
    rb"|(?<=/home/)[^/\s\x00]+"
    rb"|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"  # UUID
    # Digests, serial numbers, container ids; a number without letters may be a size.
    rb"|(?<![0-9A-Za-z])(?=[0-9A-Fa-f]*[A-Fa-f])(?=[0-9A-Fa-f]*[0-9])[0-9A-Fa-f]{12,}"
    rb"(?![0-9A-Za-z])"
)
_SERIAL_LINE = re.compile(rb"(?im)^(serial\s*:\s*)(\S.*)$")


class Identifiers:
    """The identifiers of one machine, and their removal."""

    def __init__(self, values: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        """
        Args:
            values: Serial numbers, addresses and unique ids.
            hosts: The host's names.
        """
        everywhere = _distinct(values, _MIN_VALUE)
        named = _distinct((form for host in hosts for form in (host, *host.split("."))), _MIN_HOST)
        self._everywhere = _pattern(everywhere)
        self._beyond_firmware = _pattern([*everywhere, *named])

    def blank(self, path: str, content: bytes) -> bytes:
        """The content of a file with each identifier's letters and digits made `x`."""
        firmware = path.startswith(_FIRMWARE)
        known = self._everywhere if firmware else self._beyond_firmware
        content = known.sub(_crossed_out, content) if known else content
        content = _FORMS.sub(_crossed_out, content)
        return _SERIAL_LINE.sub(lambda found: found[1] + _cross_out(found[2]), content)

    def blank_text(self, text: str) -> str:
        """The same for a path, or any other text."""
        return self.blank("", text.encode("utf-8", "replace")).decode("utf-8", "replace")


def of_machine(tree: Tree) -> Identifiers:
    """Find a machine's identifiers.

    Args:
        tree: One that will not be recorded: it has read them all afterwards.
    """
    values = [tree.text(path) for path in _FILES]
    values += cpuinfo.values(tree, "Serial")
    for folder, files in _IN_FOLDERS.items():
        for entry in tree.names(folder):
            values += [tree.text(f"{folder}/{entry}/{file}") for file in files]
    return Identifiers(values, (tree.text(path) for path in _HOST_NAMES))


def _distinct(values: Iterable[str], shortest: int) -> list[str]:
    """Values without those that say nothing; the longest first, for one may begin another."""
    found = {value.strip().partition("\n")[0].strip() for value in values}
    kept = (v for v in found if shortest <= len(v) <= 256 and v.lower() not in _NOBODYS)
    return sorted(kept, key=lambda value: (-len(value), value))[:_MAX_VALUES]


def _pattern(values: list[str]) -> re.Pattern[bytes] | None:
    if not values:
        return None
    either = b"|".join(re.escape(value.encode("utf-8", "replace")) for value in values)
    return re.compile(rb"(?i)(?<![0-9A-Za-z])(?:" + either + rb")(?![0-9A-Za-z])")


def _crossed_out(found: re.Match[bytes]) -> bytes:
    return _cross_out(found[0])


def _cross_out(text: bytes) -> bytes:
    return re.sub(rb"[0-9A-Za-z\x80-\xff]", b"x", text)
