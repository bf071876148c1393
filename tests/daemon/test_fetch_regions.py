"""A file's blocks over several connections at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest

from agent.daemon import fetch_regions
from agent.daemon.fetch_regions import Block, NoRanges, Region, Together, cut, in_blocks
from agent.errors import FetchError, SourceExpired
from agent.wire.blocks import BLOCK_BYTES

DATA = random.Random(7).randbytes(5 * BLOCK_BYTES + 100)
MIB = 1 << 20


def pieces(start: int, end: int, size: int = 1000) -> Iterator[tuple[int, bytes]]:
    for at in range(start, end, size):
        yield at, DATA[at : min(end, at + size)]


def failing(error: Exception) -> Iterator[tuple[int, bytes]]:
    if error:
        raise error
    yield 0, b""


def put_together(blocks: list[Block]) -> bytes:
    return b"".join(block.data for block in sorted(blocks, key=lambda b: b.number))


def test_pieces_become_whole_blocks_and_a_rest() -> None:
    blocks = list(in_blocks(pieces(BLOCK_BYTES, len(DATA)), BLOCK_BYTES))
    assert [block.number for block in blocks] == [1, 2, 3, 4, 5]
    assert {len(block.data) for block in blocks[:-1]} == {BLOCK_BYTES}
    assert put_together(blocks) == DATA[BLOCK_BYTES:]
    assert not any(block.anew for block in blocks)


def test_a_source_that_begins_again_says_so_once() -> None:
    def again() -> Iterator[tuple[int, bytes]]:
        yield from pieces(BLOCK_BYTES, 2 * BLOCK_BYTES + 500)
        yield from pieces(0, len(DATA))

    blocks = list(in_blocks(again(), BLOCK_BYTES))
    assert [(b.number, b.anew) for b in blocks][:3] == [(1, False), (0, True), (1, False)]
    assert put_together(blocks[1:]) == DATA


def test_portions_cover_what_is_missing_and_begin_at_blocks() -> None:
    missing = [(0, 3 * BLOCK_BYTES), (100 * MIB, 200 * MIB + 17)]
    portions = cut(missing, 4)
    assert sum(end - start for start, end in portions) == sum(b - a for a, b in missing)
    assert all(start % BLOCK_BYTES == 0 for start, _ in portions)
    assert all(end - start <= max(8 * MIB, 101 * MIB // 16) for start, end in portions)


def test_regions_come_together_from_several_connections() -> None:
    at_once = threading.Barrier(3, timeout=10)

    def open_region(region: Region) -> Iterator[tuple[int, bytes]]:
        at_once.wait()
        yield from pieces(*region)

    edges = [0, 2 * BLOCK_BYTES, 4 * BLOCK_BYTES, len(DATA)]
    together = Together(open_region, list(pairwise(edges)), 3)
    assert put_together(list(together)) == DATA
    assert together.failed == 0


def test_a_server_that_takes_fewer_connections_is_not_given_up() -> None:
    first = threading.Event()

    def open_region(region: Region) -> Iterator[tuple[int, bytes]]:
        if first.is_set():
            raise FetchError("one connection is enough")
        first.set()
        yield from pieces(*region)

    regions = [(0, 2 * BLOCK_BYTES), (2 * BLOCK_BYTES, len(DATA))]
    together = Together(open_region, regions, 2)
    blocks = list(together)
    assert together.failed in (1, 2)
    assert put_together(blocks) == DATA[: 2 * BLOCK_BYTES]


def test_the_error_of_the_last_connection_is_raised() -> None:
    def open_region(region: Region) -> Iterator[tuple[int, bytes]]:
        return failing(SourceExpired("over"))

    with pytest.raises(SourceExpired):
        list(Together(open_region, [(0, 10), (10, 20)], 2))


def test_a_server_without_ranges_ends_it() -> None:
    def open_region(region: Region) -> Iterator[tuple[int, bytes]]:
        yield from pieces(0, len(DATA))

    with pytest.raises(NoRanges):
        list(Together(open_region, [(BLOCK_BYTES, 2 * BLOCK_BYTES)], 1))


def test_a_connection_that_says_nothing_ends_it_and_a_bug_is_told() -> None:
    release = threading.Event()

    def silent(region: Region) -> Iterator[tuple[int, bytes]]:
        release.wait(20)
        yield from ()

    with pytest.raises(FetchError, match="nothing came"):
        list(Together(silent, [(0, 10)], 1, silence_s=0.05))
    release.set()

    def broken(region: Region) -> Iterator[tuple[int, bytes]]:
        return failing(ZeroDivisionError("a bug"))

    with pytest.raises(FetchError, match="ZeroDivisionError"):
        list(Together(broken, [(0, 10)], 1))


def test_what_waits_for_the_disk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_regions, "WAITING_BLOCKS", 1)
    read: list[int] = []

    def open_region(region: Region) -> Iterator[tuple[int, bytes]]:
        for offset, data in pieces(*region, size=BLOCK_BYTES):
            read.append(offset)
            yield offset, data

    blocks = iter(Together(open_region, [(0, len(DATA))], 1))
    next(blocks)
    # One taken, one that waits, one that finds no room, and no more.
    assert len(read) <= 4
    assert len(list(blocks)) == 5
