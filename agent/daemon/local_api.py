"""The local socket's server: one JSON line in, one JSON line out, for the right user only."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import AgentError, UsageError
from agent.links.local import MAX_REQUEST_BYTES, address_of

log = logging.getLogger(__name__)

REQUEST_DEADLINE_S = 5.0
MAX_CONNECTIONS = 16
_PEER = struct.Struct("3i")

Handler = Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]]


class LocalApi:
    """Answers `{"command": NAME, …}` on a Unix socket of mode 0600.

    The kernel tells who is at the other end (SO_PEERCRED, unix(7)): the agent's own user and root
    may ask, whatever the socket's mode became.
    """

    def __init__(
        self, path: Path, commands: Mapping[str, Handler], here: Mapping[str, Handler] | None = None
    ) -> None:
        """
        Args:
            commands: By name; also for who asks over the link.
            here: By name; only for who asks on this socket.
        """
        self._path = path
        self._commands = commands
        self._here = {**commands, **(here or {})}
        self._server: asyncio.AbstractServer | None = None
        self._open = 0

    async def start(self) -> None:
        """Listen; a socket left behind by a dead agent is replaced (the state lock is ours).

        Where none can be made, as on a read-only disk, the agent goes on without: it must serve.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._bind(sock)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=sock, limit=MAX_REQUEST_BYTES
            )
        except OSError as error:
            sock.close()
            log.error("nobody can ask at %s: %s", self._path, error.strerror or error)

    def _bind(self, sock: socket.socket) -> None:
        with suppress(FileNotFoundError):
            self._path.unlink()
        before = os.umask(0o177)
        try:
            with address_of(self._path) as address:
                sock.bind(address)
        finally:
            os.umask(before)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            with suppress(OSError):
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._open >= MAX_CONNECTIONS or not _may_ask(writer):
                return
            self._open += 1
            try:
                line = await asyncio.wait_for(reader.readline(), REQUEST_DEADLINE_S)
                answer = await _answer(line, self._here)
                writer.write(msgspec.json.encode(answer) + b"\n")
                await asyncio.wait_for(writer.drain(), REQUEST_DEADLINE_S)
            finally:
                self._open -= 1
        except (asyncio.TimeoutError, ConnectionError, ValueError) as error:
            log.debug("a local request ended early: %s", error)
        finally:
            writer.close()

    async def answer(self, line: bytes) -> Mapping[str, Any]:
        """Answer one request that came over the link; an error is an answer too."""
        return await _answer(line, self._commands)


async def _answer(line: bytes, commands: Mapping[str, Handler]) -> Mapping[str, Any]:
    try:
        request = msgspec.json.decode(line, type=dict[str, Any])
        name = request.get("command")
        handler = commands.get(name) if isinstance(name, str) else None
        if handler is None:
            raise UsageError(f"no command {name!r}", hint=f"known: {', '.join(sorted(commands))}")
        return await handler(request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return {"error": {"code": "usage", "message": f"not a JSON object: {error}"}}
    except AgentError as error:
        return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def _may_ask(writer: asyncio.StreamWriter) -> bool:
    sock = writer.get_extra_info("socket")
    _pid, uid, _gid = _PEER.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    )
    return uid in (0, os.geteuid())
