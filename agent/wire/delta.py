"""Deltas of the method `xor-planes-1`: a file as its difference from an older one.

For each block of the new file, in order:

    u32 length, little-endian · that many bytes: the compressed byte planes of (new XOR old)

The old block has the same place in the old file; past its end are zeros. Plane i of a block holds
its bytes i, i + width, i + 2 * width …; the planes follow one another. Where two models differ by a
little training, sign, exponent and high bits of most numbers agree, so that their planes are zeros.

Only the standard library decodes, a block at a time: two blocks in memory and the window of the
codec, however large the file. No length is believed before it is bounded.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import NamedTuple

from agent.documents.manifest import MAX_DELTA_BLOCK_BYTES as MAX_DELTA_BLOCK_BYTES
from agent.documents.manifest import Delta
from agent.errors import PackError

lzma: ModuleType | None
try:
    import lzma
except ImportError:  # a Python that was built without liblzma
    lzma = None

METHOD = "xor-planes-1"
WIDTHS = (1, 2, 4, 8)
BLOCK_BYTES = 1 << 20
LENGTH_BYTES = 4
_PIECE_BYTES = 64 * 1024
_MORE = "bytes follow its compressed data"

# Offset and length → bytes, fewer at the end of a file.
Read = Callable[[int, int], bytes]
Pieces = Iterable[bytes]


class Shape(NamedTuple):
    """How a delta is made: see `agent.documents.manifest.Delta`."""

    width: int
    codec: str
    block: int = BLOCK_BYTES


def is_known(delta: Delta) -> bool:
    """Whether this Python can apply such a delta."""
    return delta.method == METHOD and delta.width in WIDTHS and delta.codec in _INFLATE


def shape_of(delta: Delta) -> Shape:
    return Shape(delta.width, delta.codec, delta.block)


# Encoding, on the workstation.


def encode_block(new: bytes, old: bytes, shape: Shape) -> bytes:
    """Return one block of a delta.

    Args:
        new: The block of the new file.
        old: What the old file has at the same place; may be shorter.
        shape: How the delta is made; `block` may be larger than this one.
    """
    packed = _DEFLATE[shape.codec](planes_of(difference(new, old), shape.width), shape)
    return len(packed).to_bytes(LENGTH_BYTES, "little") + packed


def difference(new: bytes, old: bytes) -> bytes:
    """Return new XOR old; zeros stand for what old lacks."""
    old = old[: len(new)].ljust(len(new), b"\0")
    return _xor(new, old)


def planes_of(data: bytes, width: int) -> bytes:
    return b"".join(data[plane::width] for plane in range(width))


def _deflate_zlib(data: bytes, shape: Shape) -> bytes:
    return zlib.compress(data, 9)


def _deflate_lzma(data: bytes, shape: Shape) -> bytes:
    assert lzma is not None
    # A window larger than the block would only cost the device memory.
    window = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": max(4096, shape.block)}
    packed: bytes = lzma.compress(
        data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=[window]
    )
    return packed


_DEFLATE: Mapping[str, Callable[[bytes, Shape], bytes]] = {
    "zlib": _deflate_zlib,
    **({"lzma": _deflate_lzma} if lzma is not None else {}),
}


# Decoding, on the device.


def decoded(
    delta: Read,
    delta_size: int,
    old: Read,
    size: int,
    shape: Shape,
    *,
    wanted: Callable[[int, int], bool] = lambda start, end: True,
) -> Iterator[tuple[int, bytearray]]:
    """Yield the new file, block by block, each with its offset.

    Args:
        delta: Reads the delta.
        delta_size: Its bytes.
        old: Reads the old file.
        size: Bytes of the new file.
        shape: How the delta was made.
        wanted: Asked for each block (start and end in the new file); one that is not is left out.

    Raises:
        PackError: It is no such delta; says at which block.
    """
    most = shape.block + shape.block // 64 + 1024  # what cannot be compressed grows by less
    at = 0
    for start in range(0, size, shape.block):
        length = int.from_bytes(delta(at, LENGTH_BYTES), "little")
        at += LENGTH_BYTES
        if not 1 <= length <= most or at + length > delta_size:
            raise _bad(start, f"its length is {length}, {max(0, delta_size - at)} bytes are left")
        end = min(size, start + shape.block)
        if wanted(start, end):
            yield start, _decode_block(_pieces(delta, at, length), old, start, end, shape)
        at += length
    if at != delta_size:
        raise PackError(f"delta: {delta_size - at} bytes follow its last block")


def _decode_block(packed: Pieces, old: Read, start: int, end: int, shape: Shape) -> bytearray:
    try:
        planes = _INFLATE[shape.codec](packed, end - start, shape)
    except _Damaged as damaged:
        raise _bad(start, str(damaged)) from None
    block = _from_planes(planes, shape.width)
    del planes
    # In small pieces: a number of a whole block, or four, would double what is in memory.
    for offset in range(0, len(block), _PIECE_BYTES):
        piece = block[offset : offset + _PIECE_BYTES]
        before = old(start + offset, len(piece))
        if before:
            block[offset : offset + len(before)] = _xor(piece[: len(before)], before)
    return block


def _from_planes(planes: bytearray, width: int) -> bytearray:
    if width == 1:
        return planes
    block, at = bytearray(len(planes)), 0
    for plane in range(width):
        count = len(range(plane, len(planes), width))
        block[plane::width] = memoryview(planes)[at : at + count]
        at += count
    return block


def _pieces(read: Read, at: int, length: int) -> Iterator[bytes]:
    while length:
        piece = read(at, min(length, _PIECE_BYTES))
        if not piece:
            return  # the codec misses its end
        yield piece
        at += len(piece)
        length -= len(piece)


class _Damaged(Exception):
    """A block that does not decompress to what it must."""


class _Filling:
    """Memory for one block, taken at once; `room` is how much the next step may give."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self._at = 0

    @property
    def room(self) -> int:
        # One byte too many is seen, and no second one; 0 would mean without a bound.
        return min(_PIECE_BYTES, len(self.data) + 1 - self._at)

    def take(self, inflated: bytes) -> None:
        if self._at + len(inflated) > len(self.data):
            raise _Damaged(f"it inflates to more than its {len(self.data)} bytes")
        self.data[self._at : self._at + len(inflated)] = inflated
        self._at += len(inflated)

    def whole(self, *, ended: bool) -> bytearray:
        if self._at < len(self.data) or not ended:
            raise _Damaged(f"it ends after {self._at} of {len(self.data)} bytes")
        return self.data


