"""Packets of MQTT 3.1.1 and 5 as a client sees them: values come in, bytes go out.

Section numbers are those of MQTT Version 5.0 (OASIS, 2019). QoS 2 is left out on purpose: cloud
brokers refuse it, and a prediction that carries its message's id can be told from its repeat.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from agent.wire.mqtt.errors import InvalidText, InvalidTopic, TopicTooLong
from agent.wire.mqtt.properties import encode_string, encode_varint

Version = Literal[4, 5]
MAX_PACKET_SIZE: Final = 268_435_460
PINGREQ: Final = b"\xc0\x00"

_U16: Final = struct.Struct(">H").pack
_OCTETS: Final = tuple(bytes((octet,)) for octet in range(256))

UserProperties = tuple[tuple[str, str], ...]


# gc=False: these hold only strings, bytes and tuples of them, so no cycle can pass through one.
class Message(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One PUBLISH from the broker (3.3).

    A QoS 1 message is acknowledged by giving this very object to `Session.ack`.

    Args:
        topic: The name it was published to.
        payload: Its bytes.
        qos: 0 or 1.
        retain: True when the broker had it stored; it may be old.
        dup: The broker has sent it before.
        packet_id: 1 to 65,535 at QoS 1, else 0.
        response_topic: Where an answer should go; not checked.
        correlation_data: What the answer should repeat.
        content_type: MIME type of the payload, as its sender says.
        user_properties: Name and value pairs, in order.
        message_expiry_s: Seconds it has left.
    """

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0
    response_topic: str | None = None
    correlation_data: bytes | None = None
    content_type: str | None = None
    user_properties: UserProperties = ()
    message_expiry_s: int | None = None

    def __repr__(self) -> str:
        return (
            f"Message({self.topic!r}, {len(self.payload)} bytes, qos={self.qos}, "
            f"packet_id={self.packet_id}, retain={self.retain}, dup={self.dup})"
        )


class Oversized(msgspec.Struct, frozen=True, gc=False):
    """A PUBLISH above our limit, whose payload was thrown away unread."""

    topic: str
    size_bytes: int
    qos: int
    packet_id: int


class ConnAck(msgspec.Struct, frozen=True):
    """CONNACK (3.2), with what the broker states about itself; None where it says nothing."""

    session_present: bool
    reason_code: int
    reason: str = ""
    session_expiry_s: int | None = None
    receive_maximum: int | None = None
    max_qos: int | None = None
    retain_available: bool | None = None
    max_packet_size: int | None = None
    assigned_client_id: str | None = None
    topic_alias_maximum: int | None = None
    wildcard_available: bool | None = None
    keep_alive_s: int | None = None
    server_reference: str | None = None


class PubAck(msgspec.Struct, frozen=True, gc=False):
    """PUBACK (3.4): the broker has taken a QoS 1 message, or says why not."""

    packet_id: int
    reason_code: int = 0
    reason: str = ""


class SubAck(msgspec.Struct, frozen=True):
    """SUBACK (3.9): per filter the granted QoS, or a reason code from 0x80."""

    packet_id: int
    reason_codes: bytes
    reason: str = ""


class UnsubAck(msgspec.Struct, frozen=True):
    """UNSUBACK (3.11); 3.1.1 has no reason codes in it."""

    packet_id: int
    reason_codes: bytes = b""
    reason: str = ""


class PingResp(msgspec.Struct, frozen=True):
    """PINGRESP (3.13)."""


class Disconnect(msgspec.Struct, frozen=True):
    """DISCONNECT from the broker (3.14), MQTT 5 only."""

    reason_code: int = 0
    reason: str = ""
    server_reference: str | None = None


Packet = Message | Oversized | ConnAck | PubAck | SubAck | UnsubAck | PingResp | Disconnect


def encode_topic_name(topic: str, max_bytes: int = 0xFFFF) -> bytes:
    """Check a name to publish to and encode it with its length (4.7).

    Raises:
        InvalidTopic: Empty, with a wildcard or U+0000, or not UTF-8.
        TopicTooLong: Above `max_bytes`.
    """
    if "+" in topic or "#" in topic:
        raise InvalidTopic(f"topic {topic[:80]!r} holds a wildcard; a message needs a plain name")
    return _encode_topic(topic, max_bytes)


