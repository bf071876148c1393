"""Pieces as a source gives them, made into the blocks of a part; over several connections at once
where that is wanted. Only in the fetch process.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import msgspec

from agent.errors import AgentError, FetchError
from agent.wire.blocks import BLOCK_BYTES

# (first byte, behind the last byte)
Region = tuple[int, int]
Pieces = Iterable[tuple[int, bytes]]

# Files with less missing are not worth a second connection.
PARALLEL_FROM_BYTES = 32 << 20
REGION_BYTES_MIN = 8 << 20
# Blocks that wait for the disk, for each connection.
WAITING_BLOCKS = 4
# Longer than a read or a step of an attempt takes at most.
SILENCE_S = 120.0
_LOOK_EVERY_S = 0.5


class Block(msgspec.Struct, frozen=True):
    """A block that has come. `anew`: the source begins again, and what is here is worthless."""

    number: int
    data: bytes
    anew: bool = False


class NoRanges(Exception):
    """The source sends the whole file, whatever is asked for."""


def in_blocks(pieces: Pieces, at: int) -> Iterator[Block]:
    """Whole blocks, and what is left at the end.

    Args:
        pieces: (offset, bytes), in order; an offset of 0 in the middle begins again.
        at: The offset of the first; the beginning of a block.
    """
    buffer, anew = bytearray(), False
    for offset, data in pieces:
        if offset != at + len(buffer):
            buffer.clear()
            at, anew = offset, True
        buffer += data
        while len(buffer) >= BLOCK_BYTES:
            yield Block(at // BLOCK_BYTES, bytes(buffer[:BLOCK_BYTES]), anew)
            del buffer[:BLOCK_BYTES]
            at, anew = at + BLOCK_BYTES, False
    if buffer:
        yield Block(at // BLOCK_BYTES, bytes(buffer), anew)


def cut(regions: Iterable[Region], connections: int) -> list[Region]:
    """Regions in portions, so that a fast connection takes more of them than a slow one."""
    regions = list(regions)
    missing = sum(end - start for start, end in regions)
    portion = max(REGION_BYTES_MIN, missing // (4 * connections))
    portion -= portion % BLOCK_BYTES
    return [
        (at, min(end, at + portion)) for start, end in regions for at in range(start, end, portion)
    ]


class Together:
    """Several connections that bring regions of one file. Iterate it once, in one thread.

    It holds `WAITING_BLOCKS` + 2 blocks for each connection: 1.5 MiB for four.
    """

    def __init__(
        self,
        open_region: Callable[[Region], Pieces],
        regions: Iterable[Region],
        connections: int,
        silence_s: float = SILENCE_S,
    ) -> None:
        self.failed = 0
        self._open = open_region
        self._regions = deque(regions)
        self._connections = min(connections, len(self._regions))
        self._silence_s = silence_s
        self._stopped = threading.Event()
        waiting = WAITING_BLOCKS * self._connections
        self._come: queue.Queue[Block | AgentError | None] = queue.Queue(waiting)

    def __iter__(self) -> Iterator[Block]:
        """Yield blocks as they come, of any region.

        `failed` says at the end how many connections were lost on the way; what they have left is
        still missing.

        Raises:
            NoRanges: See there.
            AgentError: All connections were lost; the error of the last one.
        """
        for _ in range(self._connections):
            threading.Thread(target=self._bring, daemon=True).start()
        try:
            yield from self._blocks()
        finally:
            self._stopped.set()

    def _blocks(self) -> Iterator[Block]:
        at_work = self._connections
        while at_work:
            try:
                come = self._come.get(timeout=self._silence_s)
            except queue.Empty:
                raise FetchError(f"nothing came for {self._silence_s:g} s") from None
            if isinstance(come, Block):
                if come.anew:
                    raise NoRanges
                yield come
                continue
            at_work -= 1
            if come is not None:
                self.failed += 1
                if self.failed == self._connections:
                    raise come

    def _bring(self) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    region = self._regions.popleft()
                except IndexError:
                    break
                for block in in_blocks(self._open(region), region[0]):
                    if not self._put(block):
                        return
        except AgentError as error:
            self._put(error)
        except Exception as error:  # a bug must not look like silence
            self._put(FetchError(f"a connection failed: {type(error).__name__}: {error}"))
        else:
            self._put(None)

    def _put(self, come: Block | AgentError | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._come.put(come, timeout=_LOOK_EVERY_S)
            except queue.Full:
                continue
            return True
        return False
