"""A file layer that remembers what it did, and every disk a power cut could have left behind.

`RecordingFiles` does the real thing below one folder (but for the flushes, which only matter to a
disk that loses its power) and logs it in terms of inodes, not names,
because a name that is used twice means two different files. `crashes` then takes each prefix of
the log and builds the disks that it allows:

- what a later `sync` of that file, or `sync_dir` of that folder, covers is fixed;
- any other write may be absent, whole, half there, or zeros;
- any other change of a name may be absent or present; a rename inside one folder is one change,
  one between folders is two.

That is more than any one file system does, and less than none: code that survives it relies on
nothing but POSIX. `FailingFiles` and `DyingFiles` are the same layer with an error, or the end of
the process, at one chosen call.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from agent.errors import StoreError
from agent.store.files import CALLS, Calls, Files, Kind, Operation

Inode = int
ROOT: Inode = 0
FLUSHES: tuple[Kind, ...] = ("sync", "sync_data", "sync_dir")
COMBINATIONS_MAX = 4000


@dataclass(frozen=True)
class NameChange:
    """In `folder`, each name now means that inode, or nothing (None); all of them at once."""

    folder: Inode
    names: tuple[tuple[str, Inode | None], ...]


@dataclass(frozen=True)
class DataChange:
    inode: Inode
    offset: int
    data: bytes


@dataclass(frozen=True)
class Synced:
    """All earlier changes of this file's data, or of this folder's names, are on disk."""

    inode: Inode


@dataclass(frozen=True)
class Mark:
    """The store has acknowledged `value` to its caller."""

    value: Hashable


Step = NameChange | DataChange | Synced | Mark


@dataclass
class Disk:
    """Folders, files and their modes, by inode."""

    folders: dict[Inode, dict[str, Inode]] = field(default_factory=lambda: {ROOT: {}})
    files: dict[Inode, bytes] = field(default_factory=dict)
    modes: dict[Inode, int] = field(default_factory=dict)

    def copy(self) -> Disk:
        folders = {inode: dict(names) for inode, names in self.folders.items()}
        return Disk(folders, dict(self.files), self.modes)

    def paths(self) -> dict[str, tuple[Inode, bytes | None]]:
        """Relative path → inode and content (None for a folder) of all that can be reached."""
        found: dict[str, tuple[Inode, bytes | None]] = {}
        waiting = [("", ROOT)]
        while waiting:
            prefix, folder = waiting.pop()
            for name, inode in sorted(self.folders[folder].items()):
                found[prefix + name] = (inode, self.files.get(inode))
                if inode in self.folders:
                    waiting.append((f"{prefix}{name}/", inode))
        return found


@dataclass(frozen=True)
class Crash:
    """One disk that a power cut may leave, and what had been acknowledged before it."""

    step: int
    marks: tuple[Hashable, ...]
    disk: Disk

    def restore(self, root: Path) -> None:
        """Make the folder `root`, which must not exist or is replaced, look like this disk."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        placed: dict[Inode, Path] = {}
        for name, (inode, content) in sorted(self.disk.paths().items()):
            path = root / name
            if content is None:
                path.mkdir()
            elif inode in placed:
                path.hardlink_to(placed[inode])
            else:
                path.write_bytes(content)
                path.chmod(self.disk.modes.get(inode, 0o600))
                placed[inode] = path


class QuickFiles(Files):
    """The plain layer without waiting for the disk, for tests whose machine keeps its power."""

    calls: ClassVar[Calls] = {**CALLS, **dict.fromkeys(FLUSHES, lambda operation: 0)}


