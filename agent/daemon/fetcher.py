"""The fetch process: one download, with its TLS and its parsers, away from the daemon.

Started as `python -I -m agent.daemon.fetcher` by `agent.daemon.fetch_child`; what it is asked and
what it answers stands in `agent.daemon.fetch_messages`. It writes into the store's parts, so that
what it has received outlives it.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from agent.daemon.fetch_messages import MAX_LINE_BYTES, Ask, Job, Told
from agent.daemon.fetch_regions import (
    PARALLEL_FROM_BYTES,
    Block,
    NoRanges,
    Region,
    Together,
    cut,
    in_blocks,
)
from agent.daemon.fetch_ways import Named, Shorter
from agent.daemon.short_lived import end_with
from agent.documents.pack_names import SIGNATURE
from agent.documents.report import Failure
from agent.errors import AgentError, DigestMismatch, FetchError, SourceMissing, StoreError
from agent.store.files import Files
from agent.store.packs import PackStore
from agent.store.parts import Part
from agent.wire.blocks import BLOCK_BYTES

FLUSH_EVERY_S = 10.0
TELL_EVERY_S = 0.25


class Source(Protocol):
    """Somewhere files can be read from."""

    def pieces(
        self, name: str, start: int, size: int | None, end: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) from `start` to before `end`, or the file's end.

        An offset of 0 later on: what was here is worthless, and the whole file follows.
        """


def _http(job: Job) -> Source:
    from agent.daemon.fetch_http import HttpFiles

    return HttpFiles(job.source, environment=job.proxies, max_kib_s=job.max_kib_s)


def _file(job: Job) -> Source:
    from agent.daemon.fetch_file import LocalFiles

    return LocalFiles(job.source, job.roots)


SOURCES: Mapping[str, Callable[[Job], Source]] = {"http": _http, "https": _http, "file": _file}


