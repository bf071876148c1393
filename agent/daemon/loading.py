"""Packs from a folder that a person on the device names, into the store, for a later deployment."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from msgspec.structs import replace

from agent.daemon.fetch import Fetcher
from agent.daemon.fetch_child import ChildSource
from agent.daemon.fetch_source import Source
from agent.documents.settings import Settings
from agent.errors import UsageError

# Loads that run, or whose end nobody has asked for.
MAX_LOADS = 8


class _Load:
    """One folder on its way into the store."""

    def __init__(self) -> None:
        self.pack = ""
        self.done_bytes = self.total_bytes = 0
        self.task: asyncio.Task[None] | None = None

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        self.done_bytes, self.total_bytes = done_bytes, total_bytes

    def told(self, path: str) -> dict[str, Any]:
        """How it stands.

        Raises:
            AgentError: It has failed.
        """
        assert self.task is not None
        if self.task.done():
            self.task.result()
        return {
            "path": path,
            "state": "loaded" if self.task.done() else "loading",
            "pack": self.pack,
            "progress": {"done_bytes": self.done_bytes, "total_bytes": self.total_bytes},
        }


class Loading:
    """Answers the command `load`: the first time it begins, then it tells how far it is.

    It goes the way of a deployment's `file:` source (`agent.daemon.fetch_file`): a process of its
    own, nothing outside the folder, no symbolic link, every digest checked. A person on the device
    names the folder, so `fetch.roots` does not matter.
    """

    def __init__(self, fetcher: Fetcher, settings: Settings) -> None:
        self._fetcher = fetcher
        self._settings = settings
        self._loads: dict[str, _Load] = {}

    async def load(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `{"path": FOLDER}`.

        Raises:
            UsageError: That is no path of a folder, or too many are being loaded.
            AgentError: The load has failed.
        """
        path = _checked(request.get("path"))
        load = self._loads.get(path) or self._begin(path)
        assert load.task is not None
        if load.task.done():
            del self._loads[path]
        return load.told(path)

    async def close(self) -> None:
        """Cancel what runs."""
        tasks = [load.task for load in self._loads.values() if load.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, path: str) -> _Load:
        for name, load in list(self._loads.items()):
            if len(self._loads) >= MAX_LOADS and load.task is not None and load.task.done():
                del self._loads[name]
        if len(self._loads) >= MAX_LOADS:
            raise UsageError(f"{MAX_LOADS} folders are being loaded already")
        load = self._loads[path] = _Load()
        load.task = asyncio.ensure_future(self._bring(path, load))
        load.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return load

    async def _bring(self, path: str, load: _Load) -> None:
        fetch = replace(self._settings.fetch, roots=(path,))
        settings = replace(self._settings, fetch=fetch)

        def opens(pack: str, source: str, kib_s: int) -> Source:
            return ChildSource(pack, f"file://{quote(path)}", settings)

        source = opens("", "", 0)
        try:
            manifest = await source.manifest()
        finally:
            await source.close()
        load.pack = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        await self._fetcher.fetch(load.pack, f"load:{path}", load.progress, opens=opens)


def _checked(path: object) -> str:
    if not isinstance(path, str) or not 0 < len(path) <= 4096 or "\0" in path:
        raise UsageError("no path is given", hint='{"command": "load", "path": "/media/usb/pack"}')
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts:
        raise UsageError(f"{path!r} is not the path of a folder from the root on")
    return str(pure)
