"""A mosquitto on the loopback, fresh for each system that is measured."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

START_WITHIN_S = 10.0
_SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"


class NoBroker(Exception):
    """There is no mosquitto, or it does not start."""


def find_mosquitto() -> str:
    """The program.

    Raises:
        NoBroker: It is not installed.
    """
    found = shutil.which("mosquitto", path=_SEARCH)
    if found is None:
        raise NoBroker("the benchmark needs mosquitto; on Debian and Ubuntu: apt install mosquitto")
    return found


def mosquitto_version() -> str:
    """Such as `2.0.11`."""
    said = subprocess.run([find_mosquitto(), "-h"], capture_output=True, text=True, check=False)
    words = said.stdout.split()
    return words[2] if len(words) > 2 else "unknown"


def free_port() -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """One run of mosquitto; all settings but one are its defaults.

    Args:
        folder: For its configuration and log.
        no_delay: `set_tcp_nodelay`; false is what an untouched mosquitto does.
    """

    def __init__(self, folder: Path, *, no_delay: bool) -> None:
        self.port = free_port()
        settings = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
            f"set_tcp_nodelay {'true' if no_delay else 'false'}",
        ]
        if os.geteuid() == 0:
            settings.append("user root")  # else it becomes a user that may not be there
        config = folder / "mosquitto.conf"
        config.write_text("\n".join(settings) + "\n")
        with (folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [find_mosquitto(), "-c", str(config)], stdout=log, stderr=log
            )

    def __enter__(self) -> Broker:
        deadline = time.monotonic() + START_WITHIN_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise NoBroker("mosquitto did not start; its log says why") from None
                time.sleep(0.005)
            else:
                return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()
