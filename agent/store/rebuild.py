"""Makes a new file out of older ones: what the store has is copied, the rest is fetched.

The new file grows as a part, in the order of its bytes, so that whatever ends this (a kill, a power
cut, a source that goes away) leaves a part like any other: the next attempt goes on with it, by any
way. Nothing old is believed: a chunk is hashed when it is copied, the base of a delta before its
first byte is used, and in the end `Part.finish` hashes the whole file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from agent.errors import DigestMismatch, FetchError, StoreCorrupt
from agent.store.packs import PackStore
from agent.store.parts import Part
from agent.wire.chunks import Chunk, Range, ranges_of
from agent.wire.delta import Shape, decoded

CHUNK_ATTEMPTS = 3

# Start and end (not included) → those bytes of the new file, in pieces of any size.
Fetch = Callable[[int, int], Iterator[bytes]]


class Held(NamedTuple):
    """Where a chunk lies: in which file of the store, and from which byte on."""

    digest: str
    offset: int


class Patch(msgspec.Struct, frozen=True):
    """A delta that is in the store, and the file it starts from. Digests are `sha256:<hex>`."""

    base: str
    delta: str
    delta_bytes: int
    shape: Shape


class Rebuild:
    """One file in the making. The caller finishes, flushes and closes the part.

    Args:
        store: Where the older files are.
        part: Of the new file.
        tick: Called after each piece, to flush and to tell.
    """

    def __init__(
        self, store: PackStore, part: Part, *, tick: Callable[[], object] = lambda: None
    ) -> None:
        self.copied_bytes = 0
        self.fetched_bytes = 0
        # Files of the store that do not hold what they must.
        self.altered: set[str] = set()
        self._store = store
        self._part = part
        self._tick = tick
        self._out = _InOrder(part)

    def copy(self, chunks: Iterable[Chunk], held: Mapping[bytes, Held]) -> None:
        """Put in place what the store has; the part's missing blocks are what is to be fetched.

        Args:
            chunks: Of the new file, in order.
            held: Digest of a chunk → where it lies.
        """
        for chunk in self._lacking(chunks):
            data = self._copied(chunk, held)
            if data is not None:
                self._put(chunk.offset, data)

    def from_chunks(
        self, chunks: Sequence[Chunk], held: Mapping[bytes, Held], fetch: Fetch
    ) -> None:
        """Copy what the store has and fetch the rest, chunk by chunk.

        Raises:
            FetchError: The source cannot give a range; what came so far stays.
            DigestMismatch: It gives other bytes for a chunk, again and again.
        """
        lacking = list(self._lacking(chunks))
        ranges = ranges_of(chunk for chunk in lacking if chunk.digest not in held)
        incoming = _Incoming(fetch, ranges)
        try:
            for chunk in lacking:
                data = None if incoming.covers(chunk) else self._copied(chunk, held)
                self._put(chunk.offset, self._fetched(chunk, incoming) if data is None else data)
        finally:
            self.fetched_bytes += incoming.taken_bytes
            incoming.close()

    def from_delta(self, patch: Patch) -> None:
        """Apply a delta.

        Raises:
            StoreCorrupt: The base, or the delta, is missing or altered.
            PackError: The delta is none, or not one of this file.
        """
        for digest in (patch.base, patch.delta):
            if not self._store.is_whole(digest):
                self.altered.add(digest)
                raise StoreCorrupt(f"{digest}: missing from the store, or altered in it")
        blocks = decoded(
            partial(self._store.read_blob, patch.delta),
            patch.delta_bytes,
            partial(self._store.read_blob, patch.base),
            self._part.size,
            patch.shape,
            wanted=self._part.lacks,
        )
        for start, data in blocks:
            self._put(start, data)

    def _lacking(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        return (chunk for chunk in chunks if self._part.lacks(chunk.offset, chunk.end))

    def _put(self, offset: int, data: bytes | bytearray) -> None:
        self._out.put(offset, data)
        self._tick()

    def _copied(self, chunk: Chunk, held: Mapping[bytes, Held]) -> bytes | None:
        place = held.get(chunk.digest)
        if place is None:
            return None
        data = self._store.read_blob(place.digest, place.offset, chunk.size)
        if hashlib.sha256(data).digest() != chunk.digest:
            self.altered.add(place.digest)
            return None
        self.copied_bytes += len(data)
        return data

    def _fetched(self, chunk: Chunk, incoming: _Incoming) -> bytes:
        for _ in range(1 + CHUNK_ATTEMPTS):
            data = incoming.take(chunk)
            if hashlib.sha256(data).digest() == chunk.digest:
                return data
            incoming.close()
        raise DigestMismatch(
            f"sha256:{chunk.digest.hex()}: a chunk at byte {chunk.offset} came with other bytes, "
            f"{1 + CHUNK_ATTEMPTS} times"
        )


class _Incoming:
    """Ranges on their way, read in order; at most one is open."""

    def __init__(self, fetch: Fetch, ranges: Sequence[Range]) -> None:
        self.taken_bytes = 0
        self._fetch = fetch
        self._ranges = ranges
        self._pieces: Iterator[bytes] = iter(())
        self._at = self._end = 0
        self._rest = b""

    def covers(self, chunk: Chunk) -> bool:
        """Whether this chunk comes along, wanted or not."""
        return self._end_of(chunk) > chunk.offset

    def take(self, chunk: Chunk) -> bytes:
        if not self._at <= chunk.offset < self._end:
            self._open(chunk)
        for _ in self._next(chunk.offset - self._at):
            pass  # chunks that are here already, between two that are not
        return b"".join(self._next(chunk.size))

    def close(self) -> None:
        """Let go of what is open; the next `take` asks again, from its own chunk on."""
        closing = getattr(self._pieces, "close", None)
        self._pieces, self._rest = iter(()), b""
        self._at = self._end = 0
        if closing is not None:
            closing()

    def _open(self, chunk: Chunk) -> None:
        self.close()
        self._at, self._end = chunk.offset, self._end_of(chunk)
        if self._end <= self._at:  # one that should have been copied
            self._end = chunk.end
        self._pieces = self._fetch(self._at, self._end)

    def _end_of(self, chunk: Chunk) -> int:
        ends = (one.end for one in self._ranges if one.start <= chunk.offset < one.end)
        return next(ends, chunk.offset)

    def _next(self, size: int) -> Iterator[bytes]:
        end = self._at + size
        while self._at < end:
            if not self._rest:
                self._rest = next(self._pieces, b"")
                self.taken_bytes += len(self._rest)
            if not self._rest:
                raise FetchError(f"the source ended a range at byte {self._at} of {self._end}")
            piece, self._rest = self._rest[: end - self._at], self._rest[end - self._at :]
            self._at += len(piece)
            yield piece


class _InOrder:
    """Cuts bytes that come in order into a part's blocks.

    After a jump, what precedes the first whole block is dropped: its block is there already, or
    will be asked for.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._at = 0
        self._buffer = bytearray()

    def put(self, offset: int, data: bytes | bytearray) -> None:
        if offset != self._at + len(self._buffer):
            self._buffer.clear()
            self._at = offset
        with memoryview(data) as view:
            self._cut(view)

    def _cut(self, view: memoryview) -> None:
        block = self._part.block_size
        if not self._buffer:
            before = min(len(view), -self._at % block)
            view = view[before:]
            self._at += before
        while view:
            size = min(block, self._part.size - self._at)
            piece, view = view[: size - len(self._buffer)], view[size - len(self._buffer) :]
            if len(piece) == size:  # not copied once more
                self._write(piece, size)
                continue
            self._buffer += piece
            if len(self._buffer) == size:
                self._write(self._buffer, size)
                self._buffer.clear()

    def _write(self, data: bytearray | memoryview, size: int) -> None:
        self._part.write_block(self._at // self._part.block_size, data)
        self._at += size
