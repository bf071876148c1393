"""Calls of the kernel that Python has no name for, by way of the C library."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Callable

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


class LayerUnavailable(Exception):
    """A layer of the confinement cannot be had here; the process is of no use any more.

    Attributes:
        layer: Its name.
        reason: What the kernel said to which step.
    """

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"{layer}: {reason}")
        self.layer = layer
        self.reason = reason


def check(result: int, step: str) -> int:
    """Return what a call returned.

    Raises:
        OSError: It failed; `strerror` is of the form `step: reason`.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
    return result


def syscall(number: int, step: str, *arguments: object) -> int:
    """Make a system call that the C library may have no function for.

    Raises:
        OSError: It failed.
    """
    return check(libc.syscall(ctypes.c_long(number), *arguments), step)


def prctl(option: int, value: int) -> None:
    """Change an attribute of this process.

    Raises:
        OSError: It failed.
    """
    check(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def drop_capabilities() -> None:
    """Give up every capability: a new user namespace comes with all of them inside it."""
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0))
    check(libc.capset(header, ctypes.create_string_buffer(24)), "capset")


def machine() -> str:
    """Return whose numbers of system calls hold: a 32-bit program has others than its kernel."""
    name = platform.machine()
    return name if struct.calcsize("P") == 8 or name not in ("x86_64", "aarch64") else "armv7l"


def is_denied(attempt: Callable[[], object]) -> bool:
    """Whether the kernel refuses an attempt."""
    try:
        attempt()
    except OSError:
        return True
    return False
