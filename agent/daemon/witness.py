"""Writes evidence as it comes, beside everything else: serving never waits for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from agent import __version__
from agent.control.evidence import Entry
from agent.control.state import DeviceState
from agent.daemon.outbox import rfc3339
from agent.documents.settings import Settings
from agent.errors import StoreError
from agent.store.evidence import EvidenceLog
from agent.store.trust_files import fingerprint

log = logging.getLogger(__name__)

# What waits for a disk that takes nothing; what is beyond is counted.
WAITING_MAX = 256
TRY_AGAIN_S = 30.0


class Witness:
    """Hands entries to the chain on disk in a thread, in order, and tries again for ever.

    Args:
        chain: Where they go.
        wall: Seconds since 1970.
        trouble: Told why the disk takes none; None: it does again.
        try_again_s: How long to wait after a failure.
    """

    def __init__(
        self,
        chain: EvidenceLog,
        *,
        wall: Callable[[], float] = time.time,
        trouble: Callable[[StoreError | None], object] = lambda error: None,
        try_again_s: float = TRY_AGAIN_S,
    ) -> None:
        self._chain = chain
        self._wall = wall
        self._trouble = trouble
        self._try_again_s = try_again_s
        self._waiting: deque[tuple[str, Entry]] = deque()
        self._missed = 0
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()

    def note(self, entries: Iterable[Entry]) -> None:
        """Something happened; it is on disk soon."""
        at = rfc3339(self._wall())
        for entry in entries:
            if len(self._waiting) >= WAITING_MAX:
                self._missed += 1
            else:
                self._waiting.append((at, entry))
            self._wake.set()

    async def run(self, first: Callable[[], Entry]) -> None:
        """Write for ever.

        Args:
            first: Makes the entry that goes before all others; called in a thread.
        """
        self._waiting.appendleft((rfc3339(self._wall()), await asyncio.to_thread(first)))
        self._wake.set()
        failed = False
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.flush()
            except StoreError as error:
                failed = True
                log.error("evidence not written: %s", error)
                self._trouble(error)
                await asyncio.sleep(self._try_again_s)
                self._wake.set()
                continue
            if failed:
                failed = False
                self._trouble(None)

    async def flush(self) -> None:
        """Write what waits.

        Raises:
            StoreError: The disk does not take it; it still waits.
        """
        async with self._writing:
            while self._waiting:
                at, entry = self._waiting[0]
                await asyncio.to_thread(self._chain.append, (entry,), at)
                self._waiting.popleft()
            missed = self._missed
            if missed:
                entry = Entry("missed", count=missed)
                await asyncio.to_thread(self._chain.append, (entry,), rfc3339(self._wall()))
                self._missed -= missed


def started(settings: Settings, state: DeviceState) -> Entry:
    """The line of a start: what serves, and whom the settings trust. Reads the files of `[trust]`.

    A kill between a decision and its line loses the line; this one tells what was decided.
    """
    slots = state.slots.items()
    return Entry(
        "started",
        deployment=state.deployment,
        settings=fingerprint(settings.trust),
        unsigned=settings.trust.unsigned,
        serving={name: entry.serving.pack for name, entry in slots if entry.serving is not None},
        agent=__version__,
    )
