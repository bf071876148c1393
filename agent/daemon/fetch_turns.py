"""Lets fetches run when the settings and each other's urgency allow it; the rules are in
`agent.control.traffic`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from agent.control.traffic import Hold, Surroundings, Turn, judge, may_run, share_of
from agent.documents.settings import FetchSettings
from agent.errors import FetchPostponed

LOOK_EVERY_S = 15.0
# A clock that says less was never set: 2025-01-01.
CLOCK_SET_FROM_S = 1_735_689_600.0
HTTP = ("http", "https")
LOCAL = ("", "file", "load")


class Entry:
    """One fetch that runs or would like to."""

    def __init__(self, scheme: str, began: float) -> None:
        self.scheme = scheme
        self.began = began
        self.urgent = False
        self.news = asyncio.Event()

    @property
    def local(self) -> bool:
        return self.scheme in LOCAL


class Turns:
    """All fetches of a device."""

    def __init__(
        self,
        settings: FetchSettings,
        *,
        wall: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            wall: Seconds since 1970.
            now: Monotonic seconds.
        """
        self._settings = settings
        self._wall = wall
        self._now = now
        self._metered = False
        self._entries: list[Entry] = []

    def metered(self, on: bool) -> None:
        """Somebody says whether each byte costs money now."""
        self._metered = on
        self.look()

    def look(self) -> None:
        """Decide again for every fetch: something is another now."""
        for entry in self._entries:
            entry.news.set()

    @contextmanager
    def entered(self, scheme: str) -> Iterator[Entry]:
        """Take part for as long as a fetch goes on."""
        entry = Entry(scheme, self._now())
        self._entries.append(entry)
        self.look()
        try:
            yield entry
        finally:
            self._entries.remove(entry)
            self.look()

    async def run(self, entry: Entry, work: Callable[[int], Awaitable[None]]) -> None:
        """Do some work whenever it may be done; it is cancelled and done again where it may not,
        or with another limit.

        Args:
            entry: Whose work it is.
            work: Takes the limit, in KiB a second, or 0.

        Raises:
            FetchPostponed: The settings say: not now.
        """
        while True:
            kib_s = self._may(entry)
            if kib_s is None:
                await self._news(entry)
                continue
            task = asyncio.ensure_future(work(kib_s))
            task.add_done_callback(lambda _: entry.news.set())
            try:
                while not task.done() and self._may(entry) == kib_s:
                    await self._news(entry)
            finally:
                await _end(task)
            if not task.cancelled():
                return task.result()

    def _may(self, entry: Entry) -> int | None:
        """The limit of a fetch, 0 for none; None while another goes first."""
        turns = {id(other): self._turn(other) for other in self._entries}
        if entry.local:
            return 0
        verdict = judge(self._settings, self._here())
        if isinstance(verdict, Hold):
            raise FetchPostponed(verdict.reason, hint=verdict.hint)
        run = [e for e in self._entries if may_run(turns[id(e)], turns.values())]
        if entry not in run:
            return None
        if entry.scheme not in HTTP:
            return 0
        return share_of(verdict.max_kib_s, sum(e.scheme in HTTP for e in run))

    def _turn(self, entry: Entry) -> Turn:
        return Turn(entry.urgent, entry.local, self._now() - entry.began)

    def _here(self) -> Surroundings:
        seconds = self._wall()
        local = time.localtime(seconds)
        known = seconds >= CLOCK_SET_FROM_S
        minute = local.tm_hour * 60 + local.tm_min if known else None
        return Surroundings(minute, self._metered)

    async def _news(self, entry: Entry) -> None:
        # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes with news.
        timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, entry.news.set)
        try:
            await entry.news.wait()
        finally:
            timer.cancel()
        entry.news.clear()


async def _end(task: asyncio.Future[None]) -> None:
    """Cancel what still runs, and wait until it has let go of everything."""
    cancelled: asyncio.CancelledError | None = None
    task.cancel()
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if not task.cancelled():
        task.exception()  # whatever ends it otherwise is told by whoever ends it
    if cancelled is not None:
        raise cancelled
