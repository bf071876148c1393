"""A recording: the very files that detection read on a machine, to be read again anywhere.

It is a plain tar of regular files and folders, and beside them one JSON file for what files cannot
hold. Unpacked into a folder it is as good. The same tree gives the same bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from agent.device.cgroup import BASE, MEMBERSHIP
from agent.device.identifiers import Identifiers
from agent.device.machine import Machine
from agent.device.tree import MAX_FILE_BYTES, Folder, Source, Tree
from agent.documents.codec import decode
from agent.documents.device import RuntimeFacts
from agent.errors import DocumentError, UsageError

ABOUT = "edgeward-recording.json"
MAX_RECORDING_BYTES = 64 * 1024 * 1024
MAX_MEMBERS = 20_000
_MAX_ABOUT_BYTES = 1024 * 1024
_CONTROLLERS = ("memory", "cpu")
# Words in a group's name that tell of what runs it; all else in it may be somebody's own name.
_TELLING = ("kubepods", "docker", "libpod", "lxc", "containerd")


class Recording(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the files of a recording do not say.

    Attributes:
        schema: The version of this format.
        machine: What the process that recorded knew of itself.
        refused: Paths that were there and could not be read → why.
        links: Symbolic links that were looked at → where they lead.
        runtimes: What the runtimes said of themselves.
    """

    schema: Literal[1] = 1
    machine: Machine = Machine()
    refused: dict[str, str] = {}
    links: dict[str, str] = {}
    runtimes: tuple[RuntimeFacts, ...] = ()


class Opened(msgspec.Struct, frozen=True):
    """A tree to detect on, with what was recorded beside its files."""

    source: Source
    machine: Machine
    runtimes: tuple[RuntimeFacts, ...] = ()


class Archive:
    """The files of a recording's tar, in memory. Links in it are not followed."""

    def __init__(self, files: dict[str, bytes], folders: set[str], about: Recording) -> None:
        self._files = files
        self._about = about
        self._folders: dict[str, set[str]] = {folder: set() for folder in folders}
        for path in (*files, *folders):
            while path:
                folder, _, name = path.rpartition("/")
                self._folders.setdefault(folder, set()).add(name)
                path = folder

    def read(self, path: str, most: int) -> bytes:
        self._refuse(path)
        if path in self._folders:
            raise IsADirectoryError(21, "Is a directory")
        if path not in self._files:
            raise FileNotFoundError
        return self._files[path][:most]

    def names(self, path: str, most: int) -> list[str]:
        self._refuse(path)
        if path not in self._folders:
            raise FileNotFoundError
        return sorted(self._folders[path])[:most]

    def check(self, path: str, *, use: bool) -> None:
        if path not in self._files and path not in self._folders:
            raise FileNotFoundError
        if use:
            self._refuse(path)

    def link(self, path: str) -> str:
        if path not in self._about.links:
            raise FileNotFoundError
        return self._about.links[path]

    def _refuse(self, path: str) -> None:
        if path in self._about.refused:
            raise PermissionError(13, self._about.refused[path])


def open_root(path: Path) -> Opened:
    """Open a folder or a recording's tar in place of the machine.

    Raises:
        UsageError: There is none, or it is neither.
        DocumentError: What is written beside the files does not fit.
    """
    if path.is_dir():
        data = Tree(Folder(path)).read(f"/{ABOUT}")
        about = _about(data) if data else Recording()
        return Opened(Folder(path, about.refused, about.links), about.machine, about.runtimes)
    if not path.is_file():
        raise UsageError(
            f"there is no folder and no recording at {path}",
            hint="edgeward detect --record FILE.tar makes one",
        )
    return _open_tar(path)


def _open_tar(path: Path) -> Opened:
    files: dict[str, bytes] = {}
    folders: set[str] = set()
    if path.stat().st_size > MAX_RECORDING_BYTES:
        raise UsageError(f"{path} is larger than {MAX_RECORDING_BYTES} bytes: no recording")
    try:
        with tarfile.open(path, "r:") as archive:
            for count, member in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise UsageError(f"{path} has more than {MAX_MEMBERS} files: no recording")
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                name = "/".join(["", *parts])
                if ".." in parts or not parts:
                    continue
                if member.isdir():
                    folders.add(name)
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None:
                    most = _MAX_ABOUT_BYTES if name == f"/{ABOUT}" else MAX_FILE_BYTES
                    files[name] = content.read(most)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise UsageError(
            f"{path} cannot be read as a recording: {error}",
            hint="edgeward detect --record FILE.tar makes one; it is not compressed",
        ) from None
    about = _about(files.pop(f"/{ABOUT}", b"")) if f"/{ABOUT}" in files else Recording()
    return Opened(Archive(files, folders, about), about.machine, about.runtimes)


