"""What a client sends, read by a reader that was written apart from it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import UsageError
from agent.wire.mqtt import packets as p
from agent.wire.mqtt.errors import InvalidText, InvalidTopic, TooLarge, TopicTooLong
from agent.wire.mqtt.options import ConnectOptions, Will
from agent.wire.mqtt.properties import (
    Properties,
    decode_varint,
    encode_properties,
    encode_string,
    encode_varint,
)
from tests.wire.mqtt import broker_side as broker


def read(data: bytes, version: int = 5) -> dict[str, Any]:
    reader = broker.Reader()
    reader.version = version
    (sent,) = reader.read(data)
    return sent.fields


def test_connect_says_who_we_are_and_what_we_take() -> None:
    data = p.encode_connect(
        5,
        "press-7",
        keep_alive_s=30,
        session_expiry_s=3600,
        receive_maximum=20,
        username="u",
        password=b"\0p",
        will=("status", b"offline", 1, True),
    )
    assert read(data) == {
        "version": 5,
        "clean": False,
        "keep_alive": 30,
        "block": b"\x11\0\0\x0e\x10\x21\0\x14",
        "client_id": b"press-7",
        "will": (b"status", b"offline", 1, True),
        "username": b"u",
        "password": b"\0p",
    }


def test_connect_of_3_1_1_has_no_properties() -> None:
    data = p.encode_connect(4, "press-7", clean=True, session_expiry_s=9)
    assert data == b"\x10\x13\0\4MQTT\4\2\0\x3c\0\7press-7"


@pytest.mark.parametrize("size", [0, 1, 100, 119, 120, 121, 16_000, 16_375, 16_376, 2_100_000])
@pytest.mark.parametrize("version", [4, 5])
def test_publish_heads_are_right_at_each_length_of_the_length(version: int, size: int) -> None:
    block = b"\0" if version == 5 else b""
    field = p.encode_topic_name("a/b")
    for first, packet_id in ((0x30, 0), (0x33, 777), (0x3A, 1)):
        head = p.encode_publish_head(first, field, packet_id, block, size)
        qos = first >> 1 & 1
        assert head + bytes(size) == broker.publish(
            version,
            "a/b",
            bytes(size),
            qos=qos,
            retain=bool(first & 1),
            dup=bool(first & 8),
            packet_id=packet_id,
        )


def test_properties_carry_a_request_and_its_answer() -> None:
    block = encode_properties(
        Properties(
            response_topic="answers",
            correlation_data=b"\x01",
            content_type="application/json",
            message_expiry_s=10,
            user_properties=(("pack", "a"), ("pack", "b")),
        )
    )
    expected = b"\x02\0\0\0\x0a\x03" + broker.text("application/json")
    expected += b"\x08" + broker.text("answers") + b"\x09\0\1\1"
    expected += b"\x26" + broker.text("pack") + broker.text("a")
    expected += b"\x26" + broker.text("pack") + broker.text("b")
    assert block == broker.varint(len(expected)) + expected


@given(st.integers(0, 0x0FFF_FFFF))
@settings(max_examples=200, deadline=None)
def test_every_length_is_read_back(value: int) -> None:
    data = encode_varint(value)
    assert data == broker.varint(value)
    assert decode_varint(data, 0, len(data)) == (value, len(data))


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_name_is_encoded_or_refused_with_the_documented_error(topic: str) -> None:
    try:
        field = p.encode_topic_name(topic)
    except InvalidTopic:
        bad = not topic or set(topic) & set("+#\0")
        assert bad or any(0xD800 <= ord(letter) <= 0xDFFF for letter in topic)
    else:
        assert field == broker.text(topic)


@pytest.mark.parametrize("topic", ["#", "+", "a/+/b", "a/#", "+/+", "/", "a//b", "$SYS/#"])
def test_filters_that_mqtt_allows(topic: str) -> None:
    assert p.encode_topic_filter(topic) == broker.text(topic)


@pytest.mark.parametrize("topic", ["", "a+", "a/b#", "#/a", "a/#/b", "a\0", "+a/b", "\ud800"])
def test_filters_that_mqtt_forbids(topic: str) -> None:
    with pytest.raises(InvalidTopic):
        p.encode_topic_filter(topic)


def test_long_topics_are_refused_by_bytes_not_characters() -> None:
    p.encode_topic_name("é" * 10, max_bytes=20)
    with pytest.raises(TopicTooLong):
        p.encode_topic_name("é" * 10, max_bytes=19)
    with pytest.raises(TopicTooLong):
        p.encode_topic_name("a" * 65_536)


def test_what_mqtt_cannot_carry_is_refused() -> None:
    with pytest.raises(InvalidText):
        encode_string("\0")
    with pytest.raises(InvalidText):
        encode_properties(Properties(content_type="\ud800"))
    with pytest.raises(TooLarge):
        encode_properties(Properties(correlation_data=bytes(65_536)))
    with pytest.raises(InvalidTopic):
        encode_properties(Properties(response_topic="answers/#"))
    with pytest.raises(TooLarge):
        encode_varint(1 << 28)


def test_a_password_is_never_shown() -> None:
    assert "s3cret" not in repr(ConnectOptions("c", password=b"s3cret"))


def test_a_payload_is_never_shown() -> None:
    assert "s3cret" not in repr(p.Message("a", b"s3cret"))


@pytest.mark.parametrize(
    "change",
    [
        {"client_id": ""},
        {"keep_alive_s": -1},
        {"keep_alive_s": 65_536},
        {"receive_maximum": 0},
        {"max_packet_size": 100},
        {"max_inflight": 0},
    ],
)
def test_options_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ConnectOptions(**({"client_id": "c"} | change))


def test_a_last_will_at_qos_2_is_refused_with_a_sentence() -> None:
    with pytest.raises(UsageError, match="QoS 2 is not offered"):
        Will("status", qos=2)
    with pytest.raises(InvalidTopic):
        Will("status/#")
    with pytest.raises(UsageError, match="65,535 bytes"):
        Will("status", bytes(65_536))
