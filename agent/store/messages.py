"""What the spool stores of one message, and how."""

from __future__ import annotations

import struct
from enum import IntEnum

import msgspec

from agent.store.gaps import Gap

# Number in the stream, numbers skipped before it, ts_ms, clock synced, bytes of the stream's name.
_PREFIX = struct.Struct("<QQqBB")


class Kind(IntEnum):
    """The class of a message; the lower, the later it is given up."""

    EVENT = 0
    TELEMETRY = 2


class Message(msgspec.Struct):
    """One message, without its payload.

    Attributes:
        stream: Whose message.
        number: Its number in the stream, from 1.
        skipped: Numbers right before it that are accounted for in gaps already.
        ts_ms: When it was appended, milliseconds since 1970.
        synced: Whether the clock was right then.
        size: Bytes of its payload.
        settled: Whether it was acknowledged or refused.
    """

    stream: str
    number: int
    skipped: int
    ts_ms: int
    synced: bool
    size: int
    settled: bool = False

    @property
    def previous(self) -> int:
        """The number of the message of this stream that was stored before it."""
        return self.number - 1 - self.skipped


class Entry(msgspec.Struct, frozen=True):
    """A message to be sent, or a gap to be told.

    Attributes:
        sequence: What `Spool.acknowledge` and `Spool.refuse` take.
        kind: Its class; a gap is an event.
        stream: Whose message.
        number: Its number in the stream (`seq` of its stamp); 0 for a gap.
        ts_ms: When it was appended, milliseconds since 1970; 0 for a gap.
        payload: The bytes appended; for a gap its JSON document.
        gap: The gap, where it is one.
    """

    sequence: int
    kind: Kind
    stream: str
    number: int
    ts_ms: int
    payload: bytes
    gap: Gap | None = None


def encode_message(message: Message, payload: bytes) -> bytes:
    """The record of a message."""
    name = message.stream.encode()
    prefix = _PREFIX.pack(message.number, message.skipped, message.ts_ms, message.synced, len(name))
    return prefix + name + payload


def decode_message(record: bytes) -> tuple[Message, bytes]:
    """The message of a record whose check sum was right, and its payload."""
    number, skipped, ts_ms, synced, size = _PREFIX.unpack_from(record)
    start = _PREFIX.size + size
    payload = record[start:]
    stream = record[_PREFIX.size : start].decode()
    return Message(stream, number, skipped, ts_ms, bool(synced), len(payload)), payload
