"""Every file below a folder with its digest, without following or opening what is no file."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.documents.pack_names import FILES_MAX, SIGNATURE
from agent.documents.text import printable
from agent.errors import PackError, UsageError

DEPTH_MAX = 64
# Folders count as well; a pack has at most as many files.
ENTRIES_MAX = 4 * FILES_MAX
_CHUNK = 1 << 20
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_KINDS: Mapping[int, str] = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@dataclass
class Tree:
    """What lies below a folder, without `model.sig` at its top.

    Args:
        digests: Name of each file, with `/` between folders → `sha256:<hex>`.
        refused: A sentence for each entry that is no file and no folder.
    """

    digests: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    entries: int = 0


def read_tree(directory: Path) -> Tree:
    """Read a folder.

    Raises:
        UsageError: There is no such folder, or something in it cannot be read.
        PackError: It holds more, or deeper, than any pack.
    """
    tree = Tree()
    try:
        top = os.open(directory, _FOLDER & ~os.O_NOFOLLOW)
        try:
            _walk(top, "", tree)
        finally:
            os.close(top)
    except OSError as error:
        name = os.fsdecode(error.filename) if error.filename else str(directory)
        raise UsageError(f"{name}: {error.strerror}") from None
    return tree


def read_file(path: Path, max_bytes: int) -> bytes | None:
    """Read a small file that is no link and no pipe.

    Returns:
        At most `max_bytes` + 1 bytes, so that the caller sees that there are more; None where there
        is no such file.

    Raises:
        UsageError: It is no file, or cannot be read.
    """
    try:
        descriptor = os.open(path, _FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = "is a symbolic link" if path.is_symlink() else str(error.strerror)
        raise UsageError(f"{path}: {why}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise UsageError(f"{path}: is {_kind(mode)}, not a file")
    with open(descriptor, "rb") as file:  # noqa: PTH123 of a descriptor
        return file.read(max_bytes + 1)


def _walk(folder: int, prefix: str, tree: Tree) -> None:
    if prefix.count("/") > DEPTH_MAX:
        raise PackError(f"{prefix[:300]!r}: more than {DEPTH_MAX} folders in one another")
    with os.scandir(folder) as entries:
        for entry in entries:
            tree.entries += 1
            if tree.entries > ENTRIES_MAX:
                raise PackError(f"more than {ENTRIES_MAX} files and folders are no pack")
            _visit(folder, entry, prefix + entry.name, tree)


def _visit(folder: int, entry: os.DirEntry[str], name: str, tree: Tree) -> None:
    mode = entry.stat(follow_symlinks=False).st_mode
    if name == SIGNATURE:
        if not stat.S_ISREG(mode):
            tree.refused.append(f"{name}: is {_kind(mode)}, not a file")
    elif stat.S_ISDIR(mode):
        inner = os.open(entry.name, _FOLDER, dir_fd=folder)
        try:
            _walk(inner, f"{name}/", tree)
        finally:
            os.close(inner)
    elif stat.S_ISREG(mode):
        tree.digests[name] = _digest(folder, entry.name)
    else:
        tree.refused.append(f"{printable(name)}: is {_kind(mode)}, which no pack may hold")


def _digest(folder: int, name: str) -> str:
    # What is opened may be another thing by now than what was seen.
    descriptor = os.open(name, _FILE, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{printable(name)}: was exchanged while it was read")
    digest = hashlib.sha256()
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 of a descriptor
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "something else")
