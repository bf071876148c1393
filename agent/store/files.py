"""The one layer through which the store changes the disk.

Every change is one `Operation` handed to `Files.perform`, so that a subclass can record it, refuse
it or stop the process in front of it. That is what makes power cuts and full disks testable:
a call that bypasses this layer is one that no test has ever interrupted.

An `fsync` that failed must not be repeated on the same file (the kernel has already dropped the
pages), so each operation built from several calls here gives its file up on the first error.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from agent.errors import NoSpace, StoreError

Kind = Literal[
    "create",
    "open",
    "write",
    "chmod",
    "sync",
    "sync_data",
    "close",
    "rename",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "touch",
    "sync_dir",
]
TEMPORARY = ".tmp"
CHUNK_BYTES = 1 << 20
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_WRITE = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class Operation(msgspec.Struct, frozen=True):
    """One call that changes the disk, or that gives or takes a descriptor.

    Attributes:
        kind: Which call.
        path: The file or folder it is about; of `rename` and `link`, the existing name.
        fd: The descriptor, of calls on an open file.
        data: The bytes, of `write`.
        number: The offset of `write`; the mode of `create`, `mkdir`, `chmod`; the time of `touch`.
        target: The new name, of `rename` and `link`.
    """

    kind: Kind
    path: Path
    fd: int = -1
    data: bytes | bytearray | memoryview = b""
    number: int = 0
    target: Path | None = None


class OpenFile(msgspec.Struct, frozen=True):
    """A file open for reading and writing, with the name it was opened by."""

    fd: int
    path: Path


class Space(msgspec.Struct, frozen=True):
    """What a file system has left for a process without privileges."""

    free_bytes: int
    total_bytes: int


def _new_name(operation: Operation) -> Path:
    assert operation.target is not None
    return operation.target


def _rename(operation: Operation) -> None:
    operation.path.replace(_new_name(operation))


def _sync_dir(operation: Operation) -> None:
    fd = os.open(operation.path, _READ | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


Calls = Mapping[Kind, Callable[[Operation], int | None]]
CALLS: Calls = {
    "create": lambda op: os.open(op.path, _WRITE | os.O_CREAT | os.O_EXCL, op.number),
    "open": lambda op: os.open(op.path, _WRITE),
    "write": lambda op: os.pwrite(op.fd, op.data, op.number),
    "chmod": lambda op: op.path.chmod(op.number),
    "sync": lambda op: os.fsync(op.fd),
    "sync_data": lambda op: os.fdatasync(op.fd),
    "close": lambda op: os.close(op.fd),
    "rename": _rename,
    "link": lambda op: _new_name(op).hardlink_to(op.path),
    "unlink": lambda op: op.path.unlink(missing_ok=True),
    "mkdir": lambda op: op.path.mkdir(op.number),
    "rmdir": lambda op: op.path.rmdir(),
    "touch": lambda op: os.utime(op.path, (op.number, op.number)),
    "sync_dir": _sync_dir,
}


class Files:
    """Durable operations on files, with errors a person can act on.

    All methods raise `NoSpace` when the disk or the user's disk quota is full and `StoreError` for
    every other failure of the disk. Nothing here is an `OSError` to the caller.
    """

    calls: ClassVar[Calls] = CALLS

    def __init__(self) -> None:
        self._durable_folders: set[Path] = set()

    def before(self, op: Kind, path: Path) -> None:
        """Called in front of each change; a test raises or ends the process here."""

    def perform(self, operation: Operation) -> int:
        """Do one operation: the only place that changes the disk.

        Returns:
            The descriptor of `create` and `open`, the bytes taken by `write`, else 0.
        """
        try:
            if operation.kind not in ("open", "close"):
                self.before(operation.kind, operation.path)
            return self.calls[operation.kind](operation) or 0
        except OSError as error:
            size = len(operation.data)
            raise self._explained(error, operation.kind, operation.path, size) from error

    # One call each.

    def create(self, path: Path, mode: int = 0o600) -> OpenFile:
        """Make a file that must not exist yet and open it."""
        return OpenFile(self.perform(Operation("create", path, number=mode)), path)

    def open(self, path: Path) -> OpenFile:
        """Open an existing file for reading and writing; a symbolic link is refused."""
        return OpenFile(self.perform(Operation("open", path)), path)

    def open_to_lock(self, path: Path) -> OpenFile:
        """Open a file or folder for nothing but `lock`, which a read-only disk allows."""
        try:
            return OpenFile(os.open(path, _READ), path)
        except OSError as error:
            raise self._explained(error, "open", path) from error

    def write(self, file: OpenFile, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`; not durable before `sync`."""
        left = memoryview(data)
        while left:
            taken = self.perform(Operation("write", file.path, file.fd, left, offset))
            left = left[taken:]
            offset += taken

    def chmod(self, path: Path, mode: int) -> None:
        """Set the mode; durable by `sync` of the file."""
        self.perform(Operation("chmod", path, number=mode))

    def sync(self, file: OpenFile) -> None:
        """Make content, size and mode durable; the name needs `sync_dir`."""
        self.perform(Operation("sync", file.path, file.fd))

    def sync_data(self, file: OpenFile) -> None:
        """Make content and size durable, but not times."""
        self.perform(Operation("sync_data", file.path, file.fd))

    def close(self, file: OpenFile) -> None:
        self.perform(Operation("close", file.path, file.fd))

    def rename(self, path: Path, target: Path) -> None:
        self.perform(Operation("rename", path, target=target))

    def link(self, path: Path, target: Path) -> None:
        """Give the file at `path` a second name; `target` must not exist."""
        self.perform(Operation("link", path, target=target))

    def unlink(self, path: Path) -> None:
        """Remove a name; a name that is not there is no error."""
        self.perform(Operation("unlink", path))

    def mkdir(self, path: Path, mode: int = 0o755) -> None:
        self.perform(Operation("mkdir", path, number=mode))

    def rmdir(self, path: Path) -> None:
        self.perform(Operation("rmdir", path))

    def touch(self, path: Path, seconds: int) -> None:
        """Set the time of last change."""
        self.perform(Operation("touch", path, number=seconds))

    def sync_dir(self, path: Path) -> None:
        """Make the names in a folder durable: until then a rename can be lost with the power."""
        self.perform(Operation("sync_dir", path))

    def lock(self, file: OpenFile) -> bool:
        """Take the file for this process until it ends; False when another one has it."""
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._explained(error, "lock", file.path) from error
        return True

    # Orders of calls that survive a power cut.

    @contextmanager
    def opened(self, path: Path) -> Iterator[OpenFile]:
        """Open an existing file for a block of statements."""
        file = self.open(path)
        try:
            yield file
        finally:
            self.close(file)

    def write_new(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """Make a file with durable content; its name is not durable yet."""
        file = self.create(path)
        try:
            self.write(file, data, 0)
            if mode != 0o600:
                self.chmod(path, mode)
            self.sync(file)
        finally:
            self.close(file)

    def replace(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """Put `data` at `path`, durable on return; a power cut leaves the old or the new."""
        temporary = temporary_name(path)
        try:
            self.write_new(temporary, data, mode)
            self.rename(temporary, path)
        except StoreError:
            self.discard(temporary)
            raise
        self.sync_dir(path.parent)

    def append(self, path: Path, data: bytes) -> None:
        """Add `data` at the end of a file, made when absent; durable on return."""
        size = self.size(path)
        file = self.create(path) if size is None else self.open(path)
        try:
            self.write(file, data, size or 0)
            self.sync_data(file)
        finally:
            self.close(file)
        if size is None:
            self.sync_dir(path.parent)

    def make_folder(self, path: Path, mode: int = 0o755) -> None:
        """Make a folder and those above it, each durable; one that exists is no error."""
        found = self.is_folder(path)
        if found and (path in self._durable_folders or path.parent == path):
            return
        if not found:
            self.make_folder(path.parent, mode)
            try:
                self.mkdir(path, mode)
            except StoreError:
                # Another process of ours, which fetches another pack, may have been faster.
                if not self.is_folder(path):
                    raise
        # Also for a folder found here: the flush after an earlier mkdir may have failed.
        if os.access(path.parent, os.R_OK):
            self.sync_dir(path.parent)
        self._durable_folders.add(path)

    def discard(self, path: Path) -> None:
        """Remove a file that nobody needs; a failure is left to the next sweep."""
        with suppress(StoreError):
            self.unlink(path)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder with all in it, never following a symbolic link."""
        for name in self.names(path):
            child = path / name
            if child.is_dir() and not child.is_symlink():
                self.remove_tree(child)
            else:
                self.unlink(child)
        self.rmdir(path)

    def sweep(self, folder: Path) -> int:
        """Remove what an interrupted operation left in a folder; returns how many names."""
        left = [folder / name for name in self.names(folder) if is_temporary(name)]
        for path in left:
            if path.is_dir() and not path.is_symlink():
                self.remove_tree(path)
            else:
                self.unlink(path)
        return len(left)

    # Looking, which changes nothing.

    def read(self, path: Path, limit: int) -> bytes | None:
        """All bytes of a small file, or None when there is none.

        Raises:
            StoreError: It is larger than `limit` bytes, or cannot be read.
        """
        data = self.read_range(path, 0, limit + 1)
        if data is not None and len(data) > limit:
            raise StoreError(f"{path}: larger than the {limit} bytes it may have")
        return data

    def read_range(self, path: Path, offset: int, size: int) -> bytes | None:
        """Up to `size` bytes from `offset`, fewer at the end; None when there is no file."""
        with self._reading(path) as fd:
            return None if fd is None else _read_fully(fd, offset, size)

    def chunks(self, path: Path) -> Iterator[bytes]:
        """The bytes of a file that may be large, 1 MiB at a time; nothing when there is none."""
        with self._reading(path) as fd:
            offset = 0
            while fd is not None and (chunk := os.pread(fd, CHUNK_BYTES, offset)):
                yield chunk
                offset += len(chunk)

    def names(self, folder: Path) -> list[str]:
        """The names in a folder, sorted; none when there is no folder."""
        try:
            return sorted(path.name for path in folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._explained(error, "list", folder) from error

    def stat(self, path: Path) -> os.stat_result | None:
        """What the file system says of a name, not following a link; None when it is absent."""
        try:
            return path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._explained(error, "look at", path) from error

    def is_folder(self, path: Path) -> bool:
        """Whether a folder is there, also by a symbolic link."""
        try:
            return path.is_dir()
        except OSError as error:
            raise self._explained(error, "look at", path) from error

    def size(self, path: Path) -> int | None:
        """Bytes in a file, or None when there is none."""
        found = self.stat(path)
        return None if found is None else found.st_size

    def space(self, path: Path) -> Space:
        """What is left on the file system that holds `path`, which need not exist yet."""
        while not path.exists() and path.parent != path:
            path = path.parent
        try:
            found = os.statvfs(path)
        except OSError as error:
            raise self._explained(error, "look at", path) from error
        # f_bavail, not f_bfree: the rest is kept for root.
        return Space(
            free_bytes=found.f_bavail * found.f_frsize,
            total_bytes=found.f_blocks * found.f_frsize,
        )

    @contextmanager
    def _reading(self, path: Path) -> Iterator[int | None]:
        try:
            fd = os.open(path, _READ)
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        except OSError as error:
            raise self._explained(error, "read", path) from error
        try:
            yield fd
        except OSError as error:
            raise self._explained(error, "read", path) from error
        finally:
            os.close(fd)

    def _explained(self, error: OSError, doing: str, path: Path, size: int = 0) -> StoreError:
        code = error.errno or 0
        doing = _DOING.get(doing, doing)
        if code in (errno.ENOSPC, errno.EDQUOT):
            full = "the disk is full" if code == errno.ENOSPC else "this user's disk quota is full"
            needed = f"needed {size} bytes, " if size else ""
            return NoSpace(
                f"{path}: cannot {doing}: {full} ({needed}free {self._free_bytes(path)} bytes)",
                hint="free some space, or lower limits.store_mb and limits.spool_mb",
            )
        reason, hint = _REASONS.get(code, (error.strerror or str(error), ""))
        return StoreError(f"{path}: cannot {doing}: {reason}", hint=hint)

    def _free_bytes(self, path: Path) -> int | str:
        try:
            return self.space(path).free_bytes
        except StoreError:
            return "an unknown number of"


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody else uses and that `Files.sweep` recognises."""
    # Not O_TMPFILE: giving such a file a name never replaces an existing one.
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}{TEMPORARY}")


def is_temporary(name: str) -> bool:
    """Whether `temporary_name` made this name."""
    return name.startswith(".") and name.endswith(TEMPORARY)


def _read_fully(fd: int, offset: int, size: int) -> bytes:
    pieces = []
    while size > 0 and (piece := os.pread(fd, size, offset)):
        pieces.append(piece)
        offset += len(piece)
        size -= len(piece)
    return b"".join(pieces)


_DOING: Mapping[str, str] = {
    "sync": "flush",
    "sync_data": "flush",
    "sync_dir": "flush the folder",
    "chmod": "set the mode",
    "mkdir": "make the folder",
    "rmdir": "remove the folder",
    "unlink": "remove",
    "link": "give a second name",
}

_REASONS: Mapping[int, tuple[str, str]] = {
    errno.EROFS: (
        "the file system is read-only",
        "the kernel does this to a failing disk: see dmesg, then check and remount it",
    ),
    errno.EIO: ("the disk reports an input/output error", "see dmesg; the card may be worn out"),
    errno.EMFILE: ("this process has too many files open", "restart the agent and report this"),
    errno.ENFILE: ("this machine has too many files open", "raise fs.file-max"),
    errno.EACCES: ("permission denied", "the folder must belong to the user of the agent"),
    errno.EPERM: ("not permitted", "the file system must know owners and hard links (not vfat)"),
    errno.ENOENT: ("no such file", ""),
    errno.ELOOP: ("it is a symbolic link", "the agent's own folder must hold none"),
}
