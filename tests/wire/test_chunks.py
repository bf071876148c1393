"""Chunk lists: read strictly, and turned into few requests."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.documents.manifest import ChunkList
from agent.errors import PackError
from agent.wire.chunks import (
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_RANGES,
    Chunk,
    Range,
    bytes_of,
    decode_list,
    encode_list,
    ranges_of,
)

KIB = 1024


def chunks(*sizes: int) -> list[Chunk]:
    made, offset = [], 0
    for number, size in enumerate(sizes):
        made.append(Chunk(offset, size, number.to_bytes(32, "big")))
        offset += size
    return made


def entries(*sizes: int) -> ChunkList:
    return ChunkList("sha256", b"".join(struct.pack("<I32s", size, b"") for size in sizes))


@given(st.lists(st.tuples(st.integers(1, MAX_CHUNK_BYTES), st.binary(min_size=32, max_size=32))))
@settings(max_examples=60, deadline=None)
def test_a_list_is_read_as_it_was_written(made: list[tuple[int, bytes]]) -> None:
    wanted, offset = [], 0
    for size, digest in made:
        wanted.append(Chunk(offset, size, digest))
        offset += size
    assert decode_list(encode_list(wanted), offset) == tuple(wanted)


@pytest.mark.parametrize(
    ("listed", "size", "said"),
    [
        (entries(10, 20), 31, "30 bytes together, the file has 31"),
        (entries(10, 20), 29, "30 bytes together, the file has 29"),
        (entries(10, 0, 20), 30, "a chunk of 0 bytes"),
        (entries(MAX_CHUNK_BYTES + 1), MAX_CHUNK_BYTES + 1, "a chunk of 4194305 bytes"),
        (entries(*[0xFFFFFFFF] * 4), 4, "a chunk of 4294967295 bytes"),
        (entries(*[1] * (MAX_CHUNKS + 1)), MAX_CHUNKS + 1, f"at most {MAX_CHUNKS}"),
        (ChunkList("sha256", b"\x01" * 37), 1, "no multiple of 36"),
        (ChunkList("sha256", b""), 1, "0 bytes together, the file has 1"),
    ],
)
def test_a_list_that_is_not_the_files_is_refused(listed: ChunkList, size: int, said: str) -> None:
    with pytest.raises(PackError, match=said):
        decode_list(listed, size)


def test_no_list_and_a_list_of_another_kind_give_no_chunks() -> None:
    assert decode_list(None, 10) == ()
    assert decode_list(ChunkList("blake3", b"any length"), 10) == ()


def test_neighbours_and_small_gaps_become_one_request() -> None:
    made = chunks(*[KIB] * 10)
    near = ranges_of([made[0], made[1], made[4]], gap_bytes=2 * KIB)
    assert near == (Range(0, 5 * KIB),)
    apart = ranges_of([made[0], made[1], made[4]], gap_bytes=2 * KIB - 1)
    assert apart == (Range(0, 2 * KIB), Range(4 * KIB, 5 * KIB))
    assert bytes_of(apart) == 3 * KIB


def test_the_widest_gaps_stay_where_there_are_too_many() -> None:
    made = chunks(1, 100, 1, 300, 1, 200, 1)
    ranges = ranges_of(made[::2], gap_bytes=0, most=2)
    assert ranges == (Range(0, 102), Range(402, 604))


def test_nothing_missing_is_no_request() -> None:
    assert ranges_of([]) == ()


@given(
    st.lists(st.tuples(st.integers(1, 300 * KIB), st.booleans()), max_size=200),
    st.integers(1, MAX_RANGES),
)
@settings(max_examples=100, deadline=None)
def test_every_missing_chunk_lies_in_one_of_few_ranges(
    made: list[tuple[int, bool]], most: int
) -> None:
    known = chunks(*(size for size, _ in made))
    missing = [chunk for chunk, (_, gone) in zip(known, made, strict=True) if gone]
    ranges = ranges_of(missing, most=most)
    assert len(ranges) <= most
    assert list(ranges) == sorted(ranges)
    for chunk in missing:
        assert any(one.start <= chunk.offset and chunk.end <= one.end for one in ranges)
    if missing:
        assert ranges[0].start == missing[0].offset
        assert ranges[-1].end == missing[-1].end
