"""Cuts that follow the content, and lists that fit a manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.author import chunking
from agent.author.chunking import AVERAGE_BYTES, average_for, cut, cut_ends, with_lists
from agent.documents.manifest import PackFile
from agent.wire.chunks import decode_list

NOISE = np.random.default_rng(7).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
MIB = 1 << 20


def digests(data: bytes) -> set[bytes]:
    return {chunk.digest for chunk in cut(data)}


@given(st.integers(0, 400_000), st.integers(0, 400_000), st.integers(0, 255))
@settings(max_examples=20, deadline=None)
def test_chunks_cover_the_bytes_and_keep_their_bounds(noise: int, same: int, byte: int) -> None:
    data = NOISE[:noise] + bytes([byte]) * same
    chunks = list(cut(data))
    assert sum(chunk.size for chunk in chunks) == len(data)
    for chunk in chunks:
        assert chunk.digest == hashlib.sha256(data[chunk.offset : chunk.end]).digest()
        assert chunk.size <= 4 * AVERAGE_BYTES
    assert all(chunk.size >= AVERAGE_BYTES // 4 for chunk in chunks[:-1])


def test_cuts_are_the_same_everywhere_and_always() -> None:
    data = np.frombuffer(NOISE, np.uint8)
    assert cut_ends(data)[:4] == [89895, 149737, 226202, 313047]


def test_cuts_do_not_depend_on_the_segments_they_are_searched_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = np.frombuffer(NOISE, np.uint8)
    whole = cut_ends(data)
    monkeypatch.setattr(chunking, "_SEGMENT_BYTES", 10_007)
    assert cut_ends(data) == whole


@pytest.mark.parametrize("at", [0, 100, 1_000_000, 2_999_999])
def test_an_insertion_changes_the_chunks_around_it_only(at: int) -> None:
    longer = NOISE[:at] + b"thirteen more" + NOISE[at:]
    new = [chunk for chunk in cut(longer) if chunk.digest not in digests(NOISE)]
    assert sum(chunk.size for chunk in new) < 6 * AVERAGE_BYTES


def test_only_large_files_are_listed(tmp_path: Path) -> None:
    files = {}
    for name, size in (("large", 300_000), ("limit", 256 * 1024), ("empty", 0)):
        (tmp_path / name).write_bytes(NOISE[:size])
        files[name] = PackFile("sha256:" + "0" * 64, size)
    listed = with_lists(tmp_path, files)
    assert [name for name, file in listed.items() if file.chunks is not None] == ["large"]
    chunks = decode_list(listed["large"].chunks, 300_000)
    assert [chunk.digest for chunk in chunks] == [c.digest for c in cut(NOISE[:300_000])]


def test_larger_packs_get_larger_chunks_until_lists_do_not_fit() -> None:
    assert average_for([]) == AVERAGE_BYTES
    assert average_for([512 * MIB]) == AVERAGE_BYTES
    assert average_for([512 * MIB, 1]) == 2 * AVERAGE_BYTES
    assert average_for([8 << 30]) == MIB
    assert average_for([8 << 30, 1]) is None


def test_lists_that_would_not_fit_a_manifest_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "MAX_LIST_BYTES", 36 * 12)
    files = {}
    for name, size in (("a", 300_000), ("b", 1_000_000)):
        (tmp_path / name).write_bytes(NOISE[:size])
        files[name] = PackFile("sha256:" + "0" * 64, size)
    listed = with_lists(tmp_path, files)
    assert [name for name, file in listed.items() if file.chunks is not None] == ["a"]