def _about(data: bytes) -> Recording:
    try:
        return decode(data, Recording, name=ABOUT, max_bytes=_MAX_ABOUT_BYTES).value
    except RecursionError:
        raise DocumentError(ABOUT, "a JSON document", "one that is nested too deep") from None


def write(
    tree: Tree, machine: Machine, runtimes: Iterable[RuntimeFacts], identifiers: Identifiers
) -> bytes:
    """A tar of what a tree has read, without identifiers.

    Args:
        tree: After detection.
        machine: What detection was told.
        runtimes: The same.
        identifiers: The machine's, to be left out.

    Returns:
        The tar's bytes: the same for the same arguments.
    """
    files, folders = _entries(tree, identifiers)
    told = Recording(
        machine=machine,
        refused={_hidden(path, identifiers): why for path, why in tree.refused.items()},
        links={_hidden(path, identifiers): target for path, target in tree.links.items()},
        runtimes=tuple(runtimes),
    )
    clean = _blanked(msgspec.to_builtins(told), identifiers)
    files[f"/{ABOUT}"] = json.dumps(clean, indent=1, sort_keys=True).encode()
    return _tar(files, folders)


def _entries(tree: Tree, identifiers: Identifiers) -> tuple[dict[str, bytes], set[str]]:
    files = dict.fromkeys(sorted(tree.present), b"") | tree.files
    hidden: dict[str, bytes] = {}
    for path, content in files.items():
        if path == MEMBERSHIP:
            content = _without_group_names(content)
        hidden[_hidden(path, identifiers)] = identifiers.blank(path, content)
    folders: set[str] = set()
    for folder, names in tree.shown.items():
        folders |= {_hidden(f"{folder}/{name}", identifiers) for name in names}
        folders.add(_hidden(folder, identifiers))
    # What has something in it, or was listed and read as a folder, cannot be a file as well.
    inside = {path for name in (*hidden, *folders) for path in _parents(name)}
    kept = {path: content for path, content in hidden.items() if path not in inside}
    return kept, folders - kept.keys() - inside


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(2, len(parts))]


def _hidden(path: str, identifiers: Identifiers) -> str:
    return identifiers.blank_text(_without_group_names_in(path))


def _without_group_names(content: bytes) -> bytes:
    """/proc/self/cgroup with names of groups that say no more than what runs them."""
    lines = []
    for line in content.decode("utf-8", "replace").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            parts = [part for part in fields[2].split("/") if part]
            lines.append(":".join([*fields[:2], "/" + "/".join(_renamed(parts))]))
    return "".join(f"{line}\n" for line in lines).encode()


def _without_group_names_in(path: str) -> str:
    if not path.startswith(f"{BASE}/"):
        return path
    *groups, file = path[len(BASE) + 1 :].split("/")
    kept = groups[:1] if groups[:1] and groups[0] in _CONTROLLERS else []
    return "/".join([BASE, *kept, *_renamed(groups[len(kept) :]), file])


def _renamed(groups: list[str]) -> list[str]:
    """Names by depth, so that a file's path and its mention in another file stay alike."""
    return [
        next((word for word in _TELLING if word in name), "group") + str(depth)
        if name != ".."
        else name
        for depth, name in enumerate(groups, start=1)
    ]


def _blanked(value: Any, identifiers: Identifiers) -> Any:
    if isinstance(value, str):
        return identifiers.blank_text(value)
    if isinstance(value, dict):
        return {name: _blanked(inner, identifiers) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_blanked(inner, identifiers) for inner in value]
    return value


def _tar(files: dict[str, bytes], folders: set[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted({*files, *folders}):
            entry = tarfile.TarInfo(path.lstrip("/"))
            if path in files:
                entry.size, entry.mode = len(files[path]), 0o644
                archive.addfile(entry, io.BytesIO(files[path]))
            else:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
    return buffer.getvalue()
