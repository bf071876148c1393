"""The owner of a link in tests: it keeps what it is told, and waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from agent.errors import LinkError, StoreError
from agent.links.api import Owner, Standing

WITHIN_S = 15.0


class Heard:
    """An owner that saves what is desired, unless its disk fails."""

    def __init__(self, disk_fails: bool = False) -> None:
        self.desired: list[bytes] = []
        self.states: list[Standing] = []
        self.thrown_away: list[LinkError] = []
        self.troubles: list[LinkError | None] = []
        self.done: list[tuple[Any, bool, str]] = []
        self.disk_fails = disk_fails
        self._news = asyncio.Event()
        self.owner = Owner(
            desired=self._desired,
            command=print,
            block=print,
            state=self._kept(self.states),
            thrown_away=self._kept(self.thrown_away),
            trouble=self._kept(self.troubles),
        )

    def _kept(self, where: list[Any]) -> Callable[[Any], None]:
        def keep(what: Any) -> None:
            where.append(what)
            self._news.set()

        return keep

    def _desired(self, document: bytes) -> asyncio.Future[None]:
        self._kept(self.desired)(document)
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.disk_fails:
            saved.set_exception(StoreError("the disk is full"))
        else:
            saved.set_result(None)
        return saved

    def on_done(self, what: Any) -> Callable[[bool, str], None]:
        return lambda ok, reason: self._kept(self.done)((what, ok, reason))

    async def until(self, holds: Callable[[], Any]) -> None:
        """Return when something holds; looked at whenever the link tells anything."""

        async def wait() -> None:
            while not holds():
                self._news.clear()
                await self._news.wait()

        await asyncio.wait_for(wait(), WITHIN_S)

    async def phase(self, phase: str) -> Standing:
        await self.until(lambda: self.states and self.states[-1].phase == phase)
        return self.states[-1]
