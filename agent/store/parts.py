"""A file that arrives in numbered blocks, in any order, over any number of restarts.

`part/<hex>` holds the bytes, `part/<hex>.map` which blocks of it are durable. The map never runs
ahead of the bytes: it is written after they are flushed, and removed before they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from agent.errors import DigestMismatch, PackError
from agent.store.blobs import sha256
from agent.store.files import Files, OpenFile
from agent.store.sealed import HEADER_BYTES, seal, unseal

FLUSH_BYTES = 8 << 20
BLOCKS_MAX = 1 << 20
_SIZES = struct.Struct("<QI")  # size of the file, size of a block


class Part:
    """One file being received. Get one from `PackStore.begin_part`; close it, finished or not.

    Args:
        files: The layer to use.
        path: Where the bytes are kept; its last part is the hex digest they must have.
        size: Bytes of the whole file.
        block_size: Bytes of each block but the last.
        adopt: Moves the whole, verified file to where it is kept.
        on_close: Called once, when this part is no longer being written.
    """

    def __init__(
        self,
        files: Files,
        path: Path,
        size: int,
        block_size: int,
        *,
        adopt: Callable[[OpenFile], None],
        on_close: Callable[[], object],
    ) -> None:
        self.size = size
        self.block_size = block_size
        self.block_count = -(-size // block_size)
        self.received_bytes = 0
        self._files = files
        self._path = path
        self._map_path = map_of(path)
        self._adopt = adopt
        self._on_close = on_close
        self._received = bytearray(-(-self.block_count // 8))
        self._unflushed_bytes = 0
        self._file: OpenFile | None = self._resume() or self._start()

    def missing_blocks(self, start: int = 0, limit: int | None = None) -> list[int]:
        """The numbers of blocks not received yet, from `start` on, at most `limit` of them."""
        missing: list[int] = []
        for index in range(start, self.block_count):
            if limit is not None and len(missing) >= limit:
                break
            if not self._has(index):
                missing.append(index)
        return missing

    def lacks(self, start: int, end: int) -> bool:
        """Whether some byte from `start` up to but not including `end` is still to come."""
        blocks = range(start // self.block_size, -(-end // self.block_size))
        return not all(map(self._has, blocks))

    def missing_regions(self) -> list[tuple[int, int]]:
        """The runs of bytes not received yet: the first byte, and behind the last."""
        runs: list[tuple[int, int]] = []
        for index in self.missing_blocks():
            start = index * self.block_size
            end = start + self._length(index)
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
        return runs

    @property
    def complete(self) -> bool:
        """Whether every block is here; whether they are the right bytes, only `finish` knows."""
        return self.received_bytes == self.size

    def write_block(self, index: int, data: bytes | bytearray | memoryview) -> None:
        """Put one block in its place; a block that is here already is left as it is.

        Flushes by itself every 8 MiB, which takes a memory card up to a second: call it from a
        thread where that matters.

        Raises:
            PackError: There is no such block, or it has another length.
            StoreError: The disk is full or fails; blocks flushed before stay.
        """
        if not 0 <= index < self.block_count:
            raise PackError(f"{self._path.name}: block {index} of {self.block_count}")
        length = self._length(index)
        if len(data) != length:
            raise PackError(
                f"{self._path.name}: block {index} has {len(data)} bytes, expected {length}"
            )
        if self._has(index):
            return
        self._files.write(self._open_file(), data, index * self.block_size)
        self._mark(index)
        self._unflushed_bytes += length
        if self._unflushed_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Make all blocks received so far survive a power cut."""
        if not self._unflushed_bytes:
            return
        self._files.sync_data(self._open_file())
        sizes = _SIZES.pack(self.size, self.block_size)
        self._files.replace(self._map_path, seal(sizes + self._received))
        self._unflushed_bytes = 0

    def finish(self) -> None:
        """Verify the whole file and store it under its digest; durable on return.

        Reads the file once: call it from a thread when it is large.

        Raises:
            RuntimeError: A block is missing; ask `complete` first.
            DigestMismatch: The bytes are not what the digest promises; all of them are dropped.
            StoreError: The disk is full or fails; the part stays for another attempt.
        """
        if not self.complete:
            raise RuntimeError(f"{self._path.name}: finished before all its blocks were received")
        got = sha256(self._files, self._path)
        # None: moved by an earlier attempt whose last flush failed; only that is left to do.
        if got not in (self._path.name, None):
            self.discard()
            raise DigestMismatch(f"sha256:{self._path.name}: the bytes received are sha256:{got}")
        self._adopt(self._open_file())
        self.close()
        self._files.discard(self._map_path)

    def discard(self) -> None:
        """Close and remove what was received."""
        self.close()
        discard_part(self._files, self._path)

    def close(self) -> None:
        """Stop writing; what was flushed is there for the next `begin_part`. Safe to call twice."""
        if self._file is not None:
            file, self._file = self._file, None
            self._on_close()
            self._files.close(file)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resume(self) -> OpenFile | None:
        bitmap = _read_map(self._files, self._path, self.size, self.block_size)
        found_part = self._files.stat(self._path)
        if bitmap is None or found_part is None:
            return None
        if found_part.st_mode & 0o777 != 0o600:
            # It was about to become a blob; read-only already, it could not be opened again.
            self._files.chmod(self._path, 0o600)
        self._received[:] = bitmap
        missing = self.missing_blocks()
        self.received_bytes = self.size - sum(map(self._length, missing))
        return self._files.open(self._path)

    def _start(self) -> OpenFile:
        self._files.make_folder(self._path.parent)
        discard_part(self._files, self._path)
        return self._files.create(self._path)

    def _open_file(self) -> OpenFile:
        if self._file is None:
            raise RuntimeError(f"{self._path.name}: used after it was closed")
        return self._file

    def _length(self, index: int) -> int:
        return min(self.block_size, self.size - index * self.block_size)

    def _has(self, index: int) -> bool:
        return bool(self._received[index >> 3] >> (index & 7) & 1)

    def _mark(self, index: int) -> None:
        self._received[index >> 3] |= 1 << (index & 7)
        self.received_bytes += self._length(index)


def _read_map(files: Files, path: Path, size: int, block_size: int) -> bytes | None:
    """Which blocks of a part are durable; None where there is no such part."""
    count = -(-size // block_size)
    length = -(-count // 8)
    found = files.read_range(map_of(path), 0, HEADER_BYTES + _SIZES.size + length)
    sealed = unseal(found) if found else None
    if sealed is None or not sealed.document.startswith(_SIZES.pack(size, block_size)):
        return None
    bitmap = sealed.document[_SIZES.size :]
    return bitmap if len(bitmap) == length else None


def received_of(files: Files, path: Path, size: int, block_size: int) -> int:
    """How many bytes of a part an interrupted attempt has left."""
    bitmap = _read_map(files, path, size, block_size)
    if bitmap is None or files.stat(path) is None:
        return 0
    count, last = -(-size // block_size), size % block_size or block_size
    blocks = int.from_bytes(bitmap, "little") & ((1 << count) - 1)
    # Only the last block may be shorter.
    short = block_size - last if blocks >> (count - 1) & 1 else 0
    return blocks.bit_count() * block_size - short


def map_of(path: Path) -> Path:
    """Where the map of a part is kept."""
    return path.with_name(f"{path.name}.map")


def discard_part(files: Files, path: Path) -> None:
    """Remove a part and its map; the map durably first, or it would vouch for other bytes."""
    if files.stat(map_of(path)) is not None:
        files.unlink(map_of(path))
        files.sync_dir(path.parent)
    files.unlink(path)
