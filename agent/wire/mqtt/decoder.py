"""Bytes from a broker, cut anywhere, to packets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from agent.wire.mqtt import properties as p
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

# data, where the body starts, where it ends, whether there are properties
_Reader = Callable[[bytes, int, int, bool], Packet]

_PROTOCOL_ERROR: Final = 0x82
_PACKET_TOO_LARGE: Final = 0x95
_ALIAS_INVALID: Final = 0x94
# A device sees few topics, again and again: decoding and checking one once is enough.
_TOPICS_KEPT: Final = 1024
_TOPIC_KEPT_BYTES: Final = 256


class Decoder:
    """Takes what one connection receives and yields its packets; a new connection needs a new one.

    Holds at most one incomplete packet of `max_packet_size` bytes, whose parts are joined once.

    Args:
        version: 4 (MQTT 3.1.1) or 5.
        max_packet_size: Bytes of a whole packet, at least 128. The payload of a longer PUBLISH is
            skipped, any other longer packet is malformed.
    """

    def __init__(self, version: Version, max_packet_size: int) -> None:
        if max_packet_size < 128:
            raise ValueError("max_packet_size must be at least 128 bytes")
        self._has_properties = version == 5
        self._limit = max_packet_size
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._need = 0
        self._skip = 0
        self._topics: dict[bytes, str] = {}

    def feed(self, data: bytes, packets: list[Packet]) -> None:
        """Decode what is complete now and keep the rest.

        Args:
            data: The next bytes.
            packets: Gets each packet appended; those before a malformed one are in it.

        Raises:
            MalformedPacket: The connection must be closed; `reason_code` says why.
        """
        if self._held or self._skip:
            data = self._resume(data)
        end = len(data)
        pos = 0
        while end - pos > 1:
            first = data[pos]
            size = data[pos + 1]
            body = pos + 2
            if size > 0x7F:
                if end - pos > 2 and 0 < data[pos + 2] <= 0x7F:
                    size += (data[pos + 2] << 7) - 0x80
                    body += 1
                else:
                    size, body = _length(data, pos + 1, end)
                    if size < 0:
                        break
                if body - pos + size > self._limit:
                    pos = self._pass_over(data, pos, body, body + size, packets)
                    if pos < 0:
                        return
                    continue
            stop = body + size
            if stop > end:
                if first & 0xF0 != 0x30:
                    self._reader(first)  # what is no MQTT at all is not waited for
                self._hold(data, pos, stop - pos)
                return
            if first & 0xF0 == 0x30:
                packets.append(self._publish(data, first, body, stop))
            elif first == 0x40 and size == 2:
                packets.append(PubAck(_packet_id(data, body, stop)))
            else:
                packets.append(self._other(data, first, body, stop))
            pos = stop
        if pos < end:
            self._hold(data, pos, end - pos + 1)

    def _resume(self, data: bytes) -> bytes:
        """Put new bytes behind those held; nothing comes back before there is enough to go on."""
        if self._skip:
            passed = min(self._skip, len(data))
            self._skip -= passed
            return data[passed:]
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes < self._need:
            return b""
        whole = b"".join(self._held)
        self._held.clear()
        return whole

    def _hold(self, data: bytes, pos: int, need: int) -> None:
        self._held.append(data[pos:])
        self._held_bytes = len(data) - pos
        self._need = need

    def _pass_over(self, data: bytes, pos: int, body: int, stop: int, packets: list[Packet]) -> int:
        """Skip a packet that is too large, keeping what is needed to acknowledge it.

        Returns:
            Where the next packet starts, or -1 when `data` is used up.
        """
        first = data[pos]
        if first & 0xF0 != 0x30:
            raise MalformedPacket(
                f"a packet of {stop - pos} bytes, our limit is {self._limit}",
                reason_code=_PACKET_TOO_LARGE,
            )
        head = body + 2
        if head <= len(data):
            head += (data[body] << 8 | data[body + 1]) + (2 if first & 0x06 else 0)
        if head > len(data):
            self._hold(data, pos, head - pos)
            return -1
        without = data[body:head] + b"\0"  # a PUBLISH with no properties and next to no payload
        message = self._publish(without, first, 0, len(without))
        packets.append(Oversized(message.topic, stop - pos, message.qos, message.packet_id))
        if stop > len(data):
            self._skip = stop - len(data)
            return -1
        return stop

    def _publish(self, data: bytes, first: int, body: int, stop: int) -> Message:
        at = body + 2
        if at < stop:
            at += data[body] << 8 | data[body + 1]
        if at > stop:
            raise MalformedPacket("a PUBLISH is cut short")
        raw = data[body + 2 : at]
        topic = self._topics.get(raw) or self._new_topic(raw)
        packet_id = 0
        if first & 0x0E:
            packet_id = _publish_id(data, first, at, stop)
            at += 2
        if self._has_properties:
            if at >= stop:
                raise MalformedPacket("a PUBLISH is cut short")
            if data[at]:
                return _with_properties(data, first, topic, packet_id, at, stop)
            at += 1
        if first == 0x30:
            return Message(topic, data[at:stop])
        qos = 1 if packet_id else 0
        return Message(topic, data[at:stop], qos, first & 1 == 1, first & 8 == 8, packet_id)

    def _new_topic(self, raw: bytes) -> str:
        try:
            topic = raw.decode()
        except UnicodeDecodeError:
            raise MalformedPacket("a topic is not valid UTF-8") from None
        if not topic or "\0" in topic or "+" in topic or "#" in topic:
            raise MalformedPacket("a PUBLISH has a topic that names nothing", reason_code=0x90)
        if len(raw) <= _TOPIC_KEPT_BYTES:
            if len(self._topics) >= _TOPICS_KEPT:
                self._topics.clear()
            self._topics[raw] = topic
        return topic

    def _other(self, data: bytes, first: int, body: int, stop: int) -> Packet:
        return self._reader(first)(data, body, stop, self._has_properties)

    def _reader(self, first: int) -> _Reader:
        read = _READERS.get(first)
        if read is None or (first in _ONLY_5 and not self._has_properties):
            raise MalformedPacket(
                f"a packet that starts with 0x{first:02X} has no place here",
                reason_code=_PROTOCOL_ERROR,
            )
        return read


def _length(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read a remaining length of two bytes or more; -1 when it is not all there yet."""
    if end - pos < 4 and all(octet > 0x7F for octet in data[pos:end]):
        return -1, pos
    return p.decode_varint(data, pos, end)


