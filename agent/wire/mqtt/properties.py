"""MQTT 5 properties: one table of what each is and where it may stand (MQTT 5.0, 2.2.2.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from agent.wire.mqtt.errors import InvalidText, InvalidTopic, MalformedPacket, TooLarge

MESSAGE_EXPIRY: Final = 0x02
CONTENT_TYPE: Final = 0x03
RESPONSE_TOPIC: Final = 0x08
CORRELATION_DATA: Final = 0x09
SESSION_EXPIRY: Final = 0x11
ASSIGNED_CLIENT_ID: Final = 0x12
SERVER_KEEP_ALIVE: Final = 0x13
SERVER_REFERENCE: Final = 0x1C
REASON_STRING: Final = 0x1F
RECEIVE_MAXIMUM: Final = 0x21
TOPIC_ALIAS_MAXIMUM: Final = 0x22
TOPIC_ALIAS: Final = 0x23
MAXIMUM_QOS: Final = 0x24
RETAIN_AVAILABLE: Final = 0x25
USER_PROPERTY: Final = 0x26
MAXIMUM_PACKET_SIZE: Final = 0x27
WILDCARD_AVAILABLE: Final = 0x28

_Reader = Callable[[bytes, int, int], tuple[Any, int]]
_VARINT_LIMIT: Final = 4
_PROTOCOL_ERROR: Final = 0x82


class Properties(msgspec.Struct, frozen=True):
    """What an outgoing MQTT 5 message says about itself; MQTT 3.1.1 cannot carry it.

    Args:
        response_topic: Where an answer goes.
        correlation_data: Bytes that the answer repeats, to tell what it answers.
        content_type: MIME type of the payload.
        message_expiry_s: Seconds after which the broker forgets the message.
        user_properties: Name and value pairs, in order; names may repeat.
    """

    response_topic: str | None = None
    correlation_data: bytes | None = None
    content_type: str | None = None
    message_expiry_s: int | None = None
    user_properties: tuple[tuple[str, str], ...] = ()


def encode_varint(value: int) -> bytes:
    """Encode a length as MQTT's variable byte integer (1.5.5).

    Raises:
        TooLarge: The value needs more than four bytes.
    """
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value > 0x0FFF_FFFF:
        raise TooLarge(f"a packet of {value} bytes is more than MQTT can carry (268,435,455)")
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def decode_varint(data: bytes, pos: int, stop: int) -> tuple[int, int]:
    """Decode a variable byte integer that must end before `stop`.

    Returns:
        The value and the position behind it.

    Raises:
        MalformedPacket: It is cut short, longer than four bytes, or not in its shortest form.
    """
    value = 0
    for index in range(_VARINT_LIMIT):
        if pos >= stop:
            raise MalformedPacket("a length is cut short")
        octet = data[pos]
        pos += 1
        value |= (octet & 0x7F) << (7 * index)
        if octet < 0x80:
            if octet == 0 and index:
                raise MalformedPacket("a length is not in its shortest form")
            return value, pos
    raise MalformedPacket("a length is longer than four bytes")


def encode_string(text: str) -> bytes:
    """Encode a UTF-8 string with its two-byte length (1.5.4).

    Raises:
        InvalidText: The text holds U+0000 or a lone surrogate.
        TooLarge: More than 65,535 bytes.
    """
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise InvalidText(f"{text[:40]!r} is not valid UTF-8 text") from None
    if b"\0" in raw:
        raise InvalidText(f"{text[:40]!r} holds U+0000, which MQTT forbids")
    return encode_binary(raw)


def encode_binary(raw: bytes) -> bytes:
    """Encode binary data with its two-byte length (1.5.6).

    Raises:
        TooLarge: More than 65,535 bytes.
    """
    if len(raw) > 0xFFFF:
        raise TooLarge(f"a field of {len(raw)} bytes is more than MQTT can carry (65,535)")
    return len(raw).to_bytes(2, "big") + raw


def decode_string(data: bytes, pos: int, stop: int) -> tuple[str, int]:
    """Decode a length-prefixed UTF-8 string.

    Raises:
        MalformedPacket: It is cut short, holds U+0000 or is not UTF-8.
    """
    end = pos + 2
    if end <= stop:
        end += data[pos] << 8 | data[pos + 1]
    if end > stop:
        raise MalformedPacket("a field is cut short")
    raw = data[pos + 2 : end]
    if 0 in raw:
        raise MalformedPacket("a string holds U+0000")
    try:
        return raw.decode(), end
    except UnicodeDecodeError:
        raise MalformedPacket("a string is not valid UTF-8") from None


def decode_binary(data: bytes, pos: int, stop: int) -> tuple[bytes, int]:
    """Decode length-prefixed binary data.

    Raises:
        MalformedPacket: It is cut short.
    """
    end = pos + 2
    if end <= stop:
        end += data[pos] << 8 | data[pos + 1]
    if end > stop:
        raise MalformedPacket("a field is cut short")
    return data[pos + 2 : end], end


def _fixed(size: int) -> _Reader:
    def read(data: bytes, pos: int, stop: int) -> tuple[int, int]:
        if pos + size > stop:
            raise MalformedPacket("a property is cut short")
        return int.from_bytes(data[pos : pos + size], "big"), pos + size

    return read


def _switch(data: bytes, pos: int, stop: int) -> tuple[int, int]:
    value, pos = _byte(data, pos, stop)
    if value > 1:
        raise MalformedPacket(
            f"a property that is 0 or 1 has value {value}", reason_code=_PROTOCOL_ERROR
        )
    return value, pos


def _not_zero(read: _Reader) -> _Reader:
    def checked(data: bytes, pos: int, stop: int) -> tuple[int, int]:
        value, pos = read(data, pos, stop)
        if value == 0:
            raise MalformedPacket("a property that must not be 0 is", reason_code=_PROTOCOL_ERROR)
        return value, pos

    return checked


def _pair(data: bytes, pos: int, stop: int) -> tuple[tuple[str, str], int]:
    name, pos = decode_string(data, pos, stop)
    value, pos = decode_string(data, pos, stop)
    return (name, value), pos


_byte, _u16, _u32 = _fixed(1), _fixed(2), _fixed(4)

PUBLISH: Final = 0x30
CONNACK: Final = 0x20
ACK: Final = 0x40  # PUBACK, SUBACK and UNSUBACK allow the same two
DISCONNECT: Final = 0xE0

# Property → how to read it, and in which packets from a broker it may stand. 0x0B repeats freely.
_TABLE: Mapping[int, tuple[_Reader, frozenset[int]]] = {
    0x01: (_switch, frozenset({PUBLISH})),
    MESSAGE_EXPIRY: (_u32, frozenset({PUBLISH})),
    CONTENT_TYPE: (decode_string, frozenset({PUBLISH})),
    RESPONSE_TOPIC: (decode_string, frozenset({PUBLISH})),
    CORRELATION_DATA: (decode_binary, frozenset({PUBLISH})),
    0x0B: (_not_zero(decode_varint), frozenset({PUBLISH})),
    SESSION_EXPIRY: (_u32, frozenset({CONNACK})),
    ASSIGNED_CLIENT_ID: (decode_string, frozenset({CONNACK})),
    SERVER_KEEP_ALIVE: (_u16, frozenset({CONNACK})),
    0x15: (decode_string, frozenset({CONNACK})),
    0x16: (decode_binary, frozenset({CONNACK})),
    0x1A: (decode_string, frozenset({CONNACK})),
    SERVER_REFERENCE: (decode_string, frozenset({CONNACK, DISCONNECT})),
    REASON_STRING: (decode_string, frozenset({CONNACK, ACK, DISCONNECT})),
    RECEIVE_MAXIMUM: (_not_zero(_u16), frozenset({CONNACK})),
    TOPIC_ALIAS_MAXIMUM: (_u16, frozenset({CONNACK})),
    TOPIC_ALIAS: (_not_zero(_u16), frozenset({PUBLISH})),
    MAXIMUM_QOS: (_switch, frozenset({CONNACK})),
    RETAIN_AVAILABLE: (_switch, frozenset({CONNACK})),
    USER_PROPERTY: (_pair, frozenset({PUBLISH, CONNACK, ACK, DISCONNECT})),
    MAXIMUM_PACKET_SIZE: (_not_zero(_u32), frozenset({CONNACK})),
    WILDCARD_AVAILABLE: (_switch, frozenset({CONNACK})),
    0x29: (_switch, frozenset({CONNACK})),
    0x2A: (_switch, frozenset({CONNACK})),
}
_REPEATABLE: Final = frozenset({0x0B})
_READERS: Mapping[int, Mapping[int, _Reader]] = {
    packet: {kind: read for kind, (read, places) in _TABLE.items() if packet in places}
    for packet in (PUBLISH, CONNACK, ACK, DISCONNECT)
}


def decode_properties(
    data: bytes, pos: int, stop: int, packet: int
) -> tuple[dict[int, Any], tuple[tuple[str, str], ...], int]:
    """Decode the properties of one packet.

    Args:
        data: The bytes that hold the packet.
        pos: Where the property length starts.
        stop: Where the packet ends.
        packet: Which kind of packet it is (`PUBLISH`, `CONNACK`, `ACK`, `DISCONNECT`).

    Returns:
        Values by property identifier, user properties in order, and the position behind.

    Raises:
        MalformedPacket: Cut short, unknown, out of place, repeated, or a value MQTT forbids.
    """
    length, pos = decode_varint(data, pos, stop)
    end = pos + length
    if end > stop:
        raise MalformedPacket("the properties are cut short")
    readers = _READERS[packet]
    values: dict[int, Any] = {}
    pairs: list[tuple[str, str]] = []
    while pos < end:
        kind = data[pos]
        read = readers.get(kind)
        if read is None:
            raise MalformedPacket(f"property 0x{kind:02X} has no place in a 0x{packet:02X} packet")
        value, pos = read(data, pos + 1, end)
        if kind == USER_PROPERTY:
            pairs.append(value)
        elif kind in values and kind not in _REPEATABLE:
            raise MalformedPacket(f"property 0x{kind:02X} twice", reason_code=_PROTOCOL_ERROR)
        else:
            values[kind] = value
    return values, tuple(pairs), end


def encode_properties(properties: Properties) -> bytes:
    """Encode what a PUBLISH says about itself, with its length in front.

    Raises:
        InvalidText: A text that MQTT forbids.
        InvalidTopic: A response topic with a wildcard.
        TooLarge: A field above 65,535 bytes.
    """
    parts: list[bytes] = []
    if properties.message_expiry_s is not None:
        expiry_s = min(max(properties.message_expiry_s, 0), 0xFFFF_FFFF)
        parts.append(b"\x02" + expiry_s.to_bytes(4, "big"))
    if properties.content_type is not None:
        parts.append(b"\x03" + encode_string(properties.content_type))
    if properties.response_topic is not None:
        if "+" in properties.response_topic or "#" in properties.response_topic:
            raise InvalidTopic(f"response topic {properties.response_topic[:80]!r} has a wildcard")
        parts.append(b"\x08" + encode_string(properties.response_topic))
    if properties.correlation_data is not None:
        parts.append(b"\x09" + encode_binary(properties.correlation_data))
    for name, value in properties.user_properties:
        parts.append(b"\x26" + encode_string(name) + encode_string(value))
    block = b"".join(parts)
    return encode_varint(len(block)) + block
