"""What a source of packs must do, and how a thread is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

import msgspec

from agent.errors import SourceRefused

P = ParamSpec("P")
R = TypeVar("R")

# Told how many bytes of the file are here, after each piece.
OnBytes = Callable[[int], None]


class Wanted(msgspec.Struct, frozen=True):
    """One file of a pack, as the manifest promises it."""

    pack: str
    name: str
    digest: str
    size: int


class Source(Protocol):
    """One source of one pack, open for one fetch.

    `file` is called for one file at a time, never for one that the store has, and never by two
    fetches for the same digest at once. Both calls may be cancelled at any point; what has been
    received of a file stays in the store's part for the next attempt.
    """

    async def manifest(self) -> bytes:
        """Return the bytes of manifest.json; the caller checks them against the pack's id.

        Raises:
            FetchError: They cannot be had now.
            SourceRefused: They cannot be had from here.
        """

    async def signature(self) -> bytes | None:
        """Return the bytes of model.sig, or None where the source has none.

        Raises:
            FetchError: They cannot be had now.
            PackError: There are more than a signature may have.
        """

    async def file(self, wanted: Wanted, on_bytes: OnBytes) -> None:
        """Bring one file into the store, verified against its digest.

        Raises:
            FetchError: It cannot be had now.
            SourceRefused: It cannot be had from here.
            DigestMismatch: The source has other bytes, also from the beginning.
            NoSpace: It does not fit.
        """

    async def close(self) -> None:
        """Let go of the source; called once, also after a failure."""


class Placed:
    """No source: the platform should have put the files here already."""

    def __init__(self, pack: str) -> None:
        self._error = SourceRefused(
            f"pack {pack} is not on this device, and the deployment names no source",
            hint="give the slot a `from`, or place the pack first",
        )

    async def manifest(self) -> bytes:
        raise self._error

    async def signature(self) -> bytes | None:
        return None  # what was placed with the pack is in the store

    async def file(self, wanted: Wanted, on_bytes: OnBytes) -> None:
        raise self._error

    async def close(self) -> None:
        """Nothing is open."""


async def in_thread(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a call that waits for the disk in a thread.

    A cancellation waits for the call's end, so that nobody closes a file under it.
    """
    loop = asyncio.get_running_loop()
    return await to_the_end(loop.run_in_executor(None, partial(call, *args, **kwargs)))


async def to_the_end(work: asyncio.Future[R]) -> R:
    """Wait for something that must not be left half done; a cancellation is raised after it."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not work.cancelled():
            work.exception()
        raise cancelled
    return work.result()
