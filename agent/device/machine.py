"""What no file says: what this process is, and what the kernel tells only it.

A recording carries these values, so that a board can be looked at on another machine.
"""

from __future__ import annotations

import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.device.firmware import throttle_word
from agent.device.tree import short
from agent.documents.names import Natural, ShortText

# A 32-bit interpreter under a 64-bit kernel is told the kernel's architecture.
_NARROW = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686", "riscv64": "riscv32"}
_MAX_MOUNTS_BYTES = 256 * 1024


class Disk(msgspec.Struct, frozen=True, omit_defaults=True):
    """The file system of the state directory.

    Attributes:
        device: `MAJOR:MINOR` of what it lies on; nothing where that is no block device.
        kind: Of the file system, such as `ext4`, `overlay`, `tmpfs`.
        free_bytes: Free for us.
        free_inodes: The same.
        read_only: It takes nothing.
    """

    device: ShortText = ""
    kind: ShortText = ""
    free_bytes: Natural = 0
    free_inodes: Natural = 0
    read_only: bool = False


class Machine(msgspec.Struct, frozen=True, omit_defaults=True):
    """The values.

    Attributes:
        architecture: Of user space: `x86_64`, `aarch64`, `armv7l` …
        kernel_architecture: Of the kernel.
        kernel: Its release.
        libc: `glibc 2.36`, `musl`.
        python: The interpreter's version.
        page_bytes: Of memory pages.
        cpus_allowed: Processors that this process may run on.
        disk: The file system of the state directory.
        throttled: The Raspberry Pi firmware's word on power and heat, where it gave one.
    """

    architecture: ShortText = ""
    kernel_architecture: ShortText = ""
    kernel: ShortText = ""
    libc: ShortText = ""
    python: ShortText = ""
    page_bytes: Natural = 0
    cpus_allowed: Natural = 0
    disk: Disk = Disk()
    throttled: Natural | None = None


def from_here(state_dir: Path = Path("/")) -> Machine:
    """The values of this process.

    Args:
        state_dir: Whose file system matters; it need not exist yet.
    """
    uname = os.uname()
    return Machine(
        architecture=short(user_space(uname.machine, struct.calcsize("P") * 8)),
        kernel_architecture=short(uname.machine),
        kernel=short(uname.release),
        libc=short(_libc()),
        python=".".join(map(str, sys.version_info[:3])),
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
        cpus_allowed=len(os.sched_getaffinity(0)),
        disk=_disk(state_dir.absolute()),
        throttled=throttle_word(),
    )


def user_space(kernel_architecture: str, bits: int) -> str:
    """The architecture that wheels must have, of an interpreter with pointers of so many bits."""
    if bits == 32:
        return _NARROW.get(kernel_architecture, kernel_architecture)
    return kernel_architecture


def _libc() -> str:
    with suppress(ValueError, OSError):
        found = os.confstr("CS_GNU_LIBC_VERSION")
        if found:
            return found
    return "musl" if any(Path("/lib").glob("ld-musl-*")) else ""


def _disk(path: Path) -> Disk:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        system, number = os.statvfs(path), path.stat().st_dev
    except OSError:
        return Disk()
    device = f"{os.major(number)}:{os.minor(number)}"
    kind, source = _mount(device)
    if os.major(number) == 0:
        # btrfs and others have a number of their own; what they are mounted from has the disk's.
        device = _block_device(source)
    return Disk(
        device=device,
        kind=short(kind),
        free_bytes=system.f_bavail * system.f_frsize,
        free_inodes=system.f_favail,
        read_only=bool(system.f_flag & os.ST_RDONLY),
    )


def _block_device(source: str) -> str:
    with suppress(OSError, ValueError):
        number = Path(source).stat().st_rdev if source.startswith("/dev/") else 0
        if number:
            return f"{os.major(number)}:{os.minor(number)}"
    return ""


def _mount(device: str) -> tuple[str, str]:
    """Kind and source of the mounted file system with a device number (proc(5), mountinfo)."""
    try:
        with Path("/proc/self/mountinfo").open("rb") as file:
            lines = file.read(_MAX_MOUNTS_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [device]:
            kind, source, *_ = [*after.split(), "", ""]
            return kind, source
    return "", ""
