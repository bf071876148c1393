"""The evidence on disk: `evidence/NNNNNNNN.jsonl`, files of one chain, the oldest given up first.

Each line is durable before the next is begun, so a power cut can tear only the last one, which
nobody was told of: it is cut off at the next start. What is whole is never touched again, also
where it does not follow from the line before: to say so is for `agent.control.evidence.verify`.
The chain goes on over files because each line carries its number and the hash of the one before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from agent.control.evidence import Entry, Head, digest_of, next_line, read_line
from agent.store.files import Files

FILE_BYTES = 256 << 10
FILES_MAX = 8
_NAME = re.compile(r"(\d{8,12})\.jsonl")


class _Current(msgspec.Struct):
    """The file that is written to, and where the chain ends."""

    number: int
    size: int
    head: Head


class EvidenceLog:
    """The chain of one device, at most 2 MiB of it.

    Args:
        files: The layer to use.
        folder: Where its files are.
        file_bytes: Size at which a new file is begun.
        files_max: How many are kept.
    """

    def __init__(
        self,
        files: Files,
        folder: Path,
        file_bytes: int = FILE_BYTES,
        files_max: int = FILES_MAX,
    ) -> None:
        self._files = files
        self._folder = folder
        self._file_bytes = file_bytes
        self._files_max = files_max
        self._current: _Current | None = None

    def append(self, entries: Sequence[Entry], at: str) -> Head:
        """Add lines to the chain; durable on return.

        Args:
            entries: What happened, in order.
            at: The device's clock, RFC 3339.

        Raises:
            StoreError: The disk takes none; some of the entries may have been kept. What it
                holds then is looked at anew with the next call.
        """
        current = self._current or self._recover()
        self._current = None  # only what ends well is built upon
        for entry in entries:
            line, head = next_line(entry, current.head, at)
            if current.size and current.size + len(line) + 1 > self._file_bytes:
                current = _Current(current.number + 1, 0, current.head)
            self._files.append(self._path(current.number), line + b"\n")
            begun = current.size == 0
            current.size, current.head = current.size + len(line) + 1, head
            if begun:
                self._give_up_oldest()
        self._current = current
        return current.head

    def lines(self) -> Iterator[bytes]:
        """Every whole line, oldest first, without its newline."""
        for number in self._numbers():
            yield from self._whole(number)[0]

    def _recover(self) -> _Current:
        self._files.make_folder(self._folder, 0o700)
        self._files.sweep(self._folder)
        numbers = self._numbers()
        for number in reversed(numbers):
            lines, torn = self._whole(number)
            if torn:
                kept = b"".join(line + b"\n" for line in lines)
                self._files.replace(self._path(number), kept)
            if lines:
                return _Current(number, sum(len(line) + 1 for line in lines), _head(lines))
            # Begun and torn: the chain ends in the file before.
            self._files.unlink(self._path(number))
            self._files.sync_dir(self._folder)
        return _Current(1, 0, Head())

    def _whole(self, number: int) -> tuple[list[bytes], bool]:
        """The lines of a file, and whether a torn one follows them."""
        data = self._files.read(self._path(number), 2 * self._file_bytes + (64 << 10)) or b""
        *lines, rest = data.split(b"\n")
        torn = bool(rest)
        # Written as a whole, kept in part: blocks that never reached the disk read as zeros.
        if lines and b"\0" in lines[-1]:
            lines.pop()
            torn = True
        return lines, torn

    def _give_up_oldest(self) -> None:
        # The new file's first line is durable by now: no cut leaves a device without its chain.
        numbers = self._numbers()
        for number in numbers[: -self._files_max]:
            self._files.unlink(self._path(number))
        if len(numbers) > self._files_max:
            self._files.sync_dir(self._folder)

    def _numbers(self) -> list[int]:
        found = (_NAME.fullmatch(name) for name in self._files.names(self._folder))
        return sorted(int(match[1]) for match in found if match)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.jsonl"


def _head(lines: Sequence[bytes]) -> Head:
    """Where a chain ends: also where lines were altered, for it goes on from what is there."""
    last = digest_of(lines[-1])
    for behind, line in enumerate(reversed(lines)):
        found = read_line(line)
        if found is not None:
            return Head(found.n + behind, last)
    return Head(len(lines), last)
