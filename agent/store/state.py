"""One small document that survives a power cut, a full disk and a damaged block."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from agent.errors import NoSpace, StoreError
from agent.store.ballast import Ballast
from agent.store.files import Files
from agent.store.sealed import HEADER_BYTES, Sealed, seal, unseal

STATE_BYTES_MAX = 4 << 20


class Loaded(msgspec.Struct, frozen=True):
    """What a state file held.

    Attributes:
        document: The newest whole document, or None where there was none.
        corrupt: Files that were damaged or unreadable. With one of two, `document` may be the
            state before the last; with both, "nothing" must not be read as "new device".
    """

    document: bytes | None
    corrupt: tuple[Path, ...] = ()


class StateFile:
    """A document in two generations, each in a file of its own, each with a check sum.

    Memory cards lose neighbours of the block being written and acknowledge flushes they have not
    done; so a save never touches the generation that `load` would return.

    Args:
        files: The layer to use.
        path: The document's name; the generations are `<name>.0` and `<name>.1` beside it.
        ballast: Given up when the disk is full, so that this document can still be saved.
    """

    def __init__(self, files: Files, path: Path, ballast: Ballast | None = None) -> None:
        self._files = files
        self._paths = (path.with_name(f"{path.name}.0"), path.with_name(f"{path.name}.1"))
        # Where generations go that nobody could read: one place each, so that they stay few.
        self._bad = (path.with_name(f"{path.name}.bad.0"), path.with_name(f"{path.name}.bad.1"))
        self._ballast = ballast
        self._generation: int | None = None

    def load(self) -> Loaded:
        """The newest whole document, and what was damaged."""
        found: list[Sealed] = []
        corrupt: list[Path] = []
        for path in self._paths:
            try:
                data = self._files.read(path, STATE_BYTES_MAX + HEADER_BYTES)
            except StoreError:
                corrupt.append(path)
                continue
            sealed = None if data is None else unseal(data)
            if sealed is not None:
                found.append(sealed)
            elif data is not None:
                corrupt.append(path)
        newest = max(found, key=lambda sealed: sealed.generation, default=Sealed(0, b""))
        self._generation = newest.generation
        return Loaded(newest.document if found else None, tuple(corrupt))

    @property
    def kept(self) -> tuple[Path, ...]:
        """What `keep` has put aside and is still there."""
        return tuple(path for path in self._bad if self._files.size(path) is not None)

    def keep(self) -> None:
        """Put both generations aside as `<name>.bad.0` and `.1`, in place of earlier ones.

        Where the disk refuses, they stay until a save needs their place.
        """
        with suppress(StoreError):
            for path, bad in zip(self._paths, self._bad, strict=True):
                if self._files.size(path) is not None:
                    self._files.rename(path, bad)
            self._files.sync_dir(self._paths[0].parent)

    def save(self, document: bytes) -> None:
        """Store the document, durable on return.

        Raises:
            NoSpace: The disk is full, with the ballast gone already. The old document stays.
            StoreError: The disk fails, or the document has more than 4 MiB. The old one stays.
        """
        if len(document) > STATE_BYTES_MAX:
            raise StoreError(f"{self._paths[0]}: {len(document)} bytes of state, at most 4 MiB fit")
        if self._generation is None:
            self.load()
        try:
            self._write(document)
        except NoSpace:
            if self._ballast is None or not self._ballast.release():
                raise
            self._write(document)

    def _write(self, document: bytes) -> None:
        generation = (self._generation or 0) + 1
        path = self._paths[generation % 2]
        self._files.make_folder(path.parent)
        self._files.replace(path, seal(document, generation))
        self._generation = generation
