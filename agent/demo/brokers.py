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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.errors import LinkUnreachable, UsageError

READY_WITHIN_S = 15.0
_PLACES = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"


@dataclass
class DemoBroker:
    """A broker in a process of its own, on a port of the loopback.

    Args:
        name: What people call it.
        port: Where it listens.
        command: What starts it.
        version: The MQTT version that the agent speaks with it.
        keeps_messages: Whether what is sent while the agent is away waits for it.
    """

    name: str
    port: int
    command: Sequence[str]
    version: str
    keeps_messages: bool
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._listens(self._process):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise LinkUnreachable("the demo's broker did not start")

    def _listens(self, process: subprocess.Popen[bytes]) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 0.2):
                return True
        except OSError:
            # A refused connection comes back at once; waiting on the child paces the questions.
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
            return False

    def stop(self) -> None:
        if self._process is not None:
            end(self._process, within_s=10)
            self._process = None

    def drop(self) -> None:
        """Take the broker away from everybody, and bring it back."""
        self.stop()
        self.start()


def end(process: subprocess.Popen[bytes], *, within_s: float) -> None:
    """Ask a process to end, and kill it when it takes too long."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
    return _mosquitto(folder, program) if program is not None else _embedded()


def _mosquitto(folder: Path, program: str) -> DemoBroker:
    """mosquitto with persistence."""
    port, config, store = _free_port(), folder / "mosquitto.conf", folder / "mosquitto"
    store.mkdir(exist_ok=True)
    # Started by root it would become another user, who may not write here.
    user = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\n{user}"
        f"persistence true\npersistence_location {store}/\n"
        "max_queued_messages 100000\nset_tcp_nodelay true\n"
    )
    return DemoBroker("mosquitto", port, [program, "-c", str(config)], "auto", True)


def _embedded() -> DemoBroker:
    """amqtt, in a child so that it shares nothing with what it serves."""
    port = _free_port()
    command = [sys.executable, "-m", "agent.demo.embedded", str(port)]
    return DemoBroker("amqtt (embedded, MQTT 3.1.1)", port, command, "3.1.1", False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
