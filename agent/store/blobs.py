"""Content-addressed files: `blobs/sha256/ab/<hex>`, read-only, never opened for writing again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.errors import DigestMismatch, StoreCorrupt, StoreError
from agent.store.files import Files, OpenFile, is_temporary, temporary_name

# Packs hold hard links to blobs: writing to a blob would change every pack that has it.
BLOB_MODE = 0o444


class Blob(msgspec.Struct, frozen=True):
    """A blob on disk; `links` counts its own name and each place in a pack."""

    digest_hex: str
    size: int
    links: int


class Blobs:
    """The files of all packs, each stored once under the hex digits of its SHA-256."""

    def __init__(self, files: Files, root: Path) -> None:
        self._files = files
        self._root = root / "blobs" / "sha256"
        # Verified by this process, so that a pack just fetched is not read once more.
        self._verified: set[str] = set()

    def path(self, digest_hex: str) -> Path:
        return self._root / digest_hex[:2] / digest_hex

    def size(self, digest_hex: str) -> int | None:
        """Bytes of a blob, or None when it is not here."""
        return self._files.size(self.path(digest_hex))

    def adopt(self, file: OpenFile, digest_hex: str) -> None:
        """Move a file whose content was verified in; durable on return."""
        target = self.path(digest_hex)
        # When the last flush of an earlier attempt failed, the file has moved already.
        if self._files.stat(file.path) is not None:
            self._files.chmod(file.path, BLOB_MODE)
            self._files.sync(file)
            self._files.make_folder(target.parent)
            self._files.rename(file.path, target)
        elif self._files.stat(target) is None:
            raise StoreCorrupt(f"{file.path}: vanished while it was being received")
        self._files.sync_dir(target.parent)
        self._verified.add(digest_hex)

    def add(self, data: bytes, digest_hex: str) -> None:
        """Store bytes held in memory; durable on return, nothing to do when they are here.

        Raises:
            DigestMismatch: The bytes are not what the digest promises.
        """
        got = hashlib.sha256(data).hexdigest()
        if got != digest_hex:
            raise DigestMismatch(f"sha256:{digest_hex}: the bytes given are sha256:{got}")
        target = self.path(digest_hex)
        if self.is_whole(digest_hex):
            # The flush that ended an earlier attempt may have failed.
            self._files.sync_dir(target.parent)
            return
        temporary = temporary_name(target)
        self._files.make_folder(target.parent)
        try:
            self._files.write_new(temporary, data, BLOB_MODE)
            self._files.rename(temporary, target)
        except StoreError:
            self._files.discard(temporary)
            raise
        self._files.sync_dir(target.parent)
        self._verified.add(digest_hex)

    def is_whole(self, digest_hex: str) -> bool:
        """Whether the blob is here with the right content; read once in the life of a process."""
        if self.size(digest_hex) is None:
            return False
        if digest_hex not in self._verified:
            if sha256(self._files, self.path(digest_hex)) != digest_hex:
                return False
            self._verified.add(digest_hex)
        return True

    def is_altered(self, digest_hex: str) -> bool:
        """Read a blob again, whatever was known of it; an absent one is not altered."""
        self._verified.discard(digest_hex)
        return self.size(digest_hex) is not None and not self.is_whole(digest_hex)

    def drop(self, digest_hex: str) -> None:
        """Forget a blob, durable on return, so that it is fetched again."""
        self._verified.discard(digest_hex)
        path = self.path(digest_hex)
        if self._files.stat(path) is not None:
            self._files.unlink(path)
            self._files.sync_dir(path.parent)

    def all(self) -> Iterator[Blob]:
        """Every blob, in no useful order."""
        for folder in self._shelves():
            for name in self._files.names(folder):
                found = self._files.stat(folder / name)
                if found is not None and len(name) == 64 and not is_temporary(name):
                    yield Blob(name, found.st_size, found.st_nlink)

    def sweep(self) -> None:
        for folder in self._shelves():
            self._files.sweep(folder)

    def _shelves(self) -> list[Path]:
        # What a person has put beside them must not end a fetch.
        folders = [self._root / name for name in self._files.names(self._root)]
        return [path for path in folders if len(path.name) == 2 and self._files.is_folder(path)]


def sha256(files: Files, path: Path) -> str | None:
    """Hex SHA-256 of a file, or None when it is not there."""
    if files.stat(path) is None:
        return None
    digest = hashlib.sha256()
    for chunk in files.chunks(path):
        digest.update(chunk)
    return digest.hexdigest()
