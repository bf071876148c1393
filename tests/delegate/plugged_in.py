"""`edgeward run` on this machine with an Edge TPU in a USB port, as far as its files tell:
`--config FILE`. Its library is looked for as always, so LD_LIBRARY_PATH can name a double's. The
port is empty as long as a file is there that STICK_AWAY names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from agent.cli.configuration import load_settings
from agent.daemon import app, here
from agent.device.tree import Folder

_STICK = "/sys/bus/usb/devices/9-1"
_NODE = "/dev/bus/usb/009/042"
_FILES = {
    f"{_STICK}/idVendor": b"18d1\n",
    f"{_STICK}/idProduct": b"9302\n",
    f"{_STICK}/busnum": b"9\n",
    f"{_STICK}/devnum": b"42\n",
    f"{_STICK}/speed": b"5000\n",
}


_AWAY = Path(os.environ.get("STICK_AWAY", "/nowhere"))


class WithStick(Folder):
    """The machine's files and those of the stick."""

    def read(self, path: str, most: int) -> bytes:
        return _FILES[path] if path in _FILES else super().read(path, most)

    def names(self, path: str, most: int) -> list[str]:
        if path != "/sys/bus/usb/devices" or _AWAY.exists():
            return super().names(path, most)
        try:
            return ["9-1", *super().names(path, most - 1)]
        except OSError:
            return ["9-1"]

    def check(self, path: str, *, use: bool) -> None:
        if path != _NODE and path not in _FILES:
            super().check(path, use=use)


def main() -> int:
    found: dict[str, Any] = vars(here)
    found["Folder"] = WithStick
    return app.main(load_settings(Path(sys.argv[sys.argv.index("--config") + 1])))


if __name__ == "__main__":
    sys.exit(main())
