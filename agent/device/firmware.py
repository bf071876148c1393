"""The Raspberry Pi firmware's word on power and heat, asked as `vcgencmd get_throttled` does."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

_NODE = "/dev/vcio"
# _IOWR(100, 0, char *): the size of a pointer is part of the number.
_PROPERTY = 0xC0006400 | struct.calcsize("P") << 16
_GET_THROTTLED = 0x00030046
# Bits of the word (documentation of `vcgencmd get_throttled`); 16 higher: since the machine booted.
UNDERVOLTAGE = 0
THROTTLES = {1: "ARM clock capped", 2: "throttled", 3: "soft temperature limit"}
SINCE_BOOT = 16


def throttle_word() -> int | None:
    """Ask the firmware; None where there is none, or where we may not (group `video`)."""
    try:
        if not stat.S_ISCHR(Path(_NODE).stat().st_mode):
            return None
        descriptor = os.open(_NODE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        from fcntl import ioctl

        message = request()
        ioctl(descriptor, _PROPERTY, message)
        return struct.unpack_from("=7I", message)[5]  # type: ignore[no-any-return]
    except OSError:
        return None
    finally:
        os.close(descriptor)


def request() -> bytearray:
    """The message that asks: size, request, tag, size of value, 0, value, end.

    A bit set in the value would ask the firmware to forget that bit's history, for all readers.
    """
    return bytearray(struct.pack("=7I", 28, 0, _GET_THROTTLED, 4, 0, 0, 0))
