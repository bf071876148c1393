"""Real brokers for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
MOSQUITTO = (
    None if os.environ.get("TEST_BROKER") == "embedded" else shutil.which("mosquitto", path=_SEARCH)
)
START_WITHIN_S = 10.0


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
class Mosquitto:
    """A mosquitto of its own on free ports of the loopback.

    Args:
        folder: For its configuration, log and database.
        settings: Lines of mosquitto.conf for all listeners.
        users: Names and passwords; none: anybody may connect.
        acl: Lines of an access list.
        persistent: It keeps sessions and retained messages over a restart.
        websockets: It also listens for WebSocket, on `ws_port`; with `tls` on `wss_port` too.
        tls: Folder with `ca.pem`, `server.pem` and `server.key`; it also listens on `tls_port`.
        mutual_tls: It asks for a client certificate there.
    """

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

    @property
    def log(self) -> str:
        return (self.folder / "mosquitto.log").read_text(errors="replace")

    def start(self) -> Mosquitto:
        """Start it, or skip the test where there is none; ports stay the same over restarts."""
        if MOSQUITTO is None:
            pytest.skip("mosquitto is not installed (apt install mosquitto)")
        self.port = self.port or free_port()
        self.tls_port = self.tls_port or free_port()
        self.ws_port = self.ws_port or free_port()
        self.wss_port = self.wss_port or free_port()
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(self._config()) + "\n")
        with (self.folder / "mosquitto.log").open("ab") as log:
            # In its own folder: some settings make it write where it stands.
            self.process = subprocess.Popen(
                [MOSQUITTO, "-v", "-c", str(config)], stdout=log, stderr=log, cwd=self.folder
            )
        for port, used in (
            (self.port, True),
            (self.tls_port, self.tls is not None),
            (self.ws_port, self.websockets),
            (self.wss_port, self.websockets and self.tls is not None),
        ):
            if used:
                wait_for_port(port, self.process, START_WITHIN_S)
        return self

    def stop(self, sign: int = signal.SIGTERM) -> None:
        """Stop it; on SIGTERM it saves first what it persists."""
        if self.process is not None:
            self.process.send_signal(sign)
            self.process.wait(timeout=START_WITHIN_S)
            self.process = None

    def restart(self, sign: int = signal.SIGTERM) -> None:
        """Stop it and start it on the same ports."""
        self.stop(sign)
        self.start()

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
