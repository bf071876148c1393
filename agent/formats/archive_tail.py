"""The ZIP archive that may follow a TFLite model, with its label files.

Only archives that are small in every respect are opened; the model itself runs without them.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence

from agent.errors import ModelRejected
from agent.formats.bounds import shown

MAX_FILES = 64
MAX_DIRECTORY_BYTES = 65_536
MAX_FILE_BYTES = 4_194_304
_END = struct.Struct("<4s4H2LH")  # end of central directory record, APPNOTE.TXT 4.3.16
_ZIP64_LOCATOR_BYTES = 20
_MAX_COMMENT_BYTES = 65_535
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# All that `zipfile` and `zlib` are known to raise on hostile bytes.
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError),
    *(ValueError, EOFError, OSError, OverflowError, KeyError, IndexError),
)


class _View(io.RawIOBase):
    """A file over a view; `io.BytesIO` would copy a model of any size."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}
        position = base[whence] + offset
        if position < 0:
            raise ValueError("position before the beginning")
        self._position = position
        return position

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        chunk = self._view[self._position : self._position + len(target)]
        target[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)


def read_tail(
    data: memoryview, choose: Callable[[Sequence[str]], str | None]
) -> tuple[tuple[str, ...], bytes | None]:
    """List the archive at the end of a model and read one file of it.

    Args:
        choose: given the names, says which file to read, if any.

    Returns:
        The names and the chosen file's content; ((), None) where there is no archive.

    Raises:
        ModelRejected: there is an archive, but it is broken or larger than allowed.
    """
    if not _has_archive(data):
        return (), None
    try:
        with zipfile.ZipFile(_View(data)) as archive:
            names = tuple(n for n in archive.namelist() if n.isprintable() and not n.endswith("/"))
            if len(names) > MAX_FILES:
                raise ModelRejected(f"it has {len(names)} files (at most {MAX_FILES})")
            chosen = choose(names)
            return names, _content(archive, chosen) if chosen is not None else None
    except _BROKEN as error:
        raise ModelRejected(f"it is broken: {error}") from None


def _has_archive(data: memoryview) -> bool:
    """Whether there is an end record; refuses what would make `zipfile` read without bound."""
    end = bytes(data[-(_END.size + _MAX_COMMENT_BYTES) :])
    found = end.rfind(b"PK\x05\x06")
    if found < 0 or len(end) - found < _END.size:
        return False
    if end[max(found - _ZIP64_LOCATOR_BYTES, 0) : found].startswith(b"PK\x06\x07"):
        raise ModelRejected("it is a ZIP64 archive")
    directory_bytes = _END.unpack_from(end, found)[5]
    if directory_bytes > MAX_DIRECTORY_BYTES:
        raise ModelRejected(f"its directory takes {directory_bytes} bytes")
    return True


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.getinfo(name)
    if entry.file_size > MAX_FILE_BYTES:
        raise ModelRejected(f"{shown(name)} has {entry.file_size} bytes (at most {MAX_FILE_BYTES})")
    if entry.flag_bits & _ENCRYPTED or entry.compress_type not in _METHODS:
        raise ModelRejected(f"{shown(name)} is encrypted, or packed in an unusual way")
    with archive.open(entry) as file:
        return file.read(MAX_FILE_BYTES)