class Receiver:
    """Brings the files of a pack into the parts of a store."""

    def __init__(
        self,
        store: PackStore,
        source: Source,
        tell: Callable[[int], None],
        connections: int = 1,
        sparing: bool = False,
    ) -> None:
        """
        Args:
            tell: Called with how many bytes of the file are here, a few times a second.
            connections: Most that a large file is fetched by at once.
            sparing: Whether bytes from this source cost more than the work that saves them.
        """
        self._store = store
        self._source = source
        self._tell = tell
        self._connections = connections
        self._sparing = sparing

    def small(self, name: str) -> bytes:
        """The bytes of the manifest, or of the signature."""
        received = b""
        for offset, data in self._source.pieces(name, 0, None):
            received = received[:offset] + data
        return received

    def file(self, ask: Ask) -> None:
        """Bring one file into the store, verified.

        Raises:
            DigestMismatch: It has other bytes, also when read from its beginning.
        """
        if not (self._sparing and self._shorter(ask).bring(ask.pack, ask.name)):
            self._whole(ask, self._tell)

    def _whole(self, ask: Ask, tell: Callable[[int], None]) -> None:
        download = self._download(ask, tell)
        try:
            download.run()
        except DigestMismatch:
            if not download.resumed:
                raise
            # The bytes of an earlier attempt may be to blame, and they are gone now.
            self._download(ask, tell).run()

    def _download(self, ask: Ask, tell: Callable[[int], None]) -> _Download:
        return _Download(self._store, self._source, ask, tell, self._connections)

    def _shorter(self, ask: Ask) -> Shorter:
        def delta(named: Named) -> None:
            name, file = named

            def tell(here_bytes: int) -> None:
                self._tell(here_bytes * ask.size // file.size)

            self._whole(Ask(ask.pack, name, file.digest, file.size), tell)

        pace = _Pace(self._tell)
        return Shorter(self._store, BLOCK_BYTES, fetch=self._range, whole=delta, tick=pace.tick)

    def _range(self, named: Named, start: int, end: int) -> Iterator[bytes]:
        name, file = named
        for offset, data in self._source.pieces(name, start, file.size, end):
            if offset != start:
                raise FetchError(f"the source gives {name} as a whole only")
            start += len(data)
            yield data


class _Download:
    """One attempt at one file."""

    def __init__(
        self,
        store: PackStore,
        source: Source,
        ask: Ask,
        tell: Callable[[int], None],
        connections: int,
    ) -> None:
        self._store = store
        self._source = source
        self._ask = ask
        self._connections = connections
        self._part = self._begin()
        self.resumed = self._part.received_bytes > 0
        self._pace = _Pace(tell)
        tell(self._part.received_bytes)

    def run(self) -> None:
        try:
            while regions := self._part.missing_regions():
                missing = self._ask.size - self._part.received_bytes
                if self._connections > 1 and missing > PARALLEL_FROM_BYTES:
                    self._fill_together(regions)
                else:
                    self._keep(in_blocks(self._pieces(regions[0]), regions[0][0]))
            self._part.finish()
        finally:
            with suppress(StoreError, RuntimeError):
                self._part.flush()
            with suppress(StoreError):
                self._part.close()

    def _begin(self) -> Part:
        return self._store.begin_part(self._ask.digest, self._ask.size, BLOCK_BYTES)

    def _pieces(self, region: Region) -> Iterator[tuple[int, bytes]]:
        return self._source.pieces(self._ask.name, region[0], self._ask.size, region[1])

    def _fill_together(self, regions: list[Region]) -> None:
        portions = cut(regions, self._connections)
        together = Together(self._pieces, portions, self._connections)
        try:
            self._keep(together)
        except NoRanges:
            # What came may be of another file, and one after the other is all that is left.
            self._begin_again()
            self._connections = 1
        else:
            # A server that takes fewer connections is asked for fewer.
            self._connections = max(1, self._connections - together.failed)

    def _keep(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            if block.anew:
                self._begin_again()
            self._part.write_block(block.number, block.data)
            self._pace.tick(self._part)

    def _begin_again(self) -> None:
        self._part.discard()
        self._part, self.resumed = self._begin(), False


class _Pace:
    """Flushes and tells, each once in a while."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._flushed = self._told = time.monotonic()

    def tick(self, part: Part) -> None:
        now = time.monotonic()
        if now - self._flushed >= FLUSH_EVERY_S:
            part.flush()
            self._flushed = now
        if now - self._told >= TELL_EVERY_S:
            self._tell(part.received_bytes)
            self._told = now


def main() -> None:
    """Answer one question after the other until the input ends."""
    lines = iter(lambda: sys.stdin.buffer.readline(MAX_LINE_BYTES), b"")
    job = msgspec.json.decode(next(lines), type=Job)
    _end_with(job.parent_pid)
    # A library's warnings may show a URL whole, with what opens the door.
    logging.disable()
    scheme = job.source.partition(":")[0].lower()
    try:
        receiver = Receiver(
            PackStore(Files(), Path(job.store), job.quota_bytes),
            SOURCES[scheme](job),
            lambda here: _tell(Told("here_bytes", here_bytes=here)),
            job.connections,
            sparing=scheme != "file",
        )
    except AgentError as error:
        # Asked for anything, this is the answer.
        for _ in lines:
            _tell(_failed(error))
        return
    for line in lines:
        _tell(_answer(receiver, msgspec.json.decode(line, type=Ask)))


def _answer(receiver: Receiver, ask: Ask) -> Told:
    try:
        if not ask.digest:
            return Told("done", data=receiver.small(ask.name))
        receiver.file(ask)
    except SourceMissing as error:
        return Told("done", missing=True) if ask.name == SIGNATURE else _failed(error)
    except AgentError as error:
        return _failed(error)
    return Told("done", here_bytes=ask.size)


def _failed(error: AgentError) -> Told:
    failure = Failure(error.code, error.message, error.hint, error.retryable)
    return Told("failed", failure=failure)


def _tell(told: Told) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    sys.stdout.buffer.flush()


def _end_with(parent_pid: int) -> None:
    """End in order on SIGTERM, which also comes when the daemon is gone."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent_pid, signal.SIGTERM)


if __name__ == "__main__":
    main()