def _publish_id(data: bytes, first: int, pos: int, stop: int) -> int:
    if first & 0x04:
        raise MalformedPacket(
            "a PUBLISH at QoS 2, which was not asked for",
            reason_code=_PROTOCOL_ERROR,
            hint="the broker may hold an old session of this client id: clear it there",
        )
    if not first & 0x02:
        raise MalformedPacket("a PUBLISH at QoS 0 is marked DUP")
    return _packet_id(data, pos, stop)


def _packet_id(data: bytes, pos: int, stop: int) -> int:
    if pos + 2 > stop:
        raise MalformedPacket("a packet is cut short")
    packet_id = data[pos] << 8 | data[pos + 1]
    if packet_id == 0:
        raise MalformedPacket("a packet identifier is 0", reason_code=_PROTOCOL_ERROR)
    return packet_id


def _with_properties(
    data: bytes, first: int, topic: str, packet_id: int, at: int, stop: int
) -> Message:
    values, pairs, at = p.decode_properties(data, at, stop, p.PUBLISH)
    if p.TOPIC_ALIAS in values:
        raise MalformedPacket("a topic alias, though none was offered", reason_code=_ALIAS_INVALID)
    return Message(
        topic,
        data[at:stop],
        1 if packet_id else 0,
        first & 1 == 1,
        first & 8 == 8,
        packet_id,
        values.get(p.RESPONSE_TOPIC),
        values.get(p.CORRELATION_DATA),
        values.get(p.CONTENT_TYPE),
        pairs,
        values.get(p.MESSAGE_EXPIRY),
    )


