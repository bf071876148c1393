"""A TCP proxy that misbehaves on command: it cuts, delays, truncates, repeats, falls silent."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["up", "down"]
_PIECE = 65_536


@dataclass
class Faults:
    """What goes wrong; may be changed at any time.

    Args:
        cut_after: Called for each new connection and direction; that many bytes pass, then both
            sides are cut off, mid-packet as it may be.
        delay_s: Each piece waits so long.
        repeat: Chance that a piece is passed on twice, as no network may do.
        silent: Nothing passes, and nobody is told.
        refuse: New connections are closed at once.
    """

    cut_after: Callable[[Direction], int | None] = lambda direction: None
    delay_s: float = 0.0
    repeat: float = 0.0
    silent: bool = False
    refuse: bool = False
    chance: random.Random = field(default_factory=lambda: random.Random(1))


class FaultProxy:
    """Listens on a free port of the loopback and passes on to another."""

    def __init__(self, target_port: int, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.port = 0
        self.connections = 0
        self.cuts = 0
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._speaks = asyncio.Event()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Reset all connections, both sides."""
        self.cuts += bool(self._writers)
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.faults.refuse:
            writer.transport.abort()
            return
        try:
            back, out = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        mine = {writer, out}
        self._writers |= mine
        passing = {
            asyncio.ensure_future(self._pass(reader, out, "up")),
            asyncio.ensure_future(self._pass(back, writer, "down")),
        }
        try:
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # the loop ends; asyncio's streams would call this an error
        finally:
            for task in passing:
                task.cancel()
            for end in mine:
                end.transport.abort()
            self._writers -= mine

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        left = self.faults.cut_after(direction)
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                if self.faults.silent:
                    continue
                if self.faults.delay_s:
                    await asyncio.sleep(self.faults.delay_s)
                if left is not None:
                    piece, left = piece[:left], left - len(piece)
                writer.write(piece)
                if self.faults.chance.random() < self.faults.repeat:
                    writer.write(piece)
                await writer.drain()
                if left is not None and left <= 0:
                    self.cuts += 1
                    return
