"""The chunk list of a manifest: what a file is made of, and which bytes of it must come.

A list is `(size u32, SHA-256)` for each chunk, little-endian, without a gap. Where the cuts lie is
the author's choice: a device compares lists and never cuts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from agent.documents.manifest import ChunkList
from agent.errors import PackError

ALGORITHM = "sha256"
MAX_CHUNK_BYTES = 4 * 1024 * 1024
MAX_CHUNKS = 1 << 15

# A request costs about as much as the bytes between two neighbours that are this far apart.
GAP_BYTES = 64 * 1024
MAX_RANGES = 64

_ENTRY = struct.Struct("<I32s")


class Chunk(NamedTuple):
    """A piece of a file. `digest` is the 32 bytes of its SHA-256."""

    offset: int
    size: int
    digest: bytes

    @property
    def end(self) -> int:
        return self.offset + self.size


class Range(NamedTuple):
    """Bytes of a file, from `start` up to but not including `end`."""

    start: int
    end: int


def encode_list(chunks: Iterable[Chunk]) -> ChunkList:
    """Return what a manifest says of these chunks."""
    return ChunkList(ALGORITHM, b"".join(_ENTRY.pack(one.size, one.digest) for one in chunks))


def decode_list(listed: ChunkList | None, size: int) -> tuple[Chunk, ...]:
    """Read a chunk list; none, or one of a kind that is not known here, gives no chunks.

    Args:
        listed: From the manifest.
        size: Bytes of the file.

    Raises:
        PackError: It is not a list of that file's chunks.
    """
    if listed is None or listed.alg != ALGORITHM:
        return ()
    count, rest = divmod(len(listed.packed), _ENTRY.size)
    if rest:
        raise _bad(f"{len(listed.packed)} bytes are no multiple of {_ENTRY.size}")
    if count > MAX_CHUNKS:
        raise _bad(f"{count} chunks, at most {MAX_CHUNKS}")
    chunks, offset = [], 0
    for length, digest in _ENTRY.iter_unpack(listed.packed):
        if not 1 <= length <= MAX_CHUNK_BYTES:
            raise _bad(f"a chunk of {length} bytes, allowed are 1 to {MAX_CHUNK_BYTES}")
        chunks.append(Chunk(offset, length, digest))
        offset += length
    if offset != size:
        raise _bad(f"its chunks are {offset} bytes together, the file has {size}")
    return tuple(chunks)


def _bad(reason: str) -> PackError:
    return PackError(f"chunk list: {reason}", hint="pack the model again")


def ranges_of(
    chunks: Iterable[Chunk], *, gap_bytes: int = GAP_BYTES, most: int = MAX_RANGES
) -> tuple[Range, ...]:
    """Return the byte ranges that bring these chunks, in few requests.

    Neighbours with a small gap become one, then those with the smallest gaps until `most` are left.

    Args:
        chunks: Those to fetch, in the order of the file.
        gap_bytes: Gaps up to this size are fetched along.
        most: How many ranges there may be.
    """
    ranges = [(one.offset, one.end) for one in chunks]
    gaps = [after[0] - before[1] for before, after in pairwise(ranges)]
    # The largest gaps stay, one less than there may be ranges, and of those the wide ones only.
    kept = sorted(sorted(range(len(gaps)), key=gaps.__getitem__)[len(gaps) - most + 1 :])
    cuts = [index for index in kept if gaps[index] > gap_bytes]
    firsts, lasts = [0, *(index + 1 for index in cuts)], [*cuts, len(ranges) - 1]
    if not ranges:
        return ()
    return tuple(Range(ranges[a][0], ranges[b][1]) for a, b in zip(firsts, lasts, strict=True))


def bytes_of(ranges: Iterable[Range]) -> int:
    """How many bytes ranges are together."""
    return sum(one.end - one.start for one in ranges)
