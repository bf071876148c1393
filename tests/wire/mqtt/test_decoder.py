"""Bytes from a broker, whole, cut anywhere, broken and hostile."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.wire.mqtt.decoder import Decoder
from agent.wire.mqtt.errors import MalformedPacket
from agent.wire.mqtt.packets import (
    ConnAck,
    Disconnect,
    Message,
    Oversized,
    Packet,
    PingResp,
    PubAck,
    SubAck,
    UnsubAck,
    Version,
)
from tests.wire.mqtt import broker_side as broker

LIMIT = 4096
quick = settings(max_examples=150, deadline=None)

versions: st.SearchStrategy[Version] = st.sampled_from([4, 5])
packet_ids = st.integers(1, 0xFFFF)
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
topics = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=40
)


def decode(version: Version, pieces: list[bytes], limit: int = LIMIT) -> list[Packet]:
    decoder = Decoder(version, limit)
    packets: list[Packet] = []
    for piece in pieces:
        decoder.feed(piece, packets)
    return packets


def values(packet: Packet) -> tuple[Any, ...]:
    return (type(packet), *(getattr(packet, name) for name in packet.__struct_fields__))


def outcome(version: Version, pieces: list[bytes]) -> tuple[list[tuple[Any, ...]], str]:
    decoder = Decoder(version, LIMIT)
    packets: list[Packet] = []
    error = ""
    try:
        for piece in pieces:
            decoder.feed(piece, packets)
    except MalformedPacket as broken:
        error = str(broken)
    return [values(packet) for packet in packets], error


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


@st.composite
def publish_blocks(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    block = b""
    expected: dict[str, Any] = {}
    if draw(st.booleans()):
        expected["response_topic"] = draw(words)
        block += b"\x08" + broker.text(expected["response_topic"])
    if draw(st.booleans()):
        expected["correlation_data"] = draw(st.binary(max_size=20))
        block += b"\x09" + broker.binary(expected["correlation_data"])
    if draw(st.booleans()):
        expected["content_type"] = draw(words)
        block += b"\x03" + broker.text(expected["content_type"])
    if draw(st.booleans()):
        expected["message_expiry_s"] = draw(st.integers(0, 0xFFFF_FFFF))
        block += b"\x02" + expected["message_expiry_s"].to_bytes(4, "big")
    if draw(st.booleans()):
        block += b"\x0b" + broker.varint(draw(st.integers(1, 0x0FFF_FFFF)))
    pairs = tuple(draw(st.lists(st.tuples(words, words), max_size=3)))
    block += b"".join(b"\x26" + broker.text(name) + broker.text(value) for name, value in pairs)
    return block, expected | {"user_properties": pairs}


@st.composite
def publishes(draw: st.DrawFn, version: int) -> tuple[bytes, Message]:
    block, extra = draw(publish_blocks()) if version == 5 else (b"", {})
    qos = draw(st.integers(0, 1))
    given_: dict[str, Any] = {
        "qos": qos,
        "retain": draw(st.booleans()),
        "dup": bool(qos) and draw(st.booleans()),
        "packet_id": draw(packet_ids) if qos else 0,
    }
    topic, payload = draw(topics), draw(st.binary(max_size=300))
    raw = broker.publish(version, topic, payload, block=block, **given_)
    return raw, Message(topic, payload, **given_, **extra)


@st.composite
def others(draw: st.DrawFn, version: int) -> tuple[bytes, Packet]:
    packet_id = draw(packet_ids)
    codes = draw(st.binary(min_size=1, max_size=8))
    reason = draw(words) if version == 5 else ""
    block = b"\x1f" + broker.text(reason) if reason else b""
    code = draw(st.integers(0, 255))
    choices: list[tuple[bytes, Packet]] = [
        (broker.suback(version, packet_id, codes, block), SubAck(packet_id, codes, reason)),
        (
            broker.unsuback(version, packet_id, codes, block),
            UnsubAck(packet_id, codes, reason) if version == 5 else UnsubAck(packet_id),
        ),
        (broker.puback(packet_id), PubAck(packet_id)),
        (broker.PINGRESP, PingResp()),
    ]
    if version == 5:
        choices += [
            (broker.puback(packet_id, code), PubAck(packet_id, code)),
            (broker.puback(packet_id, code, block), PubAck(packet_id, code, reason)),
            (broker.disconnect(code), Disconnect(code)),
            (broker.disconnect(code, block), Disconnect(code, reason)),
        ]
    return draw(st.sampled_from(choices))


@st.composite
def streams(draw: st.DrawFn) -> tuple[Version, bytes, list[Packet]]:
    version = draw(versions)
    pairs = draw(st.lists(publishes(version) | others(version), min_size=1, max_size=6))
    return version, b"".join(raw for raw, _ in pairs), [packet for _, packet in pairs]


@quick
@given(streams(), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_every_packet_is_read_however_the_bytes_are_cut(
    stream: tuple[Version, bytes, list[Packet]], places: list[int]
) -> None:
    version, data, expected = stream
    assert list(map(values, decode(version, cut(data, places)))) == list(map(values, expected))


@quick
@given(streams())
def test_every_packet_is_read_byte_by_byte(stream: tuple[Version, bytes, list[Packet]]) -> None:
    version, data, expected = stream
    pieces = [data[at : at + 1] for at in range(len(data))]
    assert list(map(values, decode(version, pieces))) == list(map(values, expected))


@st.composite
def damaged(draw: st.DrawFn) -> tuple[Version, bytes]:
    version, data, _ = draw(streams())
    raw = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw) - 1))
        raw[at] = draw(st.integers(0, 255))
    return version, bytes(raw)


anything = st.tuples(versions, st.binary(max_size=200))


@settings(max_examples=400, deadline=None)
@given(anything | damaged(), st.lists(st.integers(0, 1 << 16), max_size=8))
def test_broken_bytes_raise_one_error_and_end_alike_however_they_are_cut(
    case: tuple[Version, bytes], places: list[int]
) -> None:
    version, data = case
    assert outcome(version, cut(data, places)) == outcome(version, [data])


@pytest.mark.parametrize(
    ("version", "data"),
    [
        (5, b"\x34\x08\0\1a\0\1\0xx"),  # QoS 2
        (5, b"\x36\x08\0\1a\0\1\0xx"),  # QoS 3
        (5, b"\x38\x06\0\1a\0xx"),  # DUP at QoS 0
        (5, b"\x32\x06\0\1a\0\0\0"),  # packet identifier 0
        (5, b"\x30\x04\0\0\0x"),  # no topic
        (5, b"\x30\x05\0\1+\0x"),  # a wildcard in a name
        (5, b"\x30\x05\0\1\0\0x"),  # U+0000
        (5, b"\x30\x05\0\1\xff\0x"),  # not UTF-8
        (5, b"\x30\x07\0\3\xed\xa0\x80\0x"),  # a surrogate
        (5, b"\x30\x05\0\x09a\0x"),  # the topic ends behind the packet
        (5, b"\x30\x03\0\1a"),  # no property length
        (5, b"\x30\x05\0\1a\x05x"),  # the properties end behind the packet
        (5, b"\x30\x07\0\1a\x03\x23\0\1"),  # a topic alias
        (5, b"\x30\x08\0\1a\x04\x01\0\x01\1"),  # a property twice
        (5, b"\x30\x06\0\1a\x02\x01\2"),  # neither 0 nor 1
        (5, b"\x30\x06\0\1a\x02\x7f\0"),  # an unknown property
        (5, b"\x30\x06\0\1a\x02\x24\0"),  # one that belongs elsewhere
        (5, b"\x30\x06\0\1a\x02\x0b\0"),  # subscription identifier 0
        (5, b"\x30\x06\0\1a\x02\x08\0"),  # a string without its length
        (5, b"\x30\x08\0\1a\x04\x08\0\2x"),  # a string cut short
        (5, b"\x30\x08\0\1a\x04\x08\0\1\0"),  # U+0000 in a string
        (5, b"\x30\x08\0\1a\x04\x08\0\1\xff"),  # a string that is not UTF-8
        (5, b"\x30\x08\0\1a\x04\x09\0\2x"),  # binary data cut short
        (5, b"\x30\x06\0\1a\x02\x09\0"),
        (5, b"\x30\x06\0\1a\x02\x02\0"),  # a number cut short
        (5, b"\x30\x05\0\1a\x01\x0b"),  # a length cut short
        (5, b"\x30\x85\x00\0\1a\0x"),  # a length that is not the shortest
        (4, b"\xb0\x80\x00\x80"),
        (5, b"\x30\xff\xff\xff\xff\x01"),  # a length of five bytes
        (5, b"\x40\x02\0\0"),
        (5, b"\x40\x01\0"),
        (5, b"\x40\x05\0\1\0\0\0"),  # longer than what it holds
        (4, b"\x40\x03\0\1\0"),
        (5, b"\x41\x02\0\1"),  # flags that must be 0
        (5, b"\x50\x02\0\1"),  # PUBREC
        (5, b"\xf0\x00"),  # AUTH
        (4, b"\xe0\x00"),  # a 3.1.1 broker never sends DISCONNECT
        (5, b"\x10\x02\0\0"),  # CONNECT
        (5, b"\x20\x02\0\0"),  # MQTT 5 without properties
        (5, b"\x20\x03\2\0\0"),  # flags that must be 0
        (4, b"\x20\x03\0\0\0"),
        (5, b"\x20\x06\0\0\3\x21\0\0"),  # receive maximum 0
        (5, b"\x90\x03\0\1\0"),  # no result
        (4, b"\xb0\x03\0\1\0"),
        (5, b"\xb0\x03\0\1\0"),
        (5, b"\xd0\x01\0"),
    ],
)
def test_what_mqtt_forbids_is_refused(version: Version, data: bytes) -> None:
    with pytest.raises(MalformedPacket) as caught:
        decode(version, [data])
    assert caught.value.reason_code in {0x81, 0x82, 0x90, 0x94}


def test_packets_before_a_broken_one_are_not_lost() -> None:
    packets: list[Packet] = []
    with pytest.raises(MalformedPacket):
        Decoder(5, LIMIT).feed(broker.puback(7) + b"\xf0\0", packets)
    assert packets == [PubAck(7)]


def test_a_connack_tells_all_limits_of_the_broker() -> None:
    block = (
        b"\x11\0\0\1\0\x21\0\x14\x24\0\x25\0\x27\0\1\0\0\x12"
        + broker.text("made-up")
        + b"\x22\0\x0a\x28\0\x29\1\x2a\0\x13\0\x1e\x1f"
        + broker.text("welcome")
        + b"\x1c"
        + broker.text("other:1883")
        + b"\x26"
        + broker.text("a")
        + broker.text("b")
    )
    assert decode(5, [broker.connack(5, True, 0, block)]) == [
        ConnAck(
            session_present=True,
            reason_code=0,
            reason="welcome",
            session_expiry_s=256,
            receive_maximum=20,
            max_qos=0,
            retain_available=False,
            max_packet_size=65536,
            assigned_client_id="made-up",
            topic_alias_maximum=10,
            wildcard_available=False,
            keep_alive_s=30,
            server_reference="other:1883",
        )
    ]


def test_a_refusal_in_the_form_of_3_1_1_is_understood_by_mqtt_5() -> None:
    assert decode(5, [b"\x20\x02\0\x01"]) == [ConnAck(False, 1)]


@quick
@given(
    versions,
    st.integers(0, 1),
    st.integers(LIMIT, 3 * LIMIT),
    st.lists(st.integers(0, 1 << 16), max_size=8),
)
def test_the_payload_of_an_oversized_message_is_skipped_and_what_follows_is_read(
    version: Version, qos: int, size: int, places: list[int]
) -> None:
    raw = broker.publish(version, "big/one", bytes(size), qos=qos, packet_id=9 * qos)
    data = broker.puback(1) + raw + broker.puback(2)
    expected = [PubAck(1), Oversized("big/one", len(raw), qos, 9 * qos), PubAck(2)]
    assert decode(version, cut(data, places)) == expected


def test_an_oversized_message_is_skipped_byte_by_byte() -> None:
    raw = broker.publish(4, "big", bytes(LIMIT), qos=1, packet_id=3)
    pieces = [raw[at : at + 1] for at in range(len(raw))]
    assert decode(4, [*pieces, broker.PINGRESP]) == [Oversized("big", len(raw), 1, 3), PingResp()]


def test_a_limit_below_what_mqtt_itself_needs_is_a_bug() -> None:
    with pytest.raises(ValueError):
        Decoder(5, 127)


def test_an_oversized_packet_of_another_kind_is_refused() -> None:
    with pytest.raises(MalformedPacket) as caught:
        decode(5, [b"\x90" + broker.varint(LIMIT)])
    assert caught.value.reason_code == 0x95


@pytest.mark.parametrize("over", [0, 1])
def test_the_limit_counts_the_whole_packet(over: int) -> None:
    raw = broker.publish(5, "a", bytes(LIMIT - 7 + over))
    assert len(raw) == LIMIT + over
    (packet,) = decode(5, [raw])
    assert isinstance(packet, Oversized if over else Message)


def test_a_large_packet_in_tiny_pieces_costs_no_more_than_one_copy() -> None:
    raw = broker.publish(5, "a", bytes(1 << 19))
    decoder = Decoder(5, 1 << 20)
    packets: list[Packet] = []
    # Were each piece joined to the rest, this would copy 70 GB.
    for at in range(0, len(raw), 2):
        decoder.feed(raw[at : at + 2], packets)
    assert [len(packet.payload) for packet in packets if isinstance(packet, Message)] == [1 << 19]


def test_no_more_topics_are_remembered_than_a_fixed_number() -> None:
    decoder = Decoder(5, LIMIT)
    packets: list[Packet] = []
    for number in range(5000):
        decoder.feed(broker.publish(5, f"sensor/{number}", b""), packets)
    assert len(packets) == 5000
    assert len(decoder._topics) <= 1024
