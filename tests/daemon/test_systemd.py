"""What systemd is told."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.daemon.systemd import MAX_STATUS_CHARACTERS, Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def test_a_status_from_afar_is_one_line_and_no_instruction(systemd: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname()})
    notifier.status("refused: x\nMAINPID=1\nWATCHDOG=trigger" + "y" * 10_000)
    told = systemd.recv(65536)
    assert told.startswith(b"STATUS=refused: x\\nMAINPID=1\\nWATCHDOG=trigger")
    assert b"\n" not in told
    assert len(told.decode()) <= MAX_STATUS_CHARACTERS + len("STATUS=")


@pytest.mark.parametrize(
    ("environment", "every_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_signs_of_life_come_twice_as_often_as_asked(
    environment: dict[str, str], every_s: float | None
) -> None:
    assert Notifier(environment).watchdog_every_s == every_s
