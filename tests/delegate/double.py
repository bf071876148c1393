"""Builds the stand-in for libedgetpu and controls it, also while another process uses it."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Literal, get_args

import pytest

SOURCE = Path(__file__).with_name("double.c")
# By this name the runtime asks the loader for it.
LIBRARY = "libedgetpu.so.1"
PAGE = 4096

Mode = Literal[
    "works",
    "silent null",
    "null with message",
    "invoke fails",
    "invoke crashes",
    "invoke hangs",
    "create crashes",
    "create hangs",
]
# Of `struct control` in double.c: name → where it stands, how it is packed.
_NUMBERS = (
    *("mode", "unplugged", "exclusive", "fragile", "create_ms", "invoke_us", "fail_after"),
    *("owner", "open", "broken"),
)
_FIELDS = {name: (4 * place, "<i") for place, name in enumerate(_NUMBERS)}
_FIELDS |= {"created": (40, "<q"), "invoked": (48, "<q")}


class Double:
    """A built library with its control page; `folder` is what the loader must look into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library = folder / LIBRARY
        file = os.open(folder / "control", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(file, PAGE)
        self._page = mmap.mmap(file, PAGE)
        os.close(file)
        self.set(fail_after=-1)

    def set(self, mode: Mode | None = None, **numbers: int) -> None:
        """Change what it does; fields that are not named stay."""
        if mode is not None:
            numbers["mode"] = get_args(Mode).index(mode)
        for name, number in numbers.items():
            offset, kind = _FIELDS[name]
            struct.pack_into(kind, self._page, offset, number)

    def get(self, name: str) -> int:
        """One of the numbers, such as `invoked`."""
        offset, kind = _FIELDS[name]
        number: int = struct.unpack_from(kind, self._page, offset)[0]
        return number

    def unplug(self) -> None:
        self.set(unplugged=1)

    def plug(self) -> None:
        self.set("works", unplugged=0, broken=0, fail_after=-1)


def build(folder: Path) -> Double:
    """Compile it into a folder; skip the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler to build the stand-in for libedgetpu")
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{LIBRARY}"]
    target = folder / LIBRARY
    subprocess.run([compiler, *options, "-o", target, SOURCE, "-ldl"], check=True, timeout=60)
    return Double(folder)
