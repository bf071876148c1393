"""One small document in a file whose room on disk was taken beforehand.

Unlike a replaced file it can be saved on a full disk, and with one flush. The file has two halves;
a save overwrites the older one, and a damaged half falls back to the other.
"""

from __future__ import annotations

from pathlib import Path

from agent.errors import StoreError
from agent.store.files import Files, OpenFile, temporary_name
from agent.store.sealed import HEADER_BYTES, Sealed, seal, unseal


class FixedFile:
    """A document of bounded size. Call `load` before anything else.

    Args:
        files: The layer to use.
        path: The file, made by `load` where it is missing.
        half_bytes: Room for one generation, a multiple of 4096.
    """

    def __init__(self, files: Files, path: Path, half_bytes: int) -> None:
        self.corrupt = False
        self._files = files
        self._path = path
        self._half_bytes = half_bytes
        self._generation = 0
        self._file: OpenFile | None = None

    def load(self) -> bytes | None:
        """The newest whole document, or None when there is none; `corrupt` says if one was."""
        data = self._files.read_range(self._path, 0, 2 * self._half_bytes) or b""
        if len(data) < 2 * self._half_bytes:
            self._make()
        self._file = self._files.open(self._path)
        halves = (data[: self._half_bytes], data[self._half_bytes :])
        found = [sealed for half in halves if (sealed := unseal(half)) is not None]
        # A save cut short damages one half; the other is whole, or still empty at the first save.
        self.corrupt = not found and all(map(any, halves))
        newest = max(found, key=lambda sealed: sealed.generation, default=Sealed(0, b""))
        self._generation = newest.generation
        return newest.document if found else None

    def save(self, document: bytes) -> None:
        """Store the document, durable on return; on any error the old one stays.

        Raises:
            StoreError: It does not fit into its half, or the disk fails.
        """
        stored = seal(document, self._generation + 1)
        if len(document) > self._half_bytes - HEADER_BYTES:
            raise StoreError(f"{self._path}: {len(document)} bytes do not fit")
        if self._file is None:
            raise RuntimeError(f"{self._path}: used before it was loaded")
        half = (self._generation + 1) % 2
        self._files.write(self._file, stored, half * self._half_bytes)
        self._files.sync_data(self._file)
        self._generation += 1

    def close(self) -> None:
        """Give the descriptor back. Safe to call twice."""
        if self._file is not None:
            file, self._file = self._file, None
            self._files.close(file)

    def _make(self) -> None:
        temporary = temporary_name(self._path)
        try:
            self._files.write_new(temporary, bytes(2 * self._half_bytes))
            self._files.rename(temporary, self._path)
        except StoreError:
            self._files.discard(temporary)
            raise
        self._files.sync_dir(self._path.parent)
