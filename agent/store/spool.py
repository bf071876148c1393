"""The bounded queue on disk for what a device has to say while nobody listens.

Two journals share a folder and a budget: events, which are given up last, and telemetry. Each
stream numbers its messages; a number is used once, and each number is either sent or counted in a
gap. What that rests on:

- a message leaves only when it is durable, so that after a power cut only messages that nobody has
  seen can be missing, at most `GROUP_RECORDS` of each stream: those are told as `unclean_stop`;
- what is to be deleted is entered in the ledger first, which can be saved on a full disk;
- the cursor passes messages in order, and a number missing between two of them was damaged.

Nothing here reads a clock or starts a thread, and one thread at a time may call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from agent.documents.gap import Reason
from agent.errors import NoSpace, StoreError
from agent.store.files import Files
from agent.store.gaps import document
from agent.store.journal import SEGMENT_BYTES, Journal, JournalReader, Record
from agent.store.ledger import HALF_BYTES, Ledger
from agent.store.messages import Entry, Kind, Message, decode_message, encode_message

GROUP_RECORDS = 64
GROUP_BYTES = 256 << 10
EVENT_RESERVE_BYTES = 4 << 20
OUTSTANDING_MAX = 1024
SEGMENTS_MIN = 8
CAPACITY_BYTES_MIN = SEGMENTS_MIN * 4096

# Handed out and above the cursor, in order: a window, never the whole queue.
Outstanding = OrderedDict[int, Message]


class Spool:
    """A bounded outbox. Call `open` before anything else, and `close` at an orderly stop.

    Args:
        files: The layer to use.
        folder: A folder of its own.
        capacity_bytes: Most that messages may take on disk (`limits.spool_mb`), at least 32 KiB;
            one message must fit into an eighth of it.
        boot: Identifies this start of the agent, in at most 32 characters; new gaps carry it.
        machine_boot: Identifies the boot of the machine (`/proc/sys/kernel/random/boot_id`). A
            spool left by a killed process of the same boot has lost nothing; with "", or another
            boot, the last group of messages may be lost and is told so.
    """

    def __init__(
        self,
        files: Files,
        folder: Path,
        capacity_bytes: int,
        *,
        boot: str,
        machine_boot: str = "",
    ) -> None:
        if capacity_bytes < CAPACITY_BYTES_MIN:
            raise ValueError(f"a spool of {capacity_bytes} bytes, at least {CAPACITY_BYTES_MIN}")
        self._files = files
        self._folder = folder
        self._machine_boot = machine_boot
        self._segment_bytes = min(SEGMENT_BYTES, capacity_bytes // SEGMENTS_MIN // 4096 * 4096)
        self._segments_max = capacity_bytes // self._segment_bytes
        reserve_bytes = min(EVENT_RESERVE_BYTES, capacity_bytes // 4)
        self._telemetry_max = self._segments_max - reserve_bytes // self._segment_bytes
        self._journals = {
            kind: Journal(files, folder, f"{kind.value}-", self._segment_bytes) for kind in Kind
        }
        self._ledger = Ledger(files, folder / "ledger", boot)
        self._outstanding: dict[Kind, Outstanding] = {kind: OrderedDict() for kind in Kind}
        # Written since the last commit; kept, to be written once more when a flush fails.
        self._group: dict[Kind, list[tuple[Record, Message]]] = {kind: [] for kind in Kind}
        # The file of a segment given up, whose room the next segment takes.
        self._spare: Path | None = None

    # Life.

    def open(self) -> None:
        """Recover what is on disk; what is missing there becomes gaps.

        Raises:
            StoreError: The disk is full, read-only or fails. Nothing is lost by that; try again
                later with a new `Spool`.
        """
        self._files.make_folder(self._folder, 0o700)
        self._files.sweep(self._folder)
        self._ledger.load()
        found: dict[str, int] = {}
        for kind, journal in self._journals.items():
            for record in journal.recover():
                message, _ = decode_message(record.payload)
                found[message.stream] = message.number
                self._ledger.recover(kind, message, record.sequence)
        self._ledger.account(found, GROUP_RECORDS, self._machine_boot)
        self._ledger.save()

    def close(self) -> None:
        """Make everything durable and note that nothing is missing. Not usable afterwards."""
        try:
            self.commit()
            self._ledger.mark_clean()
            self._ledger.save()
        finally:
            self._ledger.close()
            for journal in self._journals.values():
                journal.close()

    def abandon(self) -> None:
        """Give the descriptors back and note nothing: after `open` has failed."""
        self._ledger.close()
        for journal in self._journals.values():
            journal.close()

    # In.

    def next_number(self, stream: str) -> int:
        """The number that the next message of a stream will have, for its stamp."""
        return self._ledger.peek(stream)

    def append(
        self, kind: Kind, stream: str, payload: bytes, *, ts_ms: int, synced: bool = True
    ) -> int:
        """Queue a message. It is durable, and can be taken, after `commit`.

        Every 64th message, or 256 KiB, commits by itself. When the spool is full, the oldest
        telemetry is given up, then the oldest events, each with a gap.

        Args:
            kind: Its class; one stream is always of one class.
            stream: A name of 1 to 128 bytes; at most 256 streams.
            payload: The bytes, at most one segment of them (1 MiB; less in a small spool).
            ts_ms: Wall clock, milliseconds since 1970, for people and for gaps.
            synced: Whether that clock was right.

        Returns:
            The message's number in its stream.

        Raises:
            StoreError: It could not be kept, and is counted in a gap; or it is of one stream too
                many, and is not.
        """
        known = self._ledger.stream(kind, stream)
        number = known.next
        message = Message(stream, number, number - 1 - known.stored, ts_ms, synced, len(payload))
        data = encode_message(message, payload)
        if len(data) > self._journals[kind].payload_bytes_max:
            self._lose(message, "too_big")
            raise StoreError(f"stream {stream}: a message of {len(payload)} bytes is too large")
        record = self._write(kind, message, data)
        # Not before: a ledger saved meanwhile must not count a number that is nowhere yet.
        known.next, known.stored = number + 1, number
        group = self._group[kind]
        group.append((record, message))
        if len(group) >= GROUP_RECORDS or sum(m.size for _, m in group) >= GROUP_BYTES:
            self._commit(kind)
        return number

    def commit(self) -> None:
        """Make all messages durable. Where a flush fails, they are written once more elsewhere.

        Raises:
            StoreError: That failed too; the messages count as lost.
        """
        for kind in Kind:
            self._commit(kind)

    # Out.

    def pending(self) -> Pending:
        """Walk all that is not acknowledged, from the oldest: a new one for each connection."""
        readers = {
            kind: JournalReader(journal, self._ledger.cursor(kind))
            for kind, journal in self._journals.items()
        }
        return Pending(self._ledger, readers, self._outstanding)

    def acknowledge(self, sequence: int) -> None:
        """Note that the peer has a message or gap. One that is not outstanding is no error."""
        if not self._ledger.forget_gap(sequence):
            self._settle(sequence, None)

    def refuse(self, sequence: int, reason: Reason) -> None:
        """Give up a message that the peer will never take; it is counted in a gap."""
        if not self._ledger.forget_gap(sequence):
            self._settle(sequence, reason)

    def checkpoint(self) -> None:
        """Save what was acknowledged and delete what is needed no more.

        At most every 5 s: what it has not noted is sent again after a crash.

        Raises:
            StoreError: It could not be saved, and nothing was deleted.
        """
        self.commit()
        if self._ledger.dirty:
            self._ledger.save()
        for kind, journal in self._journals.items():
            for segment in journal.segments[:-1]:
                if segment.last <= self._ledger.cursor(kind):
                    journal.remove(segment)

    # What it says of itself.

    @property
    def newest(self) -> int:
        """Sequence of the newest message, durable or not; 0 where there is none."""
        journals = self._journals.values()
        return max((segment.last for one in journals for segment in one.segments), default=0)

    @property
    def used_bytes(self) -> int:
        """Room taken on disk."""
        return self._segment_count() * self._segment_bytes + 2 * HALF_BYTES

    @property
    def lost(self) -> int:
        """Messages that gaps have counted since `open`."""
        return self._ledger.lost

    @property
    def corrupt(self) -> bool:
        """Whether `open` found the ledger damaged, so that messages may be sent again."""
        return self._ledger.corrupt

    # Settling what was handed out.

    def _settle(self, sequence: int, refused: Reason | None) -> None:
        for kind, outstanding in self._outstanding.items():
            message = outstanding.get(sequence)
            if message is not None and not message.settled:
                if refused:
                    self._ledger.lose(message, refused)
                message.settled = True
                self._advance(kind, outstanding)

    def _advance(self, kind: Kind, outstanding: Outstanding) -> None:
        while outstanding:
            sequence, message = next(iter(outstanding.items()))
            if not message.settled:
                return
            self._ledger.settle(message)
            self._ledger.move_cursor(kind, sequence)
            del outstanding[sequence]

    # Room.

    def _segment_count(self) -> int:
        return sum(len(j.segments) for j in self._journals.values()) + (self._spare is not None)

    def _start_segment(self, kind: Kind) -> None:
        # Saved with every segment, so that its numbers are known should it be damaged later.
        self._ledger.dirty = True
        self.checkpoint()
        if self._spare is None and self._is_full(kind):
            self._evict(kind)
        try:
            self._start_with_spare(kind)
        except NoSpace:
            if self._spare is not None:
                raise
            self._evict(kind)
            self._start_with_spare(kind)

    def _start_with_spare(self, kind: Kind) -> None:
        if self._spare is not None and self._files.stat(self._spare) is None:
            self._spare = None  # renamed by an attempt that failed afterwards
        self._journals[kind].start_segment(self._spare)
        self._spare = None

    def _is_full(self, kind: Kind) -> bool:
        if kind is Kind.TELEMETRY and len(self._journals[kind].segments) >= self._telemetry_max:
            return True
        return self._segment_count() >= self._segments_max

    def _evict(self, kind: Kind) -> None:
        """Give up the oldest segment of the cheapest class that `kind` may displace."""
        victim = Kind.TELEMETRY if self._journals[Kind.TELEMETRY].segments else Kind.EVENT
        journal, outstanding = self._journals[victim], self._outstanding[victim]
        if victim < kind or not journal.segments:
            raise NoSpace(f"{self._folder}: no room, and nothing that may be given up for it")
        segment = journal.segments[0]
        for record in journal.records(segment):
            if record.sequence > self._ledger.cursor(victim):
                message, _ = decode_message(record.payload)
                handed = outstanding.pop(record.sequence, None)
                self._ledger.settle(message)
                if handed is None or not handed.settled:
                    # Not exact where it may be on its way at this moment.
                    self._ledger.lose(message, "spool_full", exact=handed is None)
        self._ledger.move_cursor(victim, segment.last)
        # Handed out, and damaged since then.
        for sequence in [known for known in outstanding if known <= segment.last]:
            del outstanding[sequence]
        self._ledger.save()
        self._spare = journal.detach(segment)

    # Writing.

    def _write(self, kind: Kind, message: Message, data: bytes) -> Record:
        journal, exact = self._journals[kind], True
        try:
            self._ledger.save_streams()
            if not journal.fits(len(data)):
                self._start_segment(kind)
            record = Record(self._ledger.next_sequence(), data)
            exact = False  # from here on it may be on disk, whatever error is reported
            journal.append(record.sequence, data)
        except StoreError as error:
            full = isinstance(error, NoSpace)
            self._lose(message, "spool_full" if full else "store_failed", exact=exact)
            raise
        return record

    def _lose(self, message: Message, reason: Reason, *, exact: bool = True) -> None:
        self._ledger.lose(message, reason, newest=True, exact=exact)
        self._ledger.spend(message)
        # Unless it is on disk that the number is spent, it is given again after a crash.
        with suppress(StoreError):
            self._ledger.save()

    def _commit(self, kind: Kind) -> None:
        if self._group[kind]:
            try:
                self._journals[kind].commit()
            except StoreError:
                self._write_again(kind)
            self._group[kind].clear()

    def _write_again(self, kind: Kind) -> None:
        journal, group = self._journals[kind], self._group[kind]
        try:
            self._start_with_spare(kind)
            for record, _ in group:
                journal.append(record.sequence, record.payload)
            journal.commit()
        except StoreError:
            for _, message in reversed(group):
                self._ledger.unstore(message)
            for _, message in group:
                # Not exact: some may have reached the disk before it failed.
                self._ledger.lose(message, "store_failed", newest=True, exact=False)
            group.clear()
            with suppress(StoreError):
                self._ledger.save()
            raise


class Pending:
    """All that is not acknowledged, from the oldest; also what is committed while it is walked.

    Gaps come first, then events, then telemetry. At most 1024 messages of a class are outstanding
    at a time; then nothing new of that class is handed out until the oldest is acknowledged.
    """

    def __init__(
        self,
        ledger: Ledger,
        readers: dict[Kind, JournalReader],
        outstanding: dict[Kind, Outstanding],
    ) -> None:
        self._ledger = ledger
        self._readers = readers
        self._outstanding = outstanding
        self._gaps: set[int] = set()

    def take(self) -> Entry | None:
        """The next entry, or None when there is none at this moment."""
        return self._take_gap() or self._take_message()

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self.take()) is not None:
            yield entry

    def _take_gap(self) -> Entry | None:
        with suppress(StoreError):  # not saved, so not to be told yet
            gap = self._ledger.tell(self._gaps)
            if gap is not None:
                return Entry(gap.sequence, Kind.EVENT, gap.stream, 0, 0, document(gap), gap)
        return None

    def _take_message(self) -> Entry | None:
        for kind, reader in self._readers.items():
            outstanding = self._outstanding[kind]
            while self._may_read(reader, outstanding) and (record := reader.next()):
                known = outstanding.get(record.sequence)
                settled = record.sequence <= self._ledger.cursor(kind)
                if settled or (known is not None and known.settled):
                    continue
                message, payload = decode_message(record.payload)
                outstanding.setdefault(record.sequence, message)
                return Entry(
                    record.sequence, kind, message.stream, message.number, message.ts_ms, payload
                )
        return None

    def _may_read(self, reader: JournalReader, outstanding: Outstanding) -> bool:
        # What was handed out before, by an earlier connection, may always be handed out again.
        if len(outstanding) < OUTSTANDING_MAX:
            return True
        return reader.after < next(reversed(outstanding))
