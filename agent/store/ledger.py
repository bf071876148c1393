"""The spool's books: which numbers each stream has given, sent and lost.

One document, saved whole, whose room on disk is taken beforehand. The order everywhere is: enter a
loss here, save, then delete.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from agent.documents.gap import Reason
from agent.errors import StoreError
from agent.store.files import Files
from agent.store.fixed import FixedFile
from agent.store.gaps import Gap, add
from agent.store.messages import Kind, Message

STREAMS_MAX = 256
STREAM_NAME_BYTES_MAX = 128
BOOT_CHARACTERS_MAX = 32
# 256 streams and 256 gaps at their longest take 120 KB.
HALF_BYTES = 128 << 10


class Stream(msgspec.Struct, array_like=True):
    """Numbers of one stream.

    Attributes:
        kind: The class of all its messages.
        next: The number of the next message.
        stored: The number of the last message that was written to the journal.
        done: The number up to which all are sent or told.
    """

    kind: int
    next: int = 1
    stored: int = 0
    done: int = 0


class _Document(msgspec.Struct, array_like=True):
    machine_boot: str = ""
    clean: bool = False
    sequence: int = 0
    cursors: dict[int, int] = {}
    streams: dict[str, Stream] = {}
    gaps: list[Gap] = []


class Ledger:
    """Streams, cursors and gaps. Call `load` before anything else.

    Attributes:
        corrupt: Whether what had been saved was damaged.
        dirty: Whether something is not saved yet.
        lost: Messages that gaps have counted since `load`.

    Args:
        files: The layer to use.
        path: The file, 256 KiB.
        boot: Identifies this start of the agent; new gaps carry it.
    """

    def __init__(self, files: Files, path: Path, boot: str) -> None:
        self.corrupt = False
        self.dirty = False
        self.lost = 0
        self._file = FixedFile(files, path, HALF_BYTES)
        self._boot = boot[:BOOT_CHARACTERS_MAX]
        self._saved = _Document()
        self._new_streams = False
        # Gaps handed out: they stay as they are, so that what was told is what is acknowledged.
        self._told: set[int] = set()

    def load(self) -> None:
        """Load what was saved last."""
        data = self._file.load()
        self.corrupt = self._file.corrupt
        if data is not None:
            try:
                self._saved = msgspec.msgpack.decode(data, type=_Document)
            except msgspec.MsgspecError:  # of a version that wrote it in another way
                self.corrupt = True
        self._saved.cursors = {kind: self._saved.cursors.get(kind, 0) for kind in Kind}

    def save(self) -> None:
        """Make all entries durable."""
        self._file.save(msgspec.msgpack.encode(self._saved))
        self.dirty = self._new_streams = False

    def close(self) -> None:
        self._file.close()

    # Sequences and cursors.

    def next_sequence(self) -> int:
        """A number for one more record or gap of this spool, never used again."""
        self._saved.sequence += 1
        return self._saved.sequence

    def cursor(self, kind: Kind) -> int:
        """The sequence up to which all messages of a class are settled."""
        return self._saved.cursors[kind]

    def move_cursor(self, kind: Kind, sequence: int) -> None:
        self._saved.cursors[kind] = max(self._saved.cursors[kind], sequence)
        self.dirty = True

    # Streams.

    def peek(self, name: str) -> int:
        """The number of the next message of a stream."""
        known = self._saved.streams.get(name)
        return 1 if known is None else known.next

    def stream(self, kind: Kind, name: str) -> Stream:
        """The stream of this name, made where it is new; `save_streams` before its first message.

        Raises:
            StoreError: Its name is too long, or there are 256 others.
            ValueError: It is of another class.
        """
        known = self._saved.streams.get(name)
        if known is None:
            size = len(name.encode())
            if not 0 < size <= STREAM_NAME_BYTES_MAX or len(self._saved.streams) >= STREAMS_MAX:
                raise StoreError(
                    f"stream {name[:80]!r}: {STREAMS_MAX} streams with names of "
                    f"1 to {STREAM_NAME_BYTES_MAX} bytes can be kept"
                )
            self._saved.streams[name] = known = Stream(kind)
            self._new_streams = True
        if known.kind != kind:
            raise ValueError(f"stream {name} is of class {known.kind}, not {kind.value}")
        return known

    def save_streams(self) -> None:
        """Make new streams durable: after a power cut, loss can be told of known ones only."""
        if self._new_streams:
            self.save()

    def settle(self, message: Message) -> None:
        """Pass a message that is sent or told; what is missing before it was damaged."""
        stream = self._saved.streams[message.stream]
        if message.previous > stream.done:
            self.lose_range(message.stream, stream.done + 1, message.previous, "corrupt")
        stream.done = max(stream.done, message.number)

    def spend(self, message: Message) -> None:
        """Note that a message's number is not to be given again."""
        stream = self._saved.streams[message.stream]
        stream.next = max(stream.next, message.number + 1)

    def unstore(self, message: Message) -> None:
        """Take back that a message was stored. Newest first."""
        self._saved.streams[message.stream].stored = message.previous

    # Recovery.

    def recover(self, kind: Kind, message: Message, sequence: int) -> None:
        """Note a message that was found on disk."""
        self._saved.sequence = max(self._saved.sequence, sequence)
        # A stream is unknown only where the ledger was lost.
        unknown = Stream(kind, done=message.previous)
        stream = self._saved.streams.setdefault(message.stream, unknown)
        stream.next = max(stream.next, message.number + 1)

    def account(self, found: Mapping[str, int], group: int, machine_boot: str) -> None:
        """Enter what is missing at the end of each stream, and that the spool is in use.

        Args:
            found: The number of the last message found of each stream.
            group: How many messages of a stream may have been written and not been durable.
            machine_boot: Of now. After the same boot, the kernel still has all that was written.
        """
        same_boot = bool(machine_boot) and machine_boot == self._saved.machine_boot
        for name, stream in self._saved.streams.items():
            last = max(found.get(name, 0), stream.done)
            if stream.stored > last:
                self.lose_range(name, last + 1, stream.stored, "corrupt")
            stream.stored = last
            if not (self._saved.clean or same_boot):
                end = stream.next + group
                self.lose_range(name, stream.next, end - 1, "unclean_stop", exact=False)
                stream.next = end
        self._saved.clean, self._saved.machine_boot = False, machine_boot

    def mark_clean(self) -> None:
        """Note that everything written is durable."""
        self._saved.clean = True

    # Gaps.

    def lose(
        self, message: Message, reason: Reason, *, newest: bool = False, exact: bool = True
    ) -> None:
        """Enter the loss of one message."""
        self._add(
            Gap(
                sequence=self.next_sequence(),
                boot=self._boot,
                stream=message.stream,
                from_seq=message.number,
                to_seq=message.number,
                count=1,
                size=message.size,
                first_ts_ms=message.ts_ms,
                last_ts_ms=message.ts_ms,
                synced=message.synced,
                reason=reason,
                newest=newest,
                exact=exact,
            )
        )

    def lose_range(
        self, stream: str, first: int, last: int, reason: Reason, *, exact: bool = True
    ) -> None:
        """Enter the loss of messages of which only the numbers are known."""
        self._add(
            Gap(
                sequence=self.next_sequence(),
                boot=self._boot,
                stream=stream,
                from_seq=first,
                to_seq=last,
                count=last - first + 1,
                reason=reason,
                exact=exact,
            )
        )

    def tell(self, handed: set[int]) -> Gap | None:
        """The oldest gap that is not in `handed`, durable, to be told; it does not grow further.

        Raises:
            StoreError: It could not be saved, and must not be told yet.
        """
        for gap in self._saved.gaps:
            if gap.sequence not in handed or gap.sequence not in self._told:
                if self.dirty:
                    self.save()
                self._told.add(gap.sequence)
                handed.add(gap.sequence)
                return gap
        return None

    def forget_gap(self, sequence: int) -> bool:
        """Remove a gap that the peer has; False when that is no gap, or it has grown since."""
        if sequence not in self._told:
            return False
        self._told.discard(sequence)
        self._saved.gaps = [gap for gap in self._saved.gaps if gap.sequence != sequence]
        self.dirty = True
        return True

    def _add(self, gap: Gap) -> None:
        before = {id(known) for known in self._saved.gaps}
        self._saved.gaps = add(self._saved.gaps, gap, self._told)
        # One that had to change although it was handed out is to be handed out again.
        self._told &= {known.sequence for known in self._saved.gaps if id(known) in before}
        self.lost += gap.count
        self.dirty = True
