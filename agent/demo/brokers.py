"""A broker for the demo: mosquitto where it is installed, else the embedded one.

mosquitto keeps sessions and messages over a restart, so the demo restarts it. The embedded broker
(amqtt) keeps nothing for a session that is away; with it the demo pauses the sensors and cuts every
connection instead.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from agent.errors import LinkUnreachable, UsageError

READY_WITHIN_S = 15.0
_PLACES = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"


class DemoBroker(Protocol):
    """A broker on a port of the loopback."""

    name: str
    port: int
    # The MQTT version that the agent speaks with it.
    version: str
    # Whether what is sent while the agent is away waits for it.
    keeps_messages: bool

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def drop(self) -> None:
        """Take the broker away from everybody, and bring it back."""


def find_broker(folder: Path, wanted: str = "auto") -> DemoBroker:
    """Choose the best broker that this machine has; its files lie below `folder`.

    Args:
        wanted: `auto`, `mosquitto` or `embedded`.

    Raises:
        UsageError: mosquitto is wanted and not here.
    """
    program = shutil.which("mosquitto", path=_PLACES) if wanted != "embedded" else None
    if program is None and wanted == "mosquitto":
        raise UsageError("mosquitto is not on this machine", hint="apt install mosquitto")
    return Mosquitto(folder, program) if program is not None else Embedded()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Child:
    """A broker in a process of its own."""

    def __init__(self) -> None:
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        self._process = subprocess.Popen(
            self.command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise LinkUnreachable("the demo's broker did not start")

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 0.2):
                return True
        except OSError:
            # A refused connection comes back at once; waiting on the child paces the questions.
            try:
                assert self._process is not None
                self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                pass
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def drop(self) -> None:
        self.stop()
        self.start()


class Mosquitto(_Child):
    """mosquitto with persistence."""

    version = "auto"
    keeps_messages = True

    def __init__(self, folder: Path, program: str) -> None:
        super().__init__()
        self.name = "mosquitto"
        self._program = program
        self._config = folder / "mosquitto.conf"
        store = folder / "mosquitto"
        store.mkdir(exist_ok=True)
        # Started by root it would become another user, who may not write here.
        user = "user root\n" if os.geteuid() == 0 else ""
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\n{user}"
            f"persistence true\npersistence_location {store}/\n"
            "max_queued_messages 100000\nset_tcp_nodelay true\n"
        )

    def command(self) -> list[str]:
        return [self._program, "-c", str(self._config)]


class Embedded(_Child):
    """amqtt, in a child so that it shares nothing with what it serves."""

    name = "amqtt (embedded, MQTT 3.1.1)"
    version = "3.1.1"
    keeps_messages = False

    def command(self) -> list[str]:
        return [sys.executable, "-m", "agent.demo.embedded", str(self.port)]
