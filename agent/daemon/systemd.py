"""Readiness and watchdog messages to systemd (sd_notify(3)); nothing where it did not start us."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

from agent.documents.text import printable

MAX_STATUS_CHARACTERS = 500


class Notifier:
    """Sends state lines to the socket that `NOTIFY_SOCKET` names."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # An address that begins with @ is in the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watchdog_us = environment.get("WATCHDOG_USEC", "")
        self._watchdog_us = int(watchdog_us) if watchdog_us.isdecimal() else 0
        pid = environment.get("WATCHDOG_PID", "")
        if pid and pid != str(os.getpid()):
            self._watchdog_us = 0

    @property
    def watchdog_every_s(self) -> float | None:
        """Half the time that systemd allows between two signs of life, or None."""
        return self._watchdog_us / 2e6 if self._watchdog_us else None

    def ready(self) -> None:
        self._send(b"READY=1")

    def status(self, text: str) -> None:
        # A line end in it would begin an instruction to systemd.
        self._send(b"STATUS=" + printable(text, MAX_STATUS_CHARACTERS).encode())

    def alive(self) -> None:
        self._send(b"WATCHDOG=1")

    def stopping(self) -> None:
        self._send(b"STOPPING=1")

    def _send(self, line: bytes) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(line, self._address)
