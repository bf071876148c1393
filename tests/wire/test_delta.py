"""Deltas: what goes in comes out, and a bad one costs neither memory nor a wrong file."""

from __future__ import annotations

import lzma
import random
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.documents.manifest import Delta
from agent.errors import PackError
from agent.wire import delta as deltas
from agent.wire.delta import Read, Shape, decoded, encode_block, is_known, planes_of

BLOCK = 4096
SHAPES = [Shape(width, codec, BLOCK) for width in deltas.WIDTHS for codec in ("zlib", "lzma")]
OLD = random.Random(1).randbytes(3 * BLOCK + 17)
NEW = bytes(byte ^ (index % 5 == 0) for index, byte in enumerate(OLD)) + b"and more" * 700


def reader(data: bytes) -> Read:
    return lambda offset, size: data[offset : offset + size]


def encoded(new: bytes, old: bytes, shape: Shape) -> bytes:
    starts = range(0, len(new), shape.block)
    return b"".join(
        encode_block(new[at : at + shape.block], old[at : at + shape.block], shape) for at in starts
    )


def applied(delta: bytes, old: bytes, size: int, shape: Shape) -> bytes:
    blocks = decoded(reader(delta), len(delta), reader(old), size, shape)
    return b"".join(block for _, block in blocks)


def packed(data: bytes, codec: str) -> bytes:
    if codec == "zlib":
        return zlib.compress(data)
    window = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": BLOCK}
    return lzma.compress(data, format=lzma.FORMAT_XZ, filters=[window])


def one_block(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


@given(st.binary(max_size=3 * BLOCK), st.binary(max_size=3 * BLOCK), st.sampled_from(SHAPES))
@settings(max_examples=60, deadline=None)
def test_a_delta_gives_the_new_file(new: bytes, old: bytes, shape: Shape) -> None:
    assert applied(encoded(new, old, shape), old, len(new), shape) == new


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_delta_gives_a_longer_and_a_shorter_file(shape: Shape) -> None:
    assert applied(encoded(NEW, OLD, shape), OLD, len(NEW), shape) == NEW
    assert applied(encoded(OLD, NEW, shape), NEW, len(OLD), shape) == OLD


def test_planes_are_the_bytes_of_each_place() -> None:
    assert planes_of(b"ABCDabcd12345", 4) == b"Aa15Bb2Cc3Dd4"


def test_blocks_that_are_here_already_are_left_out() -> None:
    shape = Shape(4, "zlib", BLOCK)
    delta = encoded(NEW, OLD, shape)
    blocks = decoded(
        reader(delta), len(delta), reader(OLD), len(NEW), shape, wanted=lambda a, b: a >= 2 * BLOCK
    )
    assert b"".join(block for _, block in blocks) == NEW[2 * BLOCK :]


def test_a_small_change_of_numbers_makes_a_small_delta() -> None:
    shape = Shape(4, "zlib")
    assert len(encoded(NEW[: len(OLD)], OLD, shape)) < len(OLD) / 10


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_a_delta_cut_anywhere_is_refused(shape: Shape) -> None:
    delta = encoded(NEW, OLD, shape)
    for cut in [*range(0, len(delta), 97), len(delta) - 1]:
        with pytest.raises(PackError, match="delta"):
            applied(delta[:cut], OLD, len(NEW), shape)


def test_a_delta_with_bytes_behind_it_is_refused() -> None:
    shape = Shape(4, "zlib", BLOCK)
    with pytest.raises(PackError, match="3 bytes follow"):
        applied(encoded(NEW, OLD, shape) + b"???", OLD, len(NEW), shape)


@pytest.mark.parametrize("codec", ["zlib", "lzma"])
def test_a_block_that_inflates_too_far_is_refused_before_it_has(codec: str) -> None:
    bomb = packed(bytes(1000 * BLOCK), codec)
    assert len(bomb) < BLOCK + 1024
    with pytest.raises(PackError, match=f"more than its {BLOCK}"):
        applied(one_block(bomb), b"", BLOCK, Shape(4, codec, BLOCK))


@pytest.mark.parametrize("codec", ["zlib", "lzma"])
def test_a_block_that_inflates_to_too_little_is_refused(codec: str) -> None:
    few = packed(b"few", codec)
    with pytest.raises(PackError, match=f"after 3 of {BLOCK} bytes"):
        applied(one_block(few), b"", BLOCK, Shape(4, codec, BLOCK))


@pytest.mark.parametrize("codec", ["zlib", "lzma"])
def test_bytes_behind_the_compressed_data_are_refused(codec: str) -> None:
    longer = packed(bytes(BLOCK), codec) + b"x" * 100
    with pytest.raises(PackError, match="bytes follow"):
        applied(one_block(longer), b"", BLOCK, Shape(4, codec, BLOCK))


def test_a_header_that_asks_for_a_huge_window_is_refused() -> None:
    window = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 28}
    greedy = lzma.compress(bytes(BLOCK), format=lzma.FORMAT_XZ, filters=[window])
    with pytest.raises(PackError, match=r"(?i)memory"):
        applied(one_block(greedy), b"", BLOCK, Shape(4, "lzma", BLOCK))


@pytest.mark.parametrize("length", [0, 5000, 2**32 - 1])
def test_an_impossible_length_is_refused_before_a_byte_is_read(length: int) -> None:
    delta = length.to_bytes(4, "little") + bytes(100)
    with pytest.raises(PackError, match="its length is"):
        applied(delta, b"", BLOCK, Shape(1, "zlib", BLOCK))


def test_a_huge_file_with_a_short_delta_ends_at_once() -> None:
    with pytest.raises(PackError, match="its length is 0"):
        applied(b"", b"", 1 << 60, Shape(1, "zlib", BLOCK))


@given(st.binary(max_size=300), st.sampled_from(SHAPES))
@settings(max_examples=100, deadline=None)
def test_garbage_is_refused_or_gives_bytes_of_the_right_size(noise: bytes, shape: Shape) -> None:
    with suppress(PackError):
        assert len(applied(noise, b"", 100, shape)) == 100


def test_a_damaged_block_is_refused_and_named() -> None:
    shape = Shape(2, "zlib", BLOCK)
    delta = bytearray(encoded(NEW, OLD, shape))
    second = 4 + int.from_bytes(delta[:4], "little") + 4
    delta[second - 4 + int.from_bytes(delta[second - 4 : second], "little")] ^= 0xFF
    with pytest.raises(PackError, match="block at 4096"):
        applied(bytes(delta), OLD, len(NEW), shape)


@pytest.mark.parametrize(
    ("method", "width", "codec", "known"),
    [
        ("xor-planes-1", 4, "zlib", True),
        ("xor-planes-1", 3, "zlib", False),
        ("xor-planes-1", 4, "zstd", False),
        ("bsdiff", 4, "zlib", False),
    ],
)
def test_deltas_of_another_kind_are_left_alone(
    method: str, width: int, codec: str, known: bool
) -> None:
    base = "sha256:" + "0" * 64
    assert is_known(Delta(base, method, width, codec, BLOCK, "delta/a.xp")) is known