class RecordingFiles(QuickFiles):
    """The plain layer, logging changes below `root`; what is there already counts as durable."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._root = root
        self._inodes = itertools.count(ROOT + 1)
        self._base = Disk()
        self._open: dict[int, Inode] = {}
        root.mkdir(parents=True, exist_ok=True)
        self._snapshot(root, ROOT, {})
        self._now = self._base.copy()

    def mark(self, value: Hashable) -> None:
        """Note that `value` is acknowledged: from here on no crash may lose it."""
        self.steps.append(Mark(value))

    def perform(self, operation: Operation) -> int:
        unlinked = self._find(operation.path)  # before the name is gone
        result = super().perform(operation)
        if operation.path == self._root or self._root in operation.path.parents:
            self._log(operation, result, unlinked)
        return result

    def _snapshot(self, folder: Path, inode: Inode, known: dict[int, Inode]) -> None:
        for path in sorted(folder.iterdir()):
            found = path.lstat()
            child = known.get(found.st_ino) or next(self._inodes)
            known[found.st_ino] = child
            self._base.folders[inode][path.name] = child
            if path.is_dir():
                self._base.folders[child] = {}
                self._snapshot(path, child, known)
            else:
                self._base.files[child] = path.read_bytes()
                self._base.modes[child] = found.st_mode & 0o777

    def _find(self, path: Path) -> Inode | None:
        if path != self._root and self._root not in path.parents:
            return None
        inode: Inode | None = ROOT
        for name in path.relative_to(self._root).parts:
            inode = self._now.folders.get(inode, {}).get(name) if inode is not None else None
        return inode

    def _folder(self, path: Path) -> Inode:
        inode = self._find(path.parent)
        assert inode is not None, path
        return inode

    def _log(self, op: Operation, result: int, inode: Inode | None) -> None:
        match op.kind:
            case "create" | "mkdir":
                made = next(self._inodes)
                if op.kind == "create":
                    self._open[result] = made
                    self._now.files[made] = b""
                    self._now.modes[made] = op.number
                else:
                    self._now.folders[made] = {}
                self._step(NameChange(self._folder(op.path), ((op.path.name, made),)))
            case "open":
                assert inode is not None
                self._open[result] = inode
            case "close":
                self._open.pop(op.fd, None)
            case "write":
                self._step(DataChange(self._open[op.fd], op.number, bytes(op.data[:result])))
            case "sync" | "sync_data":
                self._step(Synced(self._open[op.fd]))
            case "sync_dir":
                assert inode is not None
                self._step(Synced(inode))
            case "unlink" | "rmdir":
                if inode is not None:
                    self._step(NameChange(self._folder(op.path), ((op.path.name, None),)))
            case "link":
                assert op.target is not None
                self._step(NameChange(self._folder(op.target), ((op.target.name, inode),)))
            case "rename":
                assert op.target is not None
                self._log_rename(op.path, op.target, inode)
            case "chmod":
                assert inode is not None
                self._now.modes[inode] = op.number
            case "touch":
                pass

    def _log_rename(self, path: Path, target: Path, inode: Inode | None) -> None:
        source, destination = self._folder(path), self._folder(target)
        gone, there = (path.name, None), (target.name, inode)
        if source == destination:
            self._step(NameChange(source, (gone, there)))
        else:
            self._step(NameChange(destination, (there,)))
            self._step(NameChange(source, (gone,)))

    def _step(self, step: Step) -> None:
        self.steps.append(step)
        _apply(self._now, step)

    def crashes(self, *, combinations: int = COMBINATIONS_MAX, seed: int = 1) -> Iterator[Crash]:
        """Every disk a power cut may leave, once per number of acknowledged marks.

        Args:
            combinations: Most disks to try for one prefix; where more are possible, a sample.
            seed: Of the sample.
        """
        rng = random.Random(seed)
        seen: set[tuple[int, Hashable]] = set()
        for end in range(len(self.steps) + 1):
            prefix = self.steps[:end]
            marks = tuple(step.value for step in prefix if isinstance(step, Mark))
            fixed, loose = _split(prefix)
            for disk in self._disks(fixed, loose, combinations, rng):
                key = (len(marks), _key(disk))
                if key not in seen:
                    seen.add(key)
                    yield Crash(end, marks, disk)

    def _disks(
        self,
        fixed: list[tuple[int, Step]],
        loose: list[tuple[int, Step]],
        combinations: int,
        rng: random.Random,
    ) -> Iterator[Disk]:
        choices = [_outcomes(step) for _, step in loose]
        for chosen in _some(choices, combinations, rng):
            happened = [(at, step) for (at, _), step in zip(loose, chosen, strict=True) if step]
            disk = self._base.copy()
            disk.modes = self._now.modes
            for inode in self._now.folders:
                disk.folders.setdefault(inode, {})
            for inode in self._now.files:
                disk.files.setdefault(inode, b"")
            for _, step in sorted([*fixed, *happened], key=lambda pair: pair[0]):
                _apply(disk, step)
            yield disk


def _apply(disk: Disk, step: Step) -> None:
    match step:
        case NameChange(folder, names):
            for name, inode in names:
                if inode is None:
                    disk.folders[folder].pop(name, None)
                else:
                    disk.folders[folder][name] = inode
        case DataChange(inode, offset, data):
            old = disk.files[inode].ljust(offset, b"\0")
            disk.files[inode] = old[:offset] + data + old[offset + len(data) :]


def _split(prefix: list[Step]) -> tuple[list[tuple[int, Step]], list[tuple[int, Step]]]:
    """The changes that are certainly on disk, and those that may be."""
    last_sync = {step.inode: at for at, step in enumerate(prefix) if isinstance(step, Synced)}
    fixed: list[tuple[int, Step]] = []
    loose: list[tuple[int, Step]] = []
    for at, step in enumerate(prefix):
        if isinstance(step, NameChange | DataChange):
            inode = step.folder if isinstance(step, NameChange) else step.inode
            (fixed if at < last_sync.get(inode, -1) else loose).append((at, step))
    return fixed, loose


def _outcomes(step: Step) -> list[Step | None]:
    if not isinstance(step, DataChange):
        return [step, None]
    half = step.data[: len(step.data) // 2]
    outcomes: list[Step | None] = [step, None]
    outcomes.append(DataChange(step.inode, step.offset, bytes(len(step.data))))
    if half:
        outcomes.append(DataChange(step.inode, step.offset, half))
    return outcomes


def _some(
    choices: list[list[Step | None]], most: int, rng: random.Random
) -> Iterator[tuple[Step | None, ...]]:
    count = 1
    for outcomes in choices:
        count *= len(outcomes)
    if count <= most:
        yield from itertools.product(*choices)
        return
    yield tuple(outcomes[0] for outcomes in choices)
    yield tuple(None for _ in choices)
    for _ in range(most - 2):
        yield tuple(rng.choice(outcomes) for outcomes in choices)


def _key(disk: Disk) -> Hashable:
    order: dict[Inode, int] = {}
    return tuple(
        (name, order.setdefault(inode, len(order)), hash(content))
        for name, (inode, content) in sorted(disk.paths().items())
    )


class PowerCut(BaseException):
    """The process ends here. Not an Exception, so that no handler goes on."""


class DyingFiles(QuickFiles):
    """The plain layer until the change number `at` (from 1), which never happens, nor any later."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.count = 0
        self._at = at

    def before(self, op: Kind, path: Path) -> None:
        self.count += 1
        if self.count >= self._at:
            raise PowerCut(f"{op} {path}")


