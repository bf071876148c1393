"""What inference libraries compiled of models on this device, so that a later start need not.

    compiled/<key>/       the files of one, read-only
    compiled/<key>.sealed which digest each of them must have; or why there are none

The key is a digest of all that an artefact holds for (`agent.control.fingerprint.cache_key`): one
for another driver has another name and is never looked at. A folder is filled under a temporary
name, proven there, and gets its own name at last: what is under a key has been proven. All of it
can be made again, so whatever is wrong with it costs a removal and no more.
"""

from __future__ import annotations

import hashlib
import stat
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.errors import NoSpace, PackError, StoreError
from agent.store.blobs import BLOB_MODE
from agent.store.files import Files, is_temporary, temporary_name
from agent.store.names import check_names
from agent.store.packs import RESERVE_BYTES_MIN, RESERVE_SHARE
from agent.store.sealed import seal, unseal

FILES_MAX = 64
ENTRIES_MAX = 64
_KEY_DIGITS = 64
_SEAL_BYTES_MAX = 64 << 10
_SEALED = ".sealed"


class Sealed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What stands beside a folder.

    Attributes:
        files: Name → digest and size in bytes.
        refused: Why there is no folder: what was compiled was no good, and would be no better.
    """

    files: dict[str, tuple[str, int]] = {}
    refused: str = ""


class CompiledStore:
    """The artefacts of one device, within a quota. Methods that take a key may read whole files:
    call them from a thread.

    Args:
        files: The layer to use.
        root: The folder that holds `compiled`.
        quota_bytes: Most that they may take together; 0: nothing is ever kept.
    """

    def __init__(self, files: Files, root: Path, quota_bytes: int) -> None:
        self._files = files
        self._folder = root / "compiled"
        self._quota = quota_bytes
        self._lock = threading.RLock()

    def has(self, key: str) -> bool:
        """Whether there is an artefact; whether it is whole, `use` says."""
        return self._files.is_folder(self._path(key))

    def refused(self, key: str) -> str:
        """Why what was compiled under a key is not used; nothing: it may be compiled."""
        sealed = self._read(key)
        return sealed.refused if sealed is not None else ""

    def use(self, key: str) -> Path | None:
        """Return an artefact's folder once every file is seen to be as it was sealed.

        One that is damaged is removed, and None is returned as if it had never been.
        """
        with self._lock:
            if not self.has(key):
                return None
            sealed, path = self._read(key), self._path(key)
            if sealed is None or not self._is_whole(path, sealed):
                self.drop(key)
                return None
            self._mark_used(key)
            return path

    def begin(self, key: str) -> Path:
        """Make an empty folder to compile into; `keep` or `give_up` ends it.

        Raises:
            NoSpace: Nothing more fits.
        """
        with self._lock:
            self._files.make_folder(self._folder)
            self._reserve(1)
            path = temporary_name(self._path(key))
            self._files.mkdir(path, 0o700)
            return path

    def size(self, path: Path) -> int:
        """Bytes in a folder that is being filled; more than they are where it holds what it must
        not, so that whoever watches it ends the one that fills it."""
        try:
            found = [path.joinpath(name).lstat() for name in self._files.names(path)]
        except (StoreError, OSError):
            return 0  # a file that was renamed meanwhile
        odd = len(found) > FILES_MAX or not all(stat.S_ISREG(each.st_mode) for each in found)
        return self.room() + 1 if odd else sum(each.st_size for each in found)

    def room(self, roots: Collection[str] = ()) -> int:
        """Bytes that one artefact may take, were all but `roots` to make room for it."""
        kept = sum(self._entry_bytes(key) for key in self.keys() if key in roots)
        reserve, free = self._disk()
        return max(0, min(self._quota - kept, free - reserve))

    def close(self, path: Path) -> Sealed:
        """Make what was compiled into a folder durable and read-only.

        Nobody may write there any more when this is called.

        Raises:
            StoreError: There is nothing in it, or something else than a few plain files.
        """
        files: dict[str, tuple[str, int]] = {}
        names = self._files.names(path)
        if not names or len(names) > FILES_MAX:
            raise StoreError(f"{len(names)} files were compiled, expected 1 to {FILES_MAX}")
        try:
            check_names(names)
        except PackError as error:
            raise StoreError(f"what was compiled is not kept: {error.message}") from None
        for name in names:
            found = self._files.stat(path / name)
            # Before it is opened: a pipe would wait for a writer.
            if found is None or not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise StoreError(f"what was compiled holds {name!r}, which is no plain file")
            with self._files.opened(path / name) as file:
                self._files.chmod(path / name, BLOB_MODE)
                self._files.sync(file)
            files[name] = (self._digest(path / name), found.st_size)
        # A worker may be another user than the agent.
        self._files.chmod(path, 0o755)
        self._files.sync_dir(path)
        return Sealed(files)

    def keep(self, key: str, path: Path, sealed: Sealed, roots: Collection[str] = ()) -> Path:
        """Put a proven artefact under its key, in place of what may be there.

        Args:
            key: All that it holds for.
            path: From `begin`.
            sealed: From `close`.
            roots: Keys that stay when room is made.

        Raises:
            NoSpace: It does not fit beside what is in use; the folder is removed.
            StoreError: The disk fails, or a file is another than the one that was sealed.
        """
        with self._lock:
            try:
                if not self._is_whole(path, sealed):
                    raise StoreError("what was compiled changed after it was proven")
                self.drop(key)
                self._make_room(sum(size for _, size in sealed.files.values()), roots, path)
                self._files.replace(self._sealed(key), seal(msgspec.json.encode(sealed)))
                self._files.rename(path, self._path(key))
                self._files.sync_dir(self._folder)
            except StoreError:
                self.give_up(path)
                raise
            self._mark_used(key)
            return self._path(key)

    def refuse(self, key: str, why: str) -> None:
        """Remember that what is compiled under a key is no good, so that it is not tried again."""
        with self._lock:
            self.drop(key)
            self._files.make_folder(self._folder)
            sealed = Sealed(refused=why[:1000] or "it is no good")
            self._files.replace(self._sealed(key), seal(msgspec.json.encode(sealed)))
            self._drop_beyond(ENTRIES_MAX, ())

    def give_up(self, path: Path) -> None:
        """Remove a folder from `begin`; where the disk refuses, the next sweep does."""
        with suppress(StoreError, OSError):
            if self._files.is_folder(path):
                self._files.remove_tree(path)

    def drop(self, key: str) -> None:
        """Remove what is under a key, the refusal too."""
        with self._lock:
            if self.has(key):
                doomed = temporary_name(self._path(key))
                self._files.rename(self._path(key), doomed)
                self._files.remove_tree(doomed)
            self._files.unlink(self._sealed(key))

    def sweep(self) -> None:
        """Remove what interrupted calls have left. Call once at start, before anything else."""
        with self._lock:
            self._files.sweep(self._folder)
            for name in self._files.names(self._folder):
                key = name.removesuffix(_SEALED)
                if key == name:
                    if self._files.stat(self._sealed(key)) is None:
                        self.drop(key)
                elif not self.has(key) and not self.refused(key):
                    self._files.unlink(self._folder / name)

    def keys(self) -> list[str]:
        """All keys that something is known of, longest unused first."""
        found = {name.removesuffix(_SEALED) for name in self._files.names(self._folder)}
        keys = [key for key in found if not is_temporary(key) and len(key) == _KEY_DIGITS]
        return sorted(keys, key=lambda key: (self._last_used(key), key))

    def used_bytes(self) -> int:
        """What all of them take."""
        return sum(map(self._entry_bytes, self.keys()))

    # How it is done.

    def _make_room(self, needed: int, roots: Collection[str], coming: Path) -> None:
        if needed > self._quota:
            raise NoSpace(
                f"what was compiled takes {needed} bytes, at most {self._quota} may be kept",
                hint="raise limits.compiled_mb",
            )
        self._drop_beyond(ENTRIES_MAX - 1, roots)
        for key in self.keys():
            if self.used_bytes() + needed <= self._quota and self._spares_reserve():
                return
            if key not in roots:
                self.drop(key)
        if self.used_bytes() + needed > self._quota or not self._spares_reserve():
            raise NoSpace(
                f"there is no room for the {needed} bytes that were compiled beside what is in use",
                hint="raise limits.compiled_mb, or free some space",
            )

    def _drop_beyond(self, most: int, roots: Collection[str]) -> None:
        keys = self.keys()
        spare = [key for key in keys if key not in roots]
        for key in spare[: max(0, len(keys) - most)]:
            self.drop(key)

    def _reserve(self, needed: int) -> None:
        if self._quota < needed or not self._spares_reserve():
            raise NoSpace(
                "there is no room for what would be compiled",
                hint="raise limits.compiled_mb, or free some space",
            )

    def _spares_reserve(self) -> bool:
        reserve, free = self._disk()
        return free > reserve

    def _disk(self) -> tuple[int, int]:
        space = self._files.space(self._folder)
        return max(RESERVE_BYTES_MIN, int(space.total_bytes * RESERVE_SHARE)), space.free_bytes

    def _is_whole(self, path: Path, sealed: Sealed) -> bool:
        try:
            if set(self._files.names(path)) != set(sealed.files):
                return False
            return all(
                self._files.size(path / name) == size and self._digest(path / name) == digest
                for name, (digest, size) in sealed.files.items()
            )
        except StoreError:
            return False

    def _digest(self, path: Path) -> str:
        digest = hashlib.sha256()
        for chunk in self._files.chunks(path):
            digest.update(chunk)
        return digest.hexdigest()

    def _read(self, key: str) -> Sealed | None:
        try:
            data = self._files.read(self._sealed(key), _SEAL_BYTES_MAX)
        except StoreError:
            return None
        found = unseal(data) if data is not None else None
        try:
            return msgspec.json.decode(found.document, type=Sealed) if found is not None else None
        except msgspec.DecodeError:
            return None

    def _mark_used(self, key: str) -> None:
        newest = max((self._last_used(each) for each in self.keys() if each != key), default=0)
        if self._last_used(key) <= newest:
            # A count, not a time, and worth no failure: see `PackFolders.mark_used`.
            with suppress(StoreError):
                self._files.touch(self._sealed(key), newest + 1)

    def _last_used(self, key: str) -> int:
        found = self._files.stat(self._sealed(key))
        return 0 if found is None else int(found.st_mtime)

    def _entry_bytes(self, key: str) -> int:
        path = self._path(key)
        return sum(self._files.size(path / name) or 0 for name in self._files.names(path))

    def _path(self, key: str) -> Path:
        return self._folder / key

    def _sealed(self, key: str) -> Path:
        return self._folder / f"{key}{_SEALED}"
