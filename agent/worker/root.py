"""A root directory of its own: an empty one, with read-only views of what a worker needs in it.

The sources are cloned before anything is mounted, so nothing can hide them; needs Linux 5.12.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from agent.worker.kernel import LayerUnavailable, check, libc, machine, syscall

# The same numbers on every architecture but for pivot_root.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "armv7l": 218}
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_FROM_EMPTY_PATH = 4
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18
_MNT_DETACH = 2
# Of a source: it would not be seen outside either, and who misses it says so better.
_NOT_TO_BE_SEEN = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)
# Of struct mount_attr.
_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_PROGRAMS = 1, 2, 4, 8
# Directories and empty files to mount on; nothing is ever stored in it.
_SIZE = b"size=1m,nr_inodes=4096,mode=755"
# Any directory that is there wherever this runs: it is covered for a moment.
_STAGING = "/proc"


class Bind(NamedTuple):
    """A file or tree of the host, seen at the same path.

    Attributes:
        path: Where.
        programs: Its files may be mapped as code; libraries need it.
        devices: Its device files may be opened, for writing too.
        writes: Files may be put there. Nothing else is ever writable.
    """

    path: str
    programs: bool = False
    devices: bool = False
    writes: bool = False


def enter(binds: Iterable[Bind], links: Iterable[tuple[str, str]] = ()) -> None:
    """Make `/` a directory that holds nothing but `binds`. What does not exist is left out.

    Needs a mount namespace of this process's own, and the right to mount in it.

    Args:
        binds: One below another is covered by it and may be left out.
        links: Path and text of each symbolic link to make where nothing else is.

    Raises:
        LayerUnavailable: It cannot be had; this process's mounts are in no state to go on with.
    """
    try:
        _enter(binds, links)
    except OSError as error:
        raise LayerUnavailable("root", error.strerror or str(error)) from None


def _enter(binds: Iterable[Bind], links: Iterable[tuple[str, str]]) -> None:
    # What is mounted here must not appear on the host.
    check(libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "mount /")
    cloned = [(bind, tree) for bind in binds if (tree := _clone(bind)) is not None]
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    check(libc.mount(b"none", _STAGING.encode(), b"tmpfs", flags, _SIZE), "mount tmpfs")
    os.chdir(_STAGING)
    for bind, tree in cloned:
        target = "." + bind.path
        _make_place(target, is_folder=stat.S_ISDIR(os.fstat(tree).st_mode))
        syscall(
            *(_MOVE_MOUNT, f"move_mount {bind.path}", tree, b"", _AT_FDCWD, target.encode()),
            ctypes.c_uint(_MOVE_FROM_EMPTY_PATH),
        )
        os.close(tree)
    for path, text in links:
        place = Path("." + path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(text)
    _set_attributes(_AT_FDCWD, b".", 0, _READ_ONLY, "mount_setattr /")
    # With the same directory for both, the old root lies on the new one, and is taken off it.
    syscall(_PIVOT_ROOT[machine()], "pivot_root", b".", b".")
    check(libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def _clone(bind: Bind) -> int | None:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    step = f"open_tree {bind.path}"
    try:
        tree = syscall(_OPEN_TREE, step, _AT_FDCWD, bind.path.encode(), ctypes.c_uint(flags))
    except OSError as error:
        if error.errno in _NOT_TO_BE_SEEN:
            return None
        raise
    attributes = _NO_SETUID
    attributes |= 0 if bind.writes else _READ_ONLY
    attributes |= 0 if bind.devices else _NO_DEVICES
    attributes |= 0 if bind.programs else _NO_PROGRAMS
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE
    _set_attributes(tree, b"", flags, attributes, f"mount_setattr {bind.path}")
    return tree


def _set_attributes(folder: int, path: bytes, flags: int, attributes: int, step: str) -> None:
    # struct mount_attr: u64 to set, to clear, propagation, user namespace.
    change = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(change))
    syscall(_MOUNT_SETATTR, step, folder, path, ctypes.c_uint(flags), change, size)


def _make_place(target: str, *, is_folder: bool) -> None:
    place = Path(target)
    if is_folder:
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