class FailingFiles(QuickFiles):
    """The plain layer, in which call number `at` (from 1) fails, once.

    Args:
        at: Which call, counting opens and closes too; 0 for none.
        code: The `errno` to fail with, or 0 for a write that takes only half of its bytes.
        done: Whether the call takes effect all the same, as a failed flush may.
    """

    def __init__(self, at: int, code: int = errno.EIO, *, done: bool = False) -> None:
        super().__init__()
        self.count = 0
        self._at = at
        self._code = code
        self._done = done
        self._next_kind: Kind | None = None
        self._times = 0

    def recover(self) -> None:
        """Let all further calls succeed."""
        self._at, self._times = 0, 0

    def fail_next(self, kind: Kind, code: int, times: int = 1) -> None:
        """Let the next calls of this kind fail."""
        self._next_kind, self._code, self._times = kind, code, times

    def perform(self, operation: Operation) -> int:
        self.count += 1
        chosen = self._times > 0 and operation.kind == self._next_kind
        if self.count != self._at and not chosen:
            return super().perform(operation)
        self._times -= chosen
        if self._code == 0:
            if operation.kind != "write":
                return super().perform(operation)
            half = operation.data[: max(1, len(operation.data) // 2)]
            short = Operation("write", operation.path, operation.fd, half, operation.number)
            return super().perform(short)
        if self._done or operation.kind == "close":  # a close always closes
            result = super().perform(operation)
            if operation.kind in ("create", "open"):
                super().perform(Operation("close", operation.path, result))
        raise self._failure(operation)

    def _failure(self, operation: Operation) -> StoreError:
        error = OSError(self._code, os.strerror(self._code))
        return self._explained(error, operation.kind, operation.path, len(operation.data))
