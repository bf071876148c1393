"""Frames on the Unix stream socket between the daemon and one worker.

A frame is an 18-byte header, `meta` and `payload`; both sides bound its size before they read it.
The daemon parses no payload: all it needs of a prediction stands in the fixed meta of a RESULT.

    header   u32 length of meta + payload · u32 length of meta · u64 sequence · u8 kind · u8 flags
    MESSAGE  meta: u16 length of topic, topic, correlation data    payload: as received
    RESULT   meta: ResultMeta, reply topic, id, released sequences payload: the encoded prediction
    others   payload: one JSON object of `agent.wire.worker`

All integers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from agent.errors import WorkerError

HEADER = struct.Struct("<IIQBB")
MAX_FRAME_BYTES = 64 * 1024 * 1024

# Daemon to worker.
LOAD, MESSAGE, STOP, MEASURE = 1, 2, 3, 4
# Worker to daemon.
READY, FAILED, PROBED, RESULT, MEASURED = 16, 17, 18, 19, 20

# Flags of a MESSAGE.
HAS_CORRELATION = 1
# Rebuild a window or a state with it; its prediction was already made.
REPLAY = 2

# Flags of a RESULT: the outcome in the low two bits, then what is known of it.
PREDICTION, ABSORBED, REJECTED = 0, 1, 2
OUTCOME_MASK = 3
# The message carried an id (in its payload or as correlation data): an error can be answered.
HAS_ID = 4
# The answer released more, or other, messages than the one it answers: see `released`.
HAS_RELEASED = 8
# The model's answer was not what the manifest says (the model's fault, not the message's).
BAD_OUTPUT = 16

_TOPIC_LENGTH = struct.Struct("<H")
_PLAIN_MESSAGE = struct.Struct(HEADER.format + "H").pack
_UNPACK = HEADER.unpack_from
_SIZE = HEADER.size
# decode_us, run_us, encode_us, class index (-1: none), bytes of reply topic, bytes of id.
RESULT_META = struct.Struct("<IIIiHH")
# Header and meta of the common RESULT, which carries neither reply topic, nor id, nor sequences.
_PLAIN_RESULT = struct.Struct(HEADER.format + RESULT_META.format.lstrip("<"))


class Frame(NamedTuple):
    kind: int
    flags: int
    sequence: int
    meta: memoryview
    payload: memoryview


class Result(NamedTuple):
    """The meta of a RESULT. Durations in microseconds."""

    decode_us: int
    run_us: int
    encode_us: int
    class_index: int
    reply_topic: str
    id: bytes
    # Messages that no window needs any more, once this result is handed over.
    released: tuple[int, ...]


def encode_frame(kind: int, flags: int, sequence: int, meta: bytes, payload: bytes) -> bytes:
    """Return one frame as bytes."""
    head = HEADER.pack(len(meta) + len(payload), len(meta), sequence, kind, flags)
    return b"".join((head, meta, payload))


def encode_message(
    sequence: int, topic: bytes, payload: bytes, correlation: bytes | None, *, replay: bool = False
) -> bytes:
    """Return a MESSAGE frame. `topic` is UTF-8, at most 65,000 bytes."""
    length = len(topic)
    if correlation is None and not replay:
        meta_size = 2 + length
        head = _PLAIN_MESSAGE(meta_size + len(payload), meta_size, sequence, MESSAGE, 0, length)
        return b"".join((head, topic, payload))
    flags = (REPLAY if replay else 0) | (0 if correlation is None else HAS_CORRELATION)
    meta = b"".join((_TOPIC_LENGTH.pack(len(topic)), topic, correlation or b""))
    return encode_frame(MESSAGE, flags, sequence, meta, payload)


def decode_message_meta(frame: Frame) -> tuple[str, bytes | None]:
    """Return the topic and the correlation data of a MESSAGE."""
    (length,) = _TOPIC_LENGTH.unpack_from(frame.meta)
    topic = str(frame.meta[2 : 2 + length], "utf-8")
    has_correlation = frame.flags & HAS_CORRELATION
    return topic, bytes(frame.meta[2 + length :]) if has_correlation else None


def encode_result(
    sequence: int,
    flags: int,
    payload: bytes,
    *,
    times_us: tuple[int, int, int] = (0, 0, 0),
    class_index: int = -1,
    reply_topic: bytes = b"",
    message_id: bytes = b"",
    released: Sequence[int] | None = None,
) -> bytes:
    """Return a RESULT frame. `released` None means: just the message it answers."""
    if released is None and not reply_topic and not message_id:
        size = RESULT_META.size
        head = _PLAIN_RESULT.pack(
            size + len(payload), size, sequence, RESULT, flags, *times_us, class_index, 0, 0
        )
        return head + payload
    flags |= 0 if released is None else HAS_RELEASED
    numbers = struct.pack(f"<{len(released)}Q", *released) if released else b""
    meta = RESULT_META.pack(*times_us, class_index, len(reply_topic), len(message_id))
    return encode_frame(
        RESULT, flags, sequence, b"".join((meta, reply_topic, message_id, numbers)), payload
    )


def decode_result(frame: Frame) -> Result:
    """Return the meta of a RESULT.

    Raises:
        WorkerError: The meta is not what this module writes.
    """
    try:
        decode_us, run_us, encode_us, class_index, topic_length, id_length = (
            RESULT_META.unpack_from(frame.meta)
        )
        if len(frame.meta) == RESULT_META.size and not frame.flags & HAS_RELEASED:
            return Result(decode_us, run_us, encode_us, class_index, "", b"", (frame.sequence,))
        rest = frame.meta[RESULT_META.size :]
        topic = str(rest[:topic_length], "utf-8")
        numbers = rest[topic_length + id_length :]
        released: tuple[int, ...] = (frame.sequence,)
        if frame.flags & HAS_RELEASED:
            released = struct.unpack(f"<{len(numbers) // 8}Q", numbers)
    except (struct.error, UnicodeDecodeError) as error:
        raise WorkerError(f"a worker sent a result that cannot be read: {error}") from None
    return Result(
        decode_us,
        run_us,
        encode_us,
        class_index,
        topic,
        bytes(rest[topic_length : topic_length + id_length]),
        released,
    )


class FrameReader:
    """Cuts a byte stream into frames; fed with any split of it."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        # The beginning of a frame whose end has not come yet, and the length it must reach.
        self._begun = bytearray()
        self._wanted = 0

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Return the frames that are complete with `data`.

        Their views look into `data` where a frame came in one piece: they are valid until the next
        call, and as long as `data` is not overwritten.

        Raises:
            WorkerError: A header announces more than `max_bytes`, or more meta than frame.
        """
        view = memoryview(data)
        frames: list[Frame] = []
        position, end = 0, len(view)
        if self._begun:
            position = self._complete(view, frames)
            if self._begun:
                return frames
        most = self._max_bytes
        while end - position >= _SIZE:
            length, meta_length, sequence, kind, flags = _UNPACK(view, position)
            if length > most or meta_length > length:
                self._length(view, position)
            start = position + _SIZE
            stop = start + length
            if stop > end:
                self._wanted = length + _SIZE
                break
            payload = start + meta_length
            frames.append(Frame(kind, flags, sequence, view[start:payload], view[payload:stop]))
            position = stop
        else:
            self._wanted = HEADER.size
        if position < end:
            # Only a split frame is copied.
            self._begun += view[position:]
        return frames

    def _complete(self, view: memoryview, frames: list[Frame]) -> int:
        """Add to the frame begun earlier; return how much of `view` that took."""
        position = 0
        while True:
            missing = self._wanted - len(self._begun)
            self._begun += view[position : position + missing]
            position = min(position + missing, len(view))
            if len(self._begun) < self._wanted:
                return position
            length = self._length(self._begun, 0)
            if length == len(self._begun):
                break
            self._wanted = length
        frames.append(_cut(memoryview(self._begun), 0, length))
        self._begun = bytearray()
        return position

    def _length(self, buffer: memoryview | bytearray, position: int) -> int:
        length, meta_length, _, _, _ = HEADER.unpack_from(buffer, position)
        if length > self._max_bytes or meta_length > length:
            raise WorkerError(f"a worker's frame announces {length} bytes, more than it may")
        return int(length) + HEADER.size


def _cut(view: memoryview, position: int, length: int) -> Frame:
    _, meta_length, sequence, kind, flags = HEADER.unpack_from(view, position)
    meta = position + HEADER.size
    payload = meta + meta_length
    return Frame(kind, flags, sequence, view[meta:payload], view[payload : position + length])
