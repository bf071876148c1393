"""An append-only log in segments of fixed size, for bytes that must survive a power cut.

Segments are files `<prefix>NNNNNNNN.log`, filled with zeros before their first use: a record then
overwrites blocks that the file already has, so that it fits on a full disk and a flush has no
metadata to write. A record starts at a multiple of 8:

    u32 length of payload, u32 CRC-32 over sequence and payload, u64 sequence, payload, zeros

all little-endian. Sequences only grow. Where a record is damaged, reading goes on at the next place
that holds a whole one; what follows the last whole record is no record. The journal does not know
what is missing between two sequences: its caller numbers what it stores.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.errors import StoreError
from agent.store.files import Files, OpenFile, temporary_name

SEGMENT_BYTES = 1 << 20
HEADER = struct.Struct("<IIQ")
ALIGNMENT = 8
_NOT_ZERO = re.compile(rb"[^\0]")


class Record(msgspec.Struct, frozen=True):
    """What was appended."""

    sequence: int
    payload: bytes


class Segment(msgspec.Struct):
    """One file of a journal.

    Attributes:
        number: Its place in the order of segments.
        path: The file.
        end: Bytes of it that hold records.
        committed: Bytes of it that hold durable records.
        last: Sequence of its last record, 0 while it has none.
        last_committed: Sequence of its last durable record.
        abandoned: Whether a flush of it failed, so that it takes no more records.
    """

    number: int
    path: Path
    end: int = 0
    committed: int = 0
    last: int = 0
    last_committed: int = 0
    abandoned: bool = False


class Journal:
    """A log of records in one folder. Call `recover` to its end before anything else.

    Args:
        files: The layer to use.
        folder: Where the segments are; several journals may share it, each with its prefix.
        prefix: What the names of the segments begin with.
        segment_bytes: Size of each segment, a multiple of 4096.
    """

    def __init__(
        self, files: Files, folder: Path, prefix: str = "", segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self.segments: list[Segment] = []
        self.damaged_segments = 0
        self.segment_bytes = segment_bytes
        self.payload_bytes_max = segment_bytes - HEADER.size
        self._files = files
        self._folder = folder
        self._name = re.compile(re.escape(prefix) + r"(\d{8,12})\.log")
        self._prefix = prefix
        self._file: OpenFile | None = None
        self._next_number = 1
        self._tail_is_clean = False

    def recover(self) -> Iterator[Record]:
        """Read every record, oldest first. What is damaged is passed over and counted."""
        numbers = (self._name.fullmatch(name) for name in self._files.names(self._folder))
        last = 0
        for match in sorted((m for m in numbers if m), key=lambda match: int(match[1])):
            segment = Segment(int(match[1]), self._folder / match[0])
            data = self._read(segment, 0, self.segment_bytes)
            damaged = False
            for end, record in scan(data, last):
                damaged |= end - _stored_bytes(len(record.payload)) != segment.end
                segment.end, segment.last = end, record.sequence
                last = record.sequence
                yield record
            self.damaged_segments += damaged
            segment.committed, segment.last_committed = segment.end, segment.last
            self.segments.append(segment)
            self._next_number = segment.number + 1

    def fits(self, payload_bytes: int) -> bool:
        """Whether the current segment has room for one more record of this size."""
        if not self.segments or self.segments[-1].abandoned:
            return False
        return self.segments[-1].end + _stored_bytes(payload_bytes) <= self.segment_bytes

    def start_segment(self, recycled: Path | None = None) -> None:
        """Begin a new segment, durable on return; everything before must be committed.

        Args:
            recycled: A segment's file that is needed no more and becomes the new one, so that
                this succeeds on a full disk. Its old name must be of a lower number.
        """
        path = self._folder / f"{self._prefix}{self._next_number:08d}.log"
        if recycled is None:
            temporary = temporary_name(path)
            try:
                self._files.write_new(temporary, bytes(self.segment_bytes))
                self._files.rename(temporary, path)
            except StoreError:
                self._files.discard(temporary)
                raise
        else:
            # Zeros first: under its new name, no old record may be found in it.
            with self._files.opened(recycled) as file:
                self._files.write(file, bytes(self.segment_bytes), 0)
                self._files.sync(file)
            self._files.rename(recycled, path)
        number, self._next_number = self._next_number, self._next_number + 1
        self._files.sync_dir(self._folder)
        self._close_file()
        self.segments.append(Segment(number, path))
        self._tail_is_clean = True

    def append(self, sequence: int, payload: bytes) -> None:
        """Write one record into the current segment, where it must fit; not durable yet."""
        segment, file = self.segments[-1], self._current()
        record = encode(sequence, payload)
        self._files.write(file, record, segment.end)
        segment.end += len(record)
        segment.last = sequence

    def commit(self) -> None:
        """Make all records durable.

        Raises:
            StoreError: It failed. The records since the last commit count as not written, and the
                segment takes no more: what the kernel did with its pages cannot be known.
        """
        if not self.segments or self.segments[-1].committed == self.segments[-1].end:
            return
        segment = self.segments[-1]
        try:
            self._files.sync_data(self._current())
        except StoreError:
            segment.end, segment.last = segment.committed, segment.last_committed
            segment.abandoned = True
            raise
        segment.committed, segment.last_committed = segment.end, segment.last

    def records(self, segment: Segment) -> Iterator[Record]:
        """The durable records of one segment."""
        for _, record in scan(self._read(segment, 0, segment.committed), 0):
            yield record

    def detach(self, segment: Segment) -> Path:
        """Forget a segment and leave its file to be recycled."""
        if segment is self.segments[-1]:
            self._close_file()
            self._tail_is_clean = False
        self.segments.remove(segment)
        return segment.path

    def remove(self, segment: Segment) -> None:
        """Forget a segment and remove its file."""
        self._files.unlink(self.detach(segment))

    def close(self) -> None:
        """Give the descriptor back. Safe to call twice."""
        self._close_file()

    def _read(self, segment: Segment, offset: int, size: int) -> bytes:
        try:
            data = self._files.read_range(segment.path, offset, size)
        except StoreError:
            data = None
        if data is None:
            self.damaged_segments += 1
        return data or b""

    def _current(self) -> OpenFile:
        segment = self.segments[-1]
        if self._file is None:
            self._file = self._files.open(segment.path)
        if not self._tail_is_clean:
            self._clean_tail(self._file, segment)
            self._tail_is_clean = True
        return self._file

    def _clean_tail(self, file: OpenFile, segment: Segment) -> None:
        # Half a record from before a crash must not lie in wait behind new ones.
        tail = self._files.read_range(segment.path, segment.end, self.segment_bytes) or b""
        size = self.segment_bytes - segment.end
        if len(tail) < size or _NOT_ZERO.search(tail):
            self._files.write(file, bytes(size), segment.end)

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            self._files.close(file)


class JournalReader:
    """Walks the durable records of a journal, also those that become so after it was made.

    Args:
        journal: The journal, which may lose old segments in the meantime.
        after: The sequence behind which to begin.
    """

    def __init__(self, journal: Journal, after: int) -> None:
        self._journal = journal
        self.after = after
        self._number = 0
        self._offset = 0
        self._records: Iterator[tuple[int, Record]] = iter(())

    def next(self) -> Record | None:
        """The next record, or None when there is none at this moment."""
        while True:
            found = next(self._records, None)
            if found is not None:
                self.after = found[1].sequence
                return found[1]
            if not self._load():
                return None

    def _load(self) -> bool:
        for segment in self._journal.segments:
            start = self._offset if segment.number == self._number else 0
            if segment.number >= self._number and segment.committed > start:
                self._number, self._offset = segment.number, segment.committed
                if segment.last_committed > self.after:
                    data = self._journal._read(segment, start, segment.committed - start)
                    self._records = scan(data, self.after)
                    return True
        return False


def encode(sequence: int, payload: bytes) -> bytes:
    """One record as it is stored."""
    check = zlib.crc32(payload, zlib.crc32(sequence.to_bytes(8, "little")))
    record = HEADER.pack(len(payload), check, sequence) + payload
    return record.ljust(_stored_bytes(len(payload)), b"\0")


def scan(data: bytes, after: int) -> Iterator[tuple[int, Record]]:
    """The whole records in the bytes of a segment.

    Args:
        data: What was read, from a place where a record starts.
        after: Only records with a greater sequence are of interest.

    Yields:
        The offset behind a record, and the record; sequences grow.
    """
    at = 0
    while at + HEADER.size <= len(data):
        length, check, sequence = HEADER.unpack_from(data, at)
        start = at + HEADER.size
        if length and start + length <= len(data):
            payload = data[start : start + length]
            if check == zlib.crc32(payload, zlib.crc32(sequence.to_bytes(8, "little"))):
                at += _stored_bytes(length)
                if sequence > after:
                    after = sequence
                    yield at, Record(sequence, payload)
                continue
        something = _NOT_ZERO.search(data, at + ALIGNMENT)
        if something is None:
            return
        at = something.start() // ALIGNMENT * ALIGNMENT


def _stored_bytes(payload_bytes: int) -> int:
    return -(-(HEADER.size + payload_bytes) // ALIGNMENT) * ALIGNMENT
