"""A file that holds a little space for the moment when the disk is full."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from agent.errors import StoreError
from agent.store.files import Files, temporary_name

BALLAST_BYTES = 1 << 20


def can_spare(free_bytes: int, size: int) -> bool:
    """Whether a disk has room for ballast again.

    Four times over, or filling it would itself be what fills the disk, over and over.
    """
    return free_bytes >= 4 * size


class Ballast:
    """One MiB on disk, given up so that state can still be saved on a full disk.

    Args:
        files: The layer to use.
        path: The file.
        size: How long it is.
        on_release: Told when it was given up; to fill it again is the owner's part.
    """

    def __init__(
        self,
        files: Files,
        path: Path,
        size: int = BALLAST_BYTES,
        on_release: Callable[[], None] = lambda: None,
    ) -> None:
        self._files = files
        self._path = path
        self._size = size
        self._on_release = on_release

    def fill(self) -> bool:
        """Write the file where it is missing; False when the disk cannot spare it now."""
        if self._files.size(self._path) == self._size:
            return True
        temporary = temporary_name(self._path)
        try:
            if not can_spare(self._files.space(self._path).free_bytes, self._size):
                return False
            self._files.make_folder(self._path.parent)
            # Random, because a file system that compresses would store zeros as nothing.
            self._files.write_new(temporary, os.urandom(self._size))
            self._files.rename(temporary, self._path)
        except StoreError:
            self._files.discard(temporary)
            return False
        return True

    def release(self) -> bool:
        """Give the space back; False when there was none to give."""
        if not self._files.size(self._path):
            return False
        self._files.unlink(self._path)
        self._on_release()
        # Freed blocks can be used again only once the removal itself is durable.
        self._files.sync_dir(self._path.parent)
        return True
