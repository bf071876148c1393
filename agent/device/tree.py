"""Reads of the machine's files, or of those of a tree or a recording in their place.

Whatever stands in such a file, or in place of it, no read blocks, none is longer than
`MAX_FILE_BYTES`, and none fails: what is absent reads as nothing, and what is there but refuses to
be read is remembered with the reason. Nothing is written and no device is opened.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from agent.documents.text import printable

MAX_FILE_BYTES = 64 * 1024
MAX_NAMES = 4096
# Of files, folders and nodes in one tree; a whole board takes some hundreds.
MAX_LOOKS = 10_000
MAX_SHORT = 128
_MAX_HOPS = 40
_MAX_REASON = 100
_NUMBER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19})")
_MAX_NUMBER = 2**63 - 1


class Source(Protocol):
    """Where files come from. Paths are absolute, `/`-separated and without `..`; every method
    raises OSError where there is nothing, or where it is refused."""

    def read(self, path: str, most: int) -> bytes:
        """The first `most` bytes of a regular file."""

    def names(self, path: str, most: int) -> list[str]:
        """At most so many names in a folder."""

    def check(self, path: str, *, use: bool) -> None:
        """Raise unless there is something; with `use`, unless we may read and write it."""

    def link(self, path: str) -> str:
        """What a symbolic link says."""


class Folder:
    """A folder as the root of a tree; `/` is the machine itself.

    Symbolic links are followed as a process would whose root the folder is: none leads out of it.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        refused: Mapping[str, str] | None = None,
        links: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            root: The folder.
            refused: Paths that were there but unreadable where the tree was recorded → why.
            links: Symbolic links there → where they lead.
        """
        self._root = str(root.resolve()).rstrip("/")
        self._refused = refused or {}
        self._links = links or {}

    def read(self, path: str, most: int) -> bytes:
        place = self._place(path)
        _require_file(Path(place).stat().st_mode)
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(place, flags | (os.O_NOFOLLOW if self._root else 0))
        try:
            # What was looked at above may have been replaced.
            _require_file(os.fstat(descriptor).st_mode)
            return _read_all(descriptor, most)
        finally:
            os.close(descriptor)

    def names(self, path: str, most: int) -> list[str]:
        found: list[str] = []
        with os.scandir(self._place(path)) as entries:
            for entry in entries:
                if len(found) >= most:
                    break
                found.append(entry.name)
        return found

    def check(self, path: str, *, use: bool) -> None:
        place = self._place(path) if use else self._place(path, refuse=False)
        Path(place).stat()
        if use and not os.access(place, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def link(self, path: str) -> str:
        if path in self._links:
            return self._links[path]
        folder, _, name = path.rpartition("/")
        return str(Path(self._place(folder), name).readlink())

    def _place(self, path: str, *, refuse: bool = True) -> str:
        """Where a path is for the kernel.

        Raises:
            OSError: It goes round in circles, or the recording says that it was refused.
        """
        if refuse and path in self._refused:
            raise OSError(errno.EACCES, self._refused[path])
        if not self._root:
            return path or "/"
        done: list[str] = []
        todo = path.split("/")[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            try:
                target = str(Path(self._root, *done, part).readlink())
            except OSError:
                done.append(part)
                continue
            hops += 1
            if hops > _MAX_HOPS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if target.startswith("/"):
                done.clear()
            todo.extend(target.split("/")[::-1])
        return "/".join([self._root, *done])


class Tree:
    """The files of a machine, each read once and remembered with what became of it.

    Attributes:
        files: Path → content, for each file that was read.
        shown: Path → names in it that somebody wanted, for each folder that was listed.
        present: What was only asked for, and is there.
        links: Path → target, for each symbolic link that was looked at.
        refused: Path → reason, for what is there and could not be read.
        cut: Path → reason, for what was read in part.
    """

    def __init__(self, source: Source | None = None) -> None:
        self._source: Source = source or Folder()
        self._looks = 0
        self._absent: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.shown: dict[str, set[str]] = {}
        self._folders: dict[str, tuple[str, ...]] = {}
        self.present: set[str] = set()
        self.links: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.cut: dict[str, str] = {}

    def read(self, path: str) -> bytes:
        """The file's content, cut at `MAX_FILE_BYTES`; nothing where it cannot be had."""
        if path not in self.files and self._may_look(path):
            try:
                self.files[path] = self._source.read(path, MAX_FILE_BYTES)
            except (OSError, ValueError) as error:
                self._note(path, error)
        return self.files.get(path, b"")

    def text(self, path: str) -> str:
        """The file as text, without NULs and space around it."""
        return self.read(path).replace(b"\0", b"").decode("utf-8", "replace").strip()

    def line(self, path: str) -> str:
        """The first line, printable and at most `MAX_SHORT` characters."""
        return short(self.text(path).partition("\n")[0])

    def strings(self, path: str) -> tuple[str, ...]:
        """A list of strings as the device tree has them: each ends in a NUL."""
        parts = self.read(path).decode("utf-8", "replace").split("\0")
        return tuple(short(part) for part in parts if part.strip())[:64]

    def number(self, path: str) -> int | None:
        """The number that the file consists of, decimal or 0x…; None where it is none."""
        return number(self.text(path))

    def names(self, path: str, pattern: str = "", most: int = 256) -> tuple[str, ...]:
        """Names in a folder that match a regular expression whole, in order, at most so many."""
        if path not in self._folders and self._may_look(path):
            try:
                found = self._source.names(path, MAX_NAMES + 1)
            except (OSError, ValueError) as error:
                self._note(path, error)
            else:
                if len(found) > MAX_NAMES:
                    self.cut[path] = f"it has more than {MAX_NAMES} entries"
                readable = (name for name in found[:MAX_NAMES] if name.isprintable())
                self._folders[path] = tuple(sorted(readable, key=_natural))
        listed = self._folders.get(path, ())
        wanted = [name for name in listed if not pattern or re.fullmatch(pattern, name)][:most]
        if path in self._folders:
            self.shown.setdefault(path, set()).update(wanted)
        return tuple(wanted)

    def has(self, path: str) -> bool:
        """Whether there is something."""
        if path not in self.present and self._may_look(path):
            try:
                self._source.check(path, use=False)
                self.present.add(path)
            except (OSError, ValueError) as error:
                self._note(path, error)
        return path in self.present

    def may_use(self, path: str) -> bool:
        """Whether we may read and write a node of /dev; it is not opened."""
        if not self.has(path) or path in self.refused:
            return False
        try:
            self._source.check(path, use=True)
        except (OSError, ValueError) as error:
            self._note(path, error)
            return False
        return True

    def link(self, path: str) -> str:
        """What a symbolic link says; nothing where there is none."""
        if path not in self.links and self._may_look(path):
            try:
                self.links[path] = self._source.link(path)
            except (OSError, ValueError):
                self._absent.add(path)
        return self.links.get(path, "")

    def _may_look(self, path: str) -> bool:
        if path in self.refused or path in self._absent:
            return False
        if self._looks >= MAX_LOOKS:
            self.cut["/"] = f"more than {MAX_LOOKS} files would have been read"
            return False
        self._looks += 1
        return True

    def _note(self, path: str, error: Exception) -> None:
        if isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError)):
            self._absent.add(path)
            return
        reason = error.strerror if isinstance(error, OSError) else ""
        self.refused[path] = printable(reason or type(error).__name__, _MAX_REASON)


def short(text: str) -> str:
    """A text as documents take it: one line, printable, at most `MAX_SHORT` characters."""
    return printable(" ".join(text[: 4 * MAX_SHORT].split()), MAX_SHORT)


def number(text: str) -> int | None:
    """The number that a text consists of, decimal or 0x…, where 64 bits hold it."""
    if not _NUMBER.fullmatch(text):
        return None
    value = int(text, 16 if "x" in text.lower() else 10)
    return value if -_MAX_NUMBER <= value <= _MAX_NUMBER else None


def _natural(name: str) -> tuple[object, ...]:
    """Order in which `hwmon10` comes after `hwmon9`."""
    parts = re.split(r"([0-9]{1,18})", name)
    return tuple((part.isdecimal(), int(part) if part.isdecimal() else part) for part in parts)


def _require_file(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def _read_all(descriptor: int, most: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while size < most:
        try:
            chunk = os.read(descriptor, most - size)
        except OSError:
            if not chunks:
                raise
            break
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)
