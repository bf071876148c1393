"""Asking the agent of this machine over its local socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.documents.settings import Settings
from agent.errors import LinkError, LinkRefused, LinkUnreachable
from agent.links import local


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """A peer that takes one request and gives one answer."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with local.address_of(path) as address:
            listener.bind(address)
        listener.listen()
        listener.settimeout(10)

        def serve() -> None:
            channel, _ = listener.accept()
            with channel, channel.makefile("rb") as lines:
                asked.append(lines.readline())
                channel.sendall(answer)

        peer = threading.Thread(target=serve)
        peer.start()
        yield asked
        peer.join(timeout=10)


def test_one_line_out_one_line_back(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with answering(path, b'{"agent":"1"}\n') as asked:
        assert local.ask(path, {"command": "status"}) == {"agent": "1"}
    assert asked == [b'{"command":"status"}\n']


def test_a_path_longer_than_the_kernel_allows_works(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    path = folder / "agent.sock"
    with answering(path, b"{}\n"):
        assert local.ask(path, {"command": "status"}) == {}


def test_a_large_answer_arrives_whole(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with answering(path, b'{"a":"' + b"x" * 500_000 + b'"}\n'):
        assert len(local.ask(path, {})["a"]) == 500_000


def test_nobody_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LinkUnreachable, match=r"no agent listens at .*edgeward run"):
        local.ask(tmp_path / "none.sock", {})


def test_a_stale_socket_is_nobody(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
    with pytest.raises(LinkUnreachable, match="no agent listens"):
        local.ask(tmp_path / "s", {})


def test_silence_ends_at_the_deadline(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(LinkUnreachable, match=r"no answer for 0\.05 s"):
            local.ask(tmp_path / "s", {}, timeout_s=0.05)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every socket")
def test_a_socket_of_another_user_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        (tmp_path / "s").chmod(0)
        with pytest.raises(LinkRefused, match="may not open"):
            local.ask(tmp_path / "s", {})


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b"[1]\n", b"\xff\n"])
def test_an_answer_that_is_no_object_is_named(tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path / "s", answer), pytest.raises(LinkError, match="one line with a JSON"):
        local.ask(tmp_path / "s", {})


def test_where_the_agent_listens() -> None:
    plain = Settings(device_id="d", state_dir="/var/lib/e")
    assert local.socket_path(plain, {}) == Path("/var/lib/e/agent.sock")
    runtime = {"RUNTIME_DIRECTORY": "/run/e:/run/f"}
    assert local.socket_path(plain, runtime) == Path("/run/e/agent.sock")
    named = Settings(device_id="d", socket="/tmp/x.sock")
    assert local.socket_path(named, runtime) == Path("/tmp/x.sock")


def test_a_person_finds_the_socket_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SERVICE_FOLDER", tmp_path / "run")
    settings = Settings(device_id="d", state_dir=str(tmp_path))
    assert local.find_socket(settings, {}) == tmp_path / "agent.sock"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "agent.sock").touch()
    assert local.find_socket(settings, {}) == tmp_path / "run" / "agent.sock"
    (tmp_path / "agent.sock").touch()
    assert local.find_socket(settings, {}) == tmp_path / "agent.sock"
