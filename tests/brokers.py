"""Real brokers for tests: mosquitto, or where there is none the one that the demo has with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

_SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
MOSQUITTO = (
    None if os.environ.get("TEST_BROKER") == "embedded" else shutil.which("mosquitto", path=_SEARCH)
)
START_WITHIN_S = 10.0
# What a test may need beyond MQTT 3.1.1 on a port → why it cannot be had of the embedded broker.
LACKS = {
    "sessions": "keeps nothing for a client that is away, nor over a restart",
    "mqtt5": "speaks MQTT 3.1.1 only",
    "tls": "is started without TLS",
    "websockets": "is started without WebSocket",
    "users": "is started without passwords and rights",
    "settings": "takes no settings",
}
# What the reason of every such skip begins with.
LEFT_OUT = "the embedded broker "


def need(*what: str) -> None:
    """Skip the test where its broker lacks something of `LACKS`."""
    lacking = [LACKS[name] for name in what]
    if MOSQUITTO is None and lacking:
        pytest.skip(LEFT_OUT + lacking[0])


def free_port() -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes], within_s: float) -> None:
    """Return when something accepts connections; fail when the process ends before."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=0.01)
            raise RuntimeError(f"the broker ended with status {code} before it listened")
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing listened on port {port} within {within_s} s")


@dataclass
class LocalBroker:
    """A broker of its own on free ports of the loopback: mosquitto, or the embedded one.

    Args:
        folder: For its configuration, log and database.
        settings: Lines of mosquitto.conf for all listeners.
        users: Names and passwords; none: anybody may connect.
        acl: Lines of an access list.
        persistent: It keeps sessions and retained messages over a restart, if it can.
        websockets: It also listens for WebSocket, on `ws_port`; with `tls` on `wss_port` too.
        tls: Folder with `ca.pem`, `server.pem` and `server.key`; it also listens on `tls_port`.
        mutual_tls: It asks for a client certificate there.
    """

    # How many were started so far in this process, and how many of them run.
    starts: ClassVar[int] = 0
    alive: ClassVar[int] = 0

    folder: Path
    settings: tuple[str, ...] = ()
    users: dict[str, str] = field(default_factory=dict)
    acl: tuple[str, ...] = ()
    persistent: bool = False
    websockets: bool = False
    tls: Path | None = None
    mutual_tls: bool = False
    port: int = 0
    tls_port: int = 0
    ws_port: int = 0
    wss_port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        return f"mqtts://localhost:{self.tls_port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.ws_port}/mqtt"

    @property
    def wss_url(self) -> str:
        return f"wss://localhost:{self.wss_port}/mqtt"

    def start(self) -> LocalBroker:
        """Start it, or skip the test that needs more; ports stay the same over restarts."""
        need(*self._needs())
        self.port = self.port or free_port()
        self.tls_port = self.tls_port or free_port()
        self.ws_port = self.ws_port or free_port()
        self.wss_port = self.wss_port or free_port()
        command = self._embedded() if MOSQUITTO is None else self._mosquitto(MOSQUITTO)
        with (self.folder / "broker.log").open("ab") as log:
            # In its own folder: some settings make it write where it stands.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        for port, used in (
            (self.port, True),
            (self.tls_port, self.tls is not None),
            (self.ws_port, self.websockets),
            (self.wss_port, self.websockets and self.tls is not None),
        ):
            if used:
                wait_for_port(port, self.process, START_WITHIN_S)
        LocalBroker.starts += 1
        LocalBroker.alive += 1
        return self

    def stop(self, sign: int = signal.SIGTERM) -> None:
        """Stop it; on SIGTERM it saves first what it persists."""
        if self.process is not None:
            self.process.send_signal(sign)
            self.process.wait(timeout=START_WITHIN_S)
            self.process = None
            LocalBroker.alive -= 1

    def restart(self, sign: int = signal.SIGTERM) -> None:
        """Stop it and start it on the same ports."""
        self.stop(sign)
        self.start()

    def _needs(self) -> Iterator[str]:
        asked = {
            "settings": self.settings,
            "users": self.users or self.acl,
            "tls": self.tls,
            "websockets": self.websockets,
        }
        return (name for name, value in asked.items() if value)

    def _embedded(self) -> list[str]:
        return [sys.executable, "-m", "agent.demo.embedded", str(self.port)]

    def _mosquitto(self, program: str) -> list[str]:
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(self._config()) + "\n")
        return [program, "-v", "-c", str(config)]

    def _config(self) -> Iterator[str]:
        # As root it would drop to a user that cannot write here.
        yield "user root"
        yield from self.settings
        yield f"allow_anonymous {'false' if self.users else 'true'}"
        if self.users:
            yield f"password_file {self._password_file()}"
        if self.acl:
            path = self.folder / "acl"
            path.write_text("\n".join(self.acl) + "\n")
            path.chmod(0o600)
            yield f"acl_file {path}"
        if self.persistent:
            yield "persistence true"
            yield f"persistence_location {self.folder}/"
            yield "max_queued_messages 100000"
        yield f"listener {self.port} 127.0.0.1"
        if self.tls is not None:
            yield f"listener {self.tls_port} 127.0.0.1"
            yield from self._tls(self.tls)
        if self.websockets:
            yield f"listener {self.ws_port} 127.0.0.1"
            yield "protocol websockets"
        if self.websockets and self.tls is not None:
            yield f"listener {self.wss_port} 127.0.0.1"
            yield "protocol websockets"
            yield from self._tls(self.tls)

    def _tls(self, folder: Path) -> Iterator[str]:
        yield f"cafile {folder / 'ca.pem'}"
        yield f"certfile {folder / 'server.pem'}"
        yield f"keyfile {folder / 'server.key'}"
        yield f"require_certificate {'true' if self.mutual_tls else 'false'}"

    def _password_file(self) -> Path:
        path = self.folder / "passwords"
        path.write_text("".join(f"{name}:{word}\n" for name, word in self.users.items()))
        path.chmod(0o600)
        subprocess.run(["mosquitto_passwd", "-U", str(path)], check=True, capture_output=True)
        return path