def _inflate_zlib(pieces: Pieces, size: int, shape: Shape) -> bytearray:
    inflater, out = zlib.decompressobj(), _Filling(size)
    try:
        for piece in pieces:
            if inflater.eof:
                raise _Damaged(_MORE)
            full = True
            while (piece or full) and not inflater.eof:
                room = out.room
                inflated = inflater.decompress(piece, room)
                out.take(inflated)
                # Where all that was asked for came, there may be more without further input.
                piece, full = inflater.unconsumed_tail, len(inflated) == room
            if inflater.unused_data:
                raise _Damaged(_MORE)
    except zlib.error as error:
        raise _Damaged(str(error)) from None
    return out.whole(ended=inflater.eof)


def _inflate_lzma(pieces: Pieces, size: int, shape: Shape) -> bytearray:
    assert lzma is not None
    # A header may ask for a window of gigabytes; ours asks for a block, rounded up.
    bound = 2 * shape.block + (1 << 20)
    inflater, out = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=bound), _Filling(size)
    try:
        for piece in pieces:
            if inflater.eof:
                raise _Damaged(_MORE)
            out.take(inflater.decompress(piece, out.room))
            while not (inflater.needs_input or inflater.eof):
                out.take(inflater.decompress(b"", out.room))
            if inflater.unused_data:
                raise _Damaged(_MORE)
    except lzma.LZMAError as error:
        raise _Damaged(str(error)) from None
    return out.whole(ended=inflater.eof)


_INFLATE: Mapping[str, Callable[[Pieces, int, Shape], bytearray]] = {
    "zlib": _inflate_zlib,
    **({"lzma": _inflate_lzma} if lzma is not None else {}),
}


def _xor(one: bytes | bytearray, other: bytes | bytearray) -> bytes:
    """Of two of the same length."""
    mixed = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
    return mixed.to_bytes(len(one), "little")


def _bad(start: int, reason: str) -> PackError:
    return PackError(f"delta, block at {start}: {reason}", hint="pack the model again")
