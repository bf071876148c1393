"""libedgetpu as a file and as a device's driver: which one there is, who holds it, what it lacks.

A second process that opens a USB Edge TPU breaks the first one's; a PCIe one is refused without a
word. So one process at a time holds all Edge TPUs of a machine, under an advisory lock (flock) on
the library's own file: that is there wherever the library is, can be read by whoever loads it, and
stays the same when the stick changes its number.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from agent.errors import AcceleratorFailed, RuntimeUnavailable
from agent.runtimes.api import shorten

LIBRARY = "libedgetpu.so.1"
# Before and after the library has given the stick its firmware (its udev rules).
USB_IDS = frozenset((("1a6e", "089a"), ("18d1", "9302")))
VERSION_WITHIN_S = 0.8
LOCK_WITHIN_S = 0.5
_ASK_VERSION = """
import ctypes, sys
ask = ctypes.CDLL(sys.argv[1]).edgetpu_version
ask.restype = ctypes.c_char_p
sys.stdout.buffer.write(ask() or b"")
"""


class Library:
    """The loaded library.

    Raises:
        RuntimeUnavailable: There is none, or it does not load.
    """

    def __init__(self) -> None:
        try:
            # Kept: who may open no file later finds it loaded, by its name.
            self._handle = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise _not_loaded(error) from None
        if not hasattr(self._handle, "tflite_plugin_create_delegate"):
            raise RuntimeUnavailable(
                f"{LIBRARY} has no tflite_plugin_create_delegate, so it is not Google's library",
                hint="install libedgetpu1-std, or a build of feranick/libedgetpu",
            )
        self.path = _loaded_from()
        self._lock = -1
        self._holding = 0

    def digest(self) -> str:
        """Return the first 8 hexadecimal digits of the file's SHA-256."""
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()[:8]
        except OSError:
            return ""

    def version(self) -> str:
        """Return what the library says of itself; nothing where it does not, or not at once.

        Asked in a process of its own: the answer comes from the driver, which may start threads.
        """
        command = [sys.executable, "-I", "-S", "-c", _ASK_VERSION, str(self.path)]
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                command, capture_output=True, check=True, timeout=VERSION_WITHIN_S
            )
            return shorten(done.stdout.decode("utf-8", "replace"))[:128]
        return ""

    def open_lock(self) -> None:
        """Open the lock's file, while this process may still open any."""
        if self._lock < 0:
            self._lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def hold(self) -> None:
        """Become the one process that uses the Edge TPU, or count one more use in it.

        Raises:
            AcceleratorFailed: Another process is that already.
        """
        if not self._holding:
            try:
                self.open_lock()
                self._wait_for_lock()
            except BlockingIOError:
                raise AcceleratorFailed(
                    f"the Edge TPU is held by another process{self._holder()}",
                    hint="stop that one; slots of one agent share an Edge TPU by themselves",
                ) from None
            except OSError as error:
                raise AcceleratorFailed(
                    f"the lock of the Edge TPU cannot be had on {self.path}: {error.strerror}"
                ) from None
        self._holding += 1

    def let_go(self) -> None:
        """Count one use less; after the last, others may have the Edge TPU."""
        self._holding -= 1
        if not self._holding:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _wait_for_lock(self) -> None:
        """Take the lock; one who was just killed may need a moment to end.

        Raises:
            BlockingIOError: Another has it.
        """
        ends = time.monotonic() + LOCK_WITHIN_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise
                time.sleep(LOCK_WITHIN_S / 50)

    def _holder(self) -> str:
        """Name who has the lock, from /proc/locks: `N: FLOCK ADVISORY WRITE PID DEVICE:INODE …`."""
        with suppress(OSError, ValueError):
            inode = f":{os.fstat(self._lock).st_ino}"
            for line in Path("/proc/locks").read_text().splitlines():
                words = line.split()
                if "FLOCK" in words and words[-3].endswith(inode) and int(words[-4]) > 0:
                    return f" ({words[-4]})"
        return ""


def why_none(root: Path = Path("/")) -> str:
    """Say what keeps an Edge TPU from being opened, which the library itself does not tell.

    Args:
        root: In place of `/`, for a recorded device.
    """
    nodes = sorted((root / "dev").glob("apex_*"))
    for folder in (root / "sys/bus/usb/devices").glob("*"):
        ids = tuple(_word(folder / name) for name in ("idVendor", "idProduct"))
        if ids in USB_IDS:
            place = [_word(folder / name).zfill(3) for name in ("busnum", "devnum")]
            nodes.append(root.joinpath("dev/bus/usb", *place))
    if not nodes:
        return "none is plugged in, or its driver is not loaded"
    closed = [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if len(closed) == len(nodes):
        return (
            f"this process may not use {closed[0]}: the udev rules of libedgetpu and the group "
            "plugdev (USB) or apex (PCIe) allow it"
        )
    return (
        "it is there and may be opened, so another program holds it, its number in the option "
        "`device` is wrong, or the stick gets too little power"
    )


def _word(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")[:16]
    except OSError:
        return ""


def _loaded_from() -> Path:
    """Return the file that the loader took, as the kernel has it mapped."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place = line.partition("/")[2]
        if "libedgetpu" in place.rpartition("/")[2]:
            return Path(f"/{place}")
    return Path(LIBRARY)


def _not_loaded(error: OSError) -> RuntimeUnavailable:
    words = shorten(error)
    if LIBRARY in words and "No such file" in words:
        return RuntimeUnavailable(
            f"the Edge TPU's library {LIBRARY} is not on this machine",
            hint="install libedgetpu1-std, or a build of feranick/libedgetpu for this system",
        )
    return RuntimeUnavailable(
        f"the Edge TPU's library does not load: {words}",
        hint="it needs libusb-1.0, and a build for this system",
    )
