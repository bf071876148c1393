"""The store read again while it is in use, by the word of a person on the device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from agent.control.state import DeviceState
from agent.documents.report import Failure
from agent.errors import StoreCorrupt
from agent.store.check import BadPack, Checker, Found, mend, needs_of
from agent.store.files import Files
from agent.store.packs import PackStore

NEXT_FETCH = "fetched again now for what serves, otherwise when it is deployed again"


class _Stopped(Exception):
    """The agent ends; so does a check."""


class Checking:
    """Answers the command `store_check`: the first time it begins, then it tells how far it is.

    Args:
        store: The store of this device.
        root: Where it is.
        state: The state of now.
        damaged: Told of a slot whose pack is damaged, so that it is fetched again; what the slot
            serves goes on.
    """

    def __init__(
        self,
        store: PackStore,
        root: Path,
        *,
        state: Callable[[], DeviceState],
        damaged: Callable[[str, Failure], object],
    ) -> None:
        self._store = store
        self._root = root
        self._state = state
        self._damaged = damaged
        self._task: asyncio.Task[Found] | None = None
        self._done_bytes = self._total_bytes = 0
        self._stopping = False

    async def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `{"repair": false}`.

        Raises:
            StoreError: A folder of the store cannot be listed.
        """
        if self._task is None:
            self._done_bytes = self._total_bytes = 0
            self._task = asyncio.ensure_future(self._run(request.get("repair") is True))
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        if not self._task.done():
            progress = {"done_bytes": self._done_bytes, "total_bytes": self._total_bytes}
            return {"state": "checking", "progress": progress}
        task, self._task = self._task, None
        return {"state": "checked", "found": msgspec.to_builtins(task.result())}

    async def close(self) -> None:
        """End a check that runs."""
        self._stopping = True
        if self._task is not None:
            with suppress(Exception):
                await self._task

    async def _run(self, repair: bool) -> Found:
        checker = Checker(Files(), self._root, self._store, self._told)
        found = await asyncio.to_thread(checker.look, needs_of(self._state()))
        if not repair:
            return found
        needs = needs_of(self._state())
        found = await asyncio.to_thread(mend, self._store, found, needs, NEXT_FETCH)
        for bad in found.bad_packs:
            self._tell(bad)
        return found

    def _tell(self, bad: BadPack) -> None:
        failure = Failure(
            StoreCorrupt.code,
            f"pack {bad.pack}: altered on disk, as a check of the store has found",
            "it is fetched again; if this repeats, check the storage medium",
            retryable=True,
        )
        for name, entry in self._state().slots.items():
            if bad.done and entry.serving is not None and entry.serving.pack == bad.pack:
                self._damaged(name, failure)

    def _told(self, done_bytes: int, total_bytes: int) -> None:
        self._done_bytes, self._total_bytes = done_bytes, total_bytes
        if self._stopping:
            raise _Stopped