def _connack(data: bytes, body: int, stop: int, has_properties: bool) -> ConnAck:
    if stop - body < 2 or data[body] > 1:
        raise MalformedPacket("a CONNACK that is not one")
    flags, code = data[body], data[body + 1]
    # A broker without MQTT 5 refuses it in the form of 3.1.1, which ends here.
    if stop - body == 2 and (code or not has_properties):
        return ConnAck(flags == 1, code)
    if not has_properties:
        raise MalformedPacket("a CONNACK with more than 3.1.1 allows")
    values, _, end = p.decode_properties(data, body + 2, stop, p.CONNACK)
    _ends(end, stop)
    return ConnAck(
        session_present=flags == 1,
        reason_code=code,
        reason=values.get(p.REASON_STRING, ""),
        session_expiry_s=values.get(p.SESSION_EXPIRY),
        receive_maximum=values.get(p.RECEIVE_MAXIMUM),
        max_qos=values.get(p.MAXIMUM_QOS),
        retain_available=_maybe(values.get(p.RETAIN_AVAILABLE)),
        max_packet_size=values.get(p.MAXIMUM_PACKET_SIZE),
        assigned_client_id=values.get(p.ASSIGNED_CLIENT_ID),
        topic_alias_maximum=values.get(p.TOPIC_ALIAS_MAXIMUM),
        wildcard_available=_maybe(values.get(p.WILDCARD_AVAILABLE)),
        keep_alive_s=values.get(p.SERVER_KEEP_ALIVE),
        server_reference=values.get(p.SERVER_REFERENCE),
    )


def _maybe(value: int | None) -> bool | None:
    return None if value is None else value == 1


def _puback(data: bytes, body: int, stop: int, has_properties: bool) -> PubAck:
    packet_id = _packet_id(data, body, stop)
    if not has_properties:
        _ends(body + 2, stop)
        return PubAck(packet_id)
    if stop - body == 3:
        return PubAck(packet_id, data[body + 2])
    values, _, end = p.decode_properties(data, body + 3, stop, p.ACK)
    _ends(end, stop)
    return PubAck(packet_id, data[body + 2], values.get(p.REASON_STRING, ""))


def _suback(data: bytes, body: int, stop: int, has_properties: bool) -> SubAck:
    packet_id, reason, at = _ack_head(data, body, stop, has_properties)
    if at >= stop:
        raise MalformedPacket("a SUBACK without a result")
    return SubAck(packet_id, data[at:stop], reason)


def _unsuback(data: bytes, body: int, stop: int, has_properties: bool) -> UnsubAck:
    packet_id, reason, at = _ack_head(data, body, stop, has_properties)
    if (at < stop) != has_properties:
        raise MalformedPacket("an UNSUBACK with results in the wrong version")
    return UnsubAck(packet_id, data[at:stop], reason)


def _ack_head(data: bytes, body: int, stop: int, has_properties: bool) -> tuple[int, str, int]:
    packet_id = _packet_id(data, body, stop)
    if not has_properties:
        return packet_id, "", body + 2
    values, _, at = p.decode_properties(data, body + 2, stop, p.ACK)
    return packet_id, values.get(p.REASON_STRING, ""), at


def _pingresp(data: bytes, body: int, stop: int, has_properties: bool) -> PingResp:
    _ends(body, stop)
    return PingResp()


def _disconnect(data: bytes, body: int, stop: int, has_properties: bool) -> Disconnect:
    if stop == body:
        return Disconnect()
    if stop - body == 1:
        return Disconnect(data[body])
    values, _, end = p.decode_properties(data, body + 1, stop, p.DISCONNECT)
    _ends(end, stop)
    return Disconnect(data[body], values.get(p.REASON_STRING, ""), values.get(p.SERVER_REFERENCE))


def _ends(at: int, stop: int) -> None:
    if at != stop:
        raise MalformedPacket("a packet that is longer than what it holds")


# By the whole first byte: the flags of all of these are fixed (2.1.3).
_READERS: Mapping[int, _Reader] = {
    0x20: _connack,
    0x40: _puback,
    0x90: _suback,
    0xB0: _unsuback,
    0xD0: _pingresp,
    0xE0: _disconnect,
}
_ONLY_5: Final = frozenset({0xE0})
