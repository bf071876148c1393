"""A folder as the other end of a link: what is read there, and what is written. No event loop.

Whoever may write to the folder commands the device, so it must not be open to every user of it;
and what is read there must lie in it, so that nobody has the agent read what only the agent may.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from agent.errors import LinkError, NoSpace, StoreError
from agent.links.api import Disk

# Whom the folder lets in by its group may read.
FILE_MODE, PRIVATE_MODE = 0o640, 0o600
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait for a writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAX_HOPS = 8


def read_inside(folder: Path, name: str, limit: int) -> bytes | None:
    """Read a small file of a folder, through symbolic links only as long as they stay in it.

    Kubernetes places the files of a config map so: `desired.json` → `..data/desired.json`, where
    `..data` is a link that is replaced in one step.

    Args:
        folder: May itself be reached through a link.
        name: Of the file.
        limit: Bytes that it may have.

    Returns:
        Its bytes; None where there is no such name.

    Raises:
        LinkError: It is no regular file, too large, unreadable, or not of this folder; or the
            folder is absent, or open to every user.
    """
    path = folder / name
    opened: list[int] = []
    todo, hops = [name], 0
    try:
        opened.append(open_folder(folder))
        while True:
            part = todo.pop(0)
            mode = os.stat(part, dir_fd=opened[-1], follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                hops += 1
                todo = _target(path, os.readlink(part, dir_fd=opened[-1]), hops) + todo
            elif todo:
                opened.append(os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=opened[-1]))
            elif not stat.S_ISREG(mode):
                raise _no_file(path)
            else:
                opened.append(os.open(part, _FILE, dir_fd=opened[-1]))
                return _read(path, opened[-1], limit)
    except FileNotFoundError:
        if hops == 0:
            return None
        raise LinkError(f"{path} is a symbolic link to nothing") from None
    except OSError as error:
        raise LinkError(
            f"{path} cannot be read: {error.strerror}", hint="the agent's user must be able to"
        ) from None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def open_folder(folder: Path) -> int:
    """Open the folder for looking into it.

    Raises:
        LinkError: It is absent, no folder, or any user of the device may write to it.
    """
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError as error:
        raise LinkError(
            f"there is no folder {folder}: {error.strerror}",
            hint="make it, for the agent's user; a removable medium may not be there",
        ) from None
    try:
        if os.fstat(descriptor).st_mode & stat.S_IWOTH and not _is_read_only(descriptor):
            raise LinkError(
                f"any user of this device may write to {folder}, and so could deploy",
                hint=f"chmod o-w {folder}, or other options where it is mounted",
            )
    except OSError as error:
        os.close(descriptor)
        raise LinkError(f"{folder} cannot be looked at: {error.strerror}") from None
    except LinkError:
        os.close(descriptor)
        raise
    return descriptor


def _is_read_only(descriptor: int) -> bool:
    """Whether it is mounted so, as a config map is, whatever its mode says."""
    return bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)


def _target(path: Path, target: str, hops: int) -> list[str]:
    """The steps that a symbolic link stands for."""
    steps = PurePosixPath(target)
    if steps.is_absolute() or ".." in steps.parts or not steps.parts:
        raise LinkError(
            f"{path} is a symbolic link that leads out of its folder, to {target!r}",
            hint="place the file itself there",
        )
    if hops > _MAX_HOPS:
        raise LinkError(f"{path}: more than {_MAX_HOPS} symbolic links, one after the other")
    return list(steps.parts)


def _read(path: Path, descriptor: int, limit: int) -> bytes:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise _no_file(path)
    size, data = found.st_size, b""
    while size <= limit and (piece := os.read(descriptor, limit + 1 - len(data))):
        data += piece
        size = max(size, len(data))
    if size > limit:
        raise LinkError(f"{path} has {size:,} bytes; a deployment has at most {limit:,}")
    return data


def _no_file(path: Path) -> LinkError:
    return LinkError(f"{path} is no regular file", hint="place the deployment itself there")


class OutFolder:
    """What the agent writes: files that are replaced, and files of lines that rotate.

    Args:
        disk: What does it.
        folder: Must exist already.
        lines_bytes: How large a file of lines may become; the one before it is kept as `NAME.1`.
    """

    def __init__(self, disk: Disk, folder: Path, lines_bytes: int) -> None:
        self._disk = disk
        self.folder = folder
        self._lines_bytes = lines_bytes
        self._mode = FILE_MODE

    def tidy(self, names: tuple[str, ...]) -> None:
        """Remove what an interrupted write of these files left; what others write is theirs."""
        for found in self._disk.names(self.folder):
            if found.endswith(".tmp") and found.startswith(tuple(f".{name}." for name in names)):
                self._disk.unlink(self.folder / found)

    def replace(self, name: str, data: bytes) -> None:
        """Put `data` in the place of a file, in one step."""
        self._put(self._path(name), data)

    def append(self, name: str, lines: bytes) -> None:
        """Add whole lines to a file; it begins anew where they do not fit."""
        path = self._path(name)
        size = _size(path)
        if size and size + len(lines) > self._lines_bytes:
            self._disk.rename(path, path.with_name(f"{name}.1"))
            size = 0
        if not size:
            self._put(path, lines)
            return
        # What a power cut or a full disk left of a line must not spoil the next one.
        torn = self._disk.read_range(path, size - 1, 1) != b"\n"
        self._disk.append(path, b"\n" + lines if torn else lines)

    def _path(self, name: str) -> Path:
        os.close(open_folder(self.folder))
        return self.folder / name

    def _put(self, path: Path, data: bytes) -> None:
        try:
            self._disk.replace(path, data, self._mode)
        except NoSpace:
            raise
        except StoreError:
            if self._mode == PRIVATE_MODE:
                raise
            self._disk.replace(path, data, PRIVATE_MODE)
            self._mode = PRIVATE_MODE  # vfat, as on most USB sticks, knows no modes


def _size(path: Path) -> int:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise LinkError(f"{path} cannot be looked at: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise LinkError(f"{path} is no regular file", hint="remove it")
    return found.st_size
