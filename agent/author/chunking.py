"""Cuts files into chunks where their content says so, and lists them in the manifest.

The cuts follow FastCDC (Xia et al., USENIX ATC 2016): a rolling Gear hash over the last 32 bytes, a
stricter condition before the average size and a looser one after it. Bytes that were shifted by an
insertion are so cut at the same places again. The hash is computed for a whole segment at once: of
`h[i] = 2 h[i-1] + G[byte i]` over 32 bytes, five doublings are enough.
"""

from __future__ import annotations

import hashlib
import mmap
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from agent.documents.manifest import ChunkList, PackFile
from agent.wire.chunks import MAX_CHUNK_BYTES, MAX_CHUNKS, Chunk, encode_list

# A smaller file comes whole: a request costs as much as is saved.
LISTED_BYTES = 256 * 1024
AVERAGE_BYTES = 64 * 1024
# In all lists of a pack; a manifest may have 1 MiB, and an entry takes 48 characters of it.
EXPECTED_CHUNKS = 8 * 1024
MAX_LIST_BYTES = 512 * 1024

_WINDOW = 32
_SEGMENT_BYTES = 128 * 1024
# How much rarer a cut is before the average size, and how much more frequent after it (in bits).
_NORMALISATION = 2

_Words = npt.NDArray[np.uint32]
_GEAR: _Words = np.array(
    [
        int.from_bytes(hashlib.sha256(b"edgeward gear %d" % byte).digest()[:4], "little")
        for byte in range(256)
    ],
    np.uint32,
)


def with_lists(
    folder: Path, files: Mapping[str, PackFile], *, listed_bytes: int = LISTED_BYTES
) -> dict[str, PackFile]:
    """Return what a manifest says of files, with a chunk list for each large one.

    Args:
        folder: Where they lie.
        files: Those of the pack.
        listed_bytes: Smaller ones get no list.
    """
    large = {name: file for name, file in files.items() if file.size > listed_bytes}
    average = average_for(file.size for file in large.values())
    if average is None:
        return dict(files)
    lists = {name: chunk_list(folder / name, average) for name in large}
    while sum(len(listed.packed) for listed in lists.values()) > MAX_LIST_BYTES:
        # Content that is cut everywhere; the list of a large file saves the most room.
        del lists[max(lists, key=lambda name: len(lists[name].packed))]
    return {
        name: msgspec.structs.replace(file, chunks=lists.get(name)) for name, file in files.items()
    }


def average_for(sizes: Iterable[int]) -> int | None:
    """The average size of chunks, so that all lists fit a manifest; None where none does."""
    total, average = sum(sizes), AVERAGE_BYTES
    while total > average * EXPECTED_CHUNKS:
        average *= 2
    return average if 4 * average <= MAX_CHUNK_BYTES else None


def chunk_list(path: Path, average: int = AVERAGE_BYTES) -> ChunkList:
    """Cut a file, which must not be empty."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return encode_list(cut(data, average))


def cut(data: Any, average: int = AVERAGE_BYTES) -> Iterator[Chunk]:
    """Yield the chunks of some bytes.

    Args:
        data: A bytes-like object.
        average: A power of two; a chunk but the last has at least a quarter of it and at most four
            times as much.
    """
    view = memoryview(data)
    try:
        start = 0
        for end in cut_ends(np.frombuffer(view, np.uint8), average):
            yield Chunk(start, end - start, hashlib.sha256(view[start:end]).digest())
            start = end
    finally:
        view.release()


def cut_ends(data: npt.NDArray[np.uint8], average: int = AVERAGE_BYTES) -> list[int]:
    """Return the end of each chunk of `data`."""
    strict, loose = _candidates(data, average)
    size, ends, start = len(data), [], 0
    while start < size:
        start = _next_cut(strict, loose, start, size, average)
        ends.append(start)
    return ends


def _next_cut(strict: list[int], loose: list[int], start: int, size: int, average: int) -> int:
    middle, last = min(size, start + average), min(size, start + 4 * average)
    for candidates, begin, end in ((strict, start + average // 4, middle), (loose, middle, last)):
        index = bisect_left(candidates, begin)
        if index < len(candidates) and candidates[index] < end:
            return candidates[index]
    return last


def _candidates(data: npt.NDArray[np.uint8], average: int) -> tuple[list[int], list[int]]:
    """Where chunks may end: by the strict condition and by the loose one."""
    bits = average.bit_length() - 1
    strict_below = np.uint32(1 << (32 - bits - _NORMALISATION))
    loose_below = np.uint32(1 << (32 - bits + _NORMALISATION))
    strict: list[int] = []
    loose: list[int] = []
    for begin in range(0, len(data), _SEGMENT_BYTES):
        before = min(begin, _WINDOW - 1)
        hashes = _hashes(data[begin - before : begin + _SEGMENT_BYTES])[before:]
        hits = np.flatnonzero(hashes < loose_below)
        ends = hits + (begin + 1)
        loose += ends.tolist()
        strict += ends[hashes[hits] < strict_below].tolist()
    return strict, loose


def _hashes(data: npt.NDArray[np.uint8]) -> _Words:
    hashes = _GEAR[data]
    for shift in (1, 2, 4, 8, 16):
        hashes[shift:] += hashes[:-shift] << np.uint32(shift)
    return hashes


assert MAX_CHUNKS >= 4 * EXPECTED_CHUNKS
