"""The frames between the daemon and a worker."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import WorkerError
from agent.wire import frames

TOPICS = st.text(max_size=40).filter(lambda text: len(text.encode()) <= 200)
U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)


def copied(frame: frames.Frame) -> tuple[int, int, int, bytes, bytes]:
    return (frame.kind, frame.flags, frame.sequence, bytes(frame.meta), bytes(frame.payload))


def one(data: bytes) -> frames.Frame:
    (frame,) = frames.FrameReader().feed(data)
    return frame


@given(
    contents=st.lists(
        st.tuples(
            st.integers(0, 255), st.integers(0, 255), U64, st.binary(max_size=30), st.binary()
        ),
        max_size=8,
    ),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
@settings(max_examples=200, deadline=None)
def test_frames_come_out_whole_however_the_stream_is_split(
    contents: list[tuple[int, int, int, bytes, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(frames.encode_frame(*content) for content in contents)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reader = frames.FrameReader()
    got = [
        copied(frame)
        for low, high in itertools.pairwise(edges)
        for frame in reader.feed(stream[low:high])
    ]
    assert got == contents


@given(contents=st.lists(st.binary(max_size=20), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_frames_come_out_whole_byte_by_byte_from_one_reused_buffer(contents: list[bytes]) -> None:
    stream = b"".join(frames.encode_frame(1, 0, n, b"m", data) for n, data in enumerate(contents))
    reader = frames.FrameReader()
    buffer = bytearray(1)
    got = []
    for byte in stream:
        buffer[0] = byte
        got += [bytes(frame.payload) for frame in reader.feed(memoryview(buffer))]
    assert got == contents


@given(data=st.lists(st.binary(max_size=60), max_size=6))
@settings(max_examples=100, deadline=None)
def test_any_bytes_give_frames_or_the_documented_error(data: list[bytes]) -> None:
    reader = frames.FrameReader(max_bytes=1000)
    try:
        for part in data:
            for frame in reader.feed(part):
                frames.decode_result(frame)
    except WorkerError:
        pass


def test_a_frame_over_the_limit_is_refused_by_its_header_alone() -> None:
    header = frames.HEADER.pack(1001, 0, 1, frames.RESULT, 0)
    with pytest.raises(WorkerError, match="1001 bytes"):
        frames.FrameReader(max_bytes=1000).feed(header)


def test_a_frame_with_more_meta_than_content_is_refused() -> None:
    with pytest.raises(WorkerError):
        frames.FrameReader().feed(frames.HEADER.pack(3, frames.RESULT, 0, 4, 1) + b"abc")


@given(
    sequence=U64,
    topic=TOPICS,
    payload=st.binary(max_size=50),
    correlation=st.none() | st.binary(max_size=20),
    replay=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_a_message_comes_back_as_it_went(
    sequence: int, topic: str, payload: bytes, correlation: bytes | None, replay: bool
) -> None:
    frame = one(
        frames.encode_message(sequence, topic.encode(), payload, correlation, replay=replay)
    )
    assert frames.decode_message_meta(frame) == (topic, correlation)
    assert (frame.kind, frame.sequence, bytes(frame.payload)) == (frames.MESSAGE, sequence, payload)
    assert bool(frame.flags & frames.REPLAY) == replay


@given(
    sequence=U64,
    payload=st.binary(max_size=50),
    times=st.tuples(U32, U32, U32),
    class_index=st.integers(-1, 2**31 - 1),
    reply_topic=TOPICS,
    message_id=st.binary(max_size=20),
    released=st.none() | st.lists(U64, max_size=5),
)
@settings(max_examples=100, deadline=None)
def test_a_result_comes_back_as_it_went(
    sequence: int,
    payload: bytes,
    times: tuple[int, int, int],
    class_index: int,
    reply_topic: str,
    message_id: bytes,
    released: list[int] | None,
) -> None:
    frame = one(
        frames.encode_result(
            sequence,
            frames.PREDICTION,
            payload,
            times_us=times,
            class_index=class_index,
            reply_topic=reply_topic.encode(),
            message_id=message_id,
            released=released,
        )
    )
    result = frames.decode_result(frame)
    expected = (sequence,) if released is None else tuple(released)
    assert result == (*times, class_index, reply_topic, message_id, expected)
    assert bytes(frame.payload) == payload


def test_a_result_may_release_as_many_messages_as_the_largest_window_holds() -> None:
    released = tuple(range(65_536))
    data = frames.encode_result(7, frames.PREDICTION, b"p", released=released)
    (frame,) = frames.FrameReader().feed(data)
    assert frames.decode_result(frame).released == released


def test_a_message_may_carry_the_longest_correlation_data_beside_a_long_topic() -> None:
    topic, correlation = b"t" * 60_000, bytes(65_535)
    (frame,) = frames.FrameReader().feed(frames.encode_message(1, topic, b"x", correlation))
    assert frames.decode_message_meta(frame) == (topic.decode(), correlation)