def encode_topic_filter(topic: str, max_bytes: int = 0xFFFF) -> bytes:
    """Check a filter to subscribe to and encode it with its length (4.7.1).

    Raises:
        InvalidTopic: Empty, with U+0000, not UTF-8, or with a wildcard that does not stand alone.
        TopicTooLong: Above `max_bytes`.
    """
    levels = topic.split("/")
    for index, level in enumerate(levels):
        alone = level in {"+", "#"} or not ("+" in level or "#" in level)
        if not alone or (level == "#" and index != len(levels) - 1):
            raise InvalidTopic(
                f"filter {topic[:80]!r}: '+' must fill a whole level and '#' the last one"
            )
    return _encode_topic(topic, max_bytes)


def _encode_topic(topic: str, max_bytes: int) -> bytes:
    if not topic:
        raise InvalidTopic("a topic may not be empty")
    if len(topic) > max_bytes:  # characters never outnumber bytes
        raise TopicTooLong(f"topic {topic[:80]!r}… is longer than {max_bytes} bytes")
    try:
        field = encode_string(topic)
    except InvalidText as error:
        raise InvalidTopic(f"topic: {error.message}") from None
    if len(field) - 2 > max_bytes:
        raise TopicTooLong(f"topic {topic[:80]!r}… is longer than {max_bytes} bytes")
    return field


def encode_connect(
    version: Version,
    client_id: str,
    *,
    keep_alive_s: int = 60,
    clean: bool = False,
    session_expiry_s: int = 0,
    receive_maximum: int = 0xFFFF,
    username: str | None = None,
    password: bytes | None = None,
    will: tuple[str, bytes, int, bool] | None = None,
) -> bytes:
    """Encode CONNECT (3.1); 3.1.1 has no place for expiry and receive maximum."""
    flags = clean << 1
    payload = [encode_string(client_id)]
    if will is not None:
        topic, message, qos, retain = will
        flags |= 0x04 | qos << 3 | retain << 5
        if version == 5:
            payload.append(b"\0")
        payload += (encode_topic_name(topic), len(message).to_bytes(2, "big"), message)
    if username is not None:
        flags |= 0x80
        payload.append(encode_string(username))
    if password is not None:
        flags |= 0x40
        payload += (len(password).to_bytes(2, "big"), password)
    head = b"\0\x04MQTT" + bytes((version, flags)) + keep_alive_s.to_bytes(2, "big")
    if version == 5:
        head += _connect_properties(session_expiry_s, receive_maximum)
    return _packet(0x10, head + b"".join(payload))


def _connect_properties(expiry_s: int, receive_maximum: int) -> bytes:
    block = b""
    if expiry_s:
        block += b"\x11" + expiry_s.to_bytes(4, "big")
    if receive_maximum != 0xFFFF:
        block += b"\x21" + receive_maximum.to_bytes(2, "big")
    return encode_varint(len(block)) + block


def encode_publish_head(
    first: int, field: bytes, packet_id: int, block: bytes, payload_size: int
) -> bytes:
    """Encode all of a PUBLISH (3.3) that stands before its payload.

    Args:
        first: The fixed header's first byte: 0x30 with DUP 0x08, QoS 1 0x02, RETAIN 0x01.
        field: The topic name, encoded.
        packet_id: 0 at QoS 0.
        block: The properties, encoded with their length; nothing at all under 3.1.1.
        payload_size: In bytes.

    Raises:
        TooLarge: More than MQTT can carry.
    """
    number = _U16(packet_id) if packet_id else b""
    size = len(field) + len(number) + len(block) + payload_size
    if size < 0x80:
        return b"".join((_OCTETS[first], _OCTETS[size], field, number, block))
    return b"".join((_OCTETS[first], encode_varint(size), field, number, block))


def encode_puback(packet_id: int) -> bytes:
    """Encode a PUBACK that says success, in its short form (3.4.2.1)."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def encode_subscribe(
    version: Version, packet_id: int, filters: Iterable[tuple[bytes, int]]
) -> bytes:
    """Encode SUBSCRIBE (3.8) of encoded filters with their QoS and no further options."""
    head = packet_id.to_bytes(2, "big") + (b"\0" if version == 5 else b"")
    return _packet(0x82, head + b"".join(field + bytes((qos,)) for field, qos in filters))


def encode_unsubscribe(version: Version, packet_id: int, filters: Iterable[bytes]) -> bytes:
    """Encode UNSUBSCRIBE (3.10) of encoded filters."""
    head = packet_id.to_bytes(2, "big") + (b"\0" if version == 5 else b"")
    return _packet(0xA2, head + b"".join(filters))


def encode_disconnect(version: Version, reason_code: int = 0) -> bytes:
    """Encode DISCONNECT (3.14); only MQTT 5 carries the reason."""
    if version == 4 or reason_code == 0:
        return b"\xe0\x00"
    return b"\xe0\x01" + bytes((reason_code,))


def _packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + encode_varint(len(body)) + body
