"""Files of a pack from a folder of this machine that the settings allow. Only in the fetch process.

A deployment comes from outside and could name any file the agent may read, so only folders below
`fetch.roots` are opened, one level at a time, and never through a symbolic link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from agent.documents.manifest import MAX_MANIFEST_BYTES
from agent.errors import FetchError, SourceMissing, SourceRefused

READ_BYTES = 1 << 20
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait for a writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LocalFiles:
    """The files below one `file:` URL."""

    def __init__(self, source: str, roots: Sequence[str]) -> None:
        """
        Args:
            source: `file:///folder/of/the/pack`.
            roots: Folders below which it may lie.

        Raises:
            SourceRefused: It lies elsewhere, or is no such URL.
        """
        parts = urlsplit(source)
        path = PurePosixPath(unquote(parts.path))
        if parts.netloc not in ("", "localhost") or not path.is_absolute() or ".." in path.parts:
            raise SourceRefused(f"{source!r} is not the URL of a folder", hint="file:///a/folder")
        self._path = path
        self._root = next((root for root in roots if path.is_relative_to(root)), "")
        if not self._root:
            allowed = ", ".join(roots) or "none"
            raise SourceRefused(
                f"{path} lies below no folder that this device may take packs from ({allowed})",
                hint=f'to allow it, set [fetch] roots = ["{path.parent}"] on the device',
            )

    def pieces(
        self, name: str, start: int, size: int | None, end: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Read one file, or a part of it. See `agent.daemon.fetch_http.HttpFiles.pieces`."""
        with self._opened(name) as descriptor:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise SourceRefused(f"{self._path / name} is not a regular file")
            limit = MAX_MANIFEST_BYTES if size is None else size
            if found.st_size > limit or (size is not None and found.st_size != size):
                raise FetchError(
                    f"{self._path / name} has {found.st_size} bytes; {limit} are promised",
                    hint="is it being copied at this moment, or is it another pack?",
                )
            last = limit if end is None else end
            while start < min(found.st_size, last) and (
                data := os.pread(descriptor, min(READ_BYTES, last - start), start)
            ):
                yield start, data
                start += len(data)

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        inside = (self._path / name).relative_to(self._root).parts
        opened: list[int] = []
        try:
            opened.append(os.open(Path(self._root), _FOLDER))
            for folder in inside[:-1]:
                opened.append(os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=opened[-1]))
            opened.append(os.open(inside[-1], _FILE, dir_fd=opened[-1]))
            yield opened[-1]
        except OSError as error:
            raise self._explained(error, name) from None
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _explained(self, error: OSError, name: str) -> FetchError:
        where = f"{self._path / name}: {error.strerror}"
        if isinstance(error, FileNotFoundError):
            return SourceMissing(where, hint="is the medium there, and the whole pack on it?")
        return SourceRefused(where, hint="symbolic links are not followed")
