"""The broker's half of MQTT, written apart from the agent's codec so that each checks the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def varint(value: int) -> bytes:
    octets = b""
    while True:
        value, low = divmod(value, 128)
        octets += bytes([low | (0x80 if value else 0)])
        if not value:
            return octets


def text(value: str) -> bytes:
    raw = value.encode()
    return len(raw).to_bytes(2, "big") + raw


def binary(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + varint(len(body)) + body


def properties(version: int, block: bytes) -> bytes:
    return varint(len(block)) + block if version == 5 else b""


def connack(version: int, present: bool = False, code: int = 0, block: bytes = b"") -> bytes:
    return packet(0x20, bytes([present, code]) + properties(version, block))


def publish(
    version: int,
    topic: str,
    payload: bytes,
    *,
    qos: int = 0,
    retain: bool = False,
    dup: bool = False,
    packet_id: int = 0,
    block: bytes = b"",
) -> bytes:
    number = packet_id.to_bytes(2, "big") if qos else b""
    first = 0x30 | (8 if dup else 0) | qos * 2 | retain
    return packet(first, text(topic) + number + properties(version, block) + payload)


def puback(packet_id: int, code: int = 0, block: bytes | None = None) -> bytes:
    body = packet_id.to_bytes(2, "big")
    if code or block is not None:
        body += bytes([code])
    if block is not None:
        body += properties(5, block)
    return packet(0x40, body)


def suback(version: int, packet_id: int, codes: bytes, block: bytes = b"") -> bytes:
    return packet(0x90, packet_id.to_bytes(2, "big") + properties(version, block) + codes)


def unsuback(version: int, packet_id: int, codes: bytes, block: bytes = b"") -> bytes:
    body = packet_id.to_bytes(2, "big")
    return packet(0xB0, body + (properties(5, block) + codes if version == 5 else b""))


PINGRESP = b"\xd0\x00"


def disconnect(code: int = 0, block: bytes | None = None) -> bytes:
    if block is not None:
        return packet(0xE0, bytes([code]) + properties(5, block))
    return packet(0xE0, bytes([code]) if code else b"")


@dataclass
class Sent:
    """One packet that a client sent."""

    kind: int
    flags: int
    body: bytes
    fields: dict[str, Any] = field(default_factory=dict)


class Reader:
    """Cuts what a client sends into packets and reads them."""

    def __init__(self) -> None:
        self.version = 5
        self._rest = b""

    def read(self, data: bytes) -> list[Sent]:
        self._rest += data
        packets = []
        while (cut := self._cut()) is not None:
            packets.append(cut)
        return packets

    def _cut(self) -> Sent | None:
        data = self._rest
        size = shift = 0
        for at in range(1, len(data)):
            size |= (data[at] & 0x7F) << shift
            shift += 7
            if data[at] < 0x80:
                break
        else:
            return None
        if len(data) < at + 1 + size:
            return None
        self._rest = data[at + 1 + size :]
        sent = Sent(data[0] >> 4, data[0] & 15, data[at + 1 : at + 1 + size])
        getattr(self, f"_read_{sent.kind}", lambda sent: None)(sent)
        return sent

    def _string(self, body: bytes, at: int) -> tuple[bytes, int]:
        size = int.from_bytes(body[at : at + 2], "big")
        assert at + 2 + size <= len(body)
        return body[at + 2 : at + 2 + size], at + 2 + size

    def _block(self, body: bytes, at: int) -> tuple[bytes, int]:
        if self.version != 5:
            return b"", at
        size = shift = 0
        while True:
            octet = body[at]
            at += 1
            size |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                return body[at : at + size], at + size

    def _read_1(self, sent: Sent) -> None:
        body = sent.body
        assert body[:6] == b"\0\4MQTT"
        self.version, flags = body[6], body[7]
        assert not flags & 1
        sent.fields |= {
            "version": body[6],
            "clean": bool(flags & 2),
            "keep_alive": int.from_bytes(body[8:10], "big"),
        }
        sent.fields["block"], at = self._block(body, 10)
        sent.fields["client_id"], at = self._string(body, at)
        if flags & 4:
            _, at = self._block(body, at)
            topic, at = self._string(body, at)
            payload, at = self._string(body, at)
            sent.fields["will"] = (topic, payload, flags >> 3 & 3, bool(flags & 32))
        if flags & 0x80:
            sent.fields["username"], at = self._string(body, at)
        if flags & 0x40:
            sent.fields["password"], at = self._string(body, at)
        assert at == len(body)

    def _read_3(self, sent: Sent) -> None:
        topic, at = self._string(sent.body, 0)
        qos = sent.flags >> 1 & 3
        packet_id = 0
        if qos:
            packet_id = int.from_bytes(sent.body[at : at + 2], "big")
            assert packet_id
            at += 2
        block, at = self._block(sent.body, at)
        sent.fields |= {
            "topic": topic.decode(),
            "qos": qos,
            "dup": bool(sent.flags & 8),
            "retain": bool(sent.flags & 1),
            "packet_id": packet_id,
            "block": block,
            "payload": sent.body[at:],
        }

    def _read_4(self, sent: Sent) -> None:
        sent.fields["packet_id"] = int.from_bytes(sent.body[:2], "big")

    def _read_8(self, sent: Sent) -> None:
        assert sent.flags == 2
        sent.fields["packet_id"] = int.from_bytes(sent.body[:2], "big")
        _, at = self._block(sent.body, 2)
        filters = []
        while at < len(sent.body):
            topic, at = self._string(sent.body, at)
            filters.append((topic.decode(), sent.body[at]))
            at += 1
        assert filters
        sent.fields["filters"] = filters

    def _read_10(self, sent: Sent) -> None:
        assert sent.flags == 2
        sent.fields["packet_id"] = int.from_bytes(sent.body[:2], "big")
        _, at = self._block(sent.body, 2)
        filters = []
        while at < len(sent.body):
            topic, at = self._string(sent.body, at)
            filters.append(topic.decode())
        assert filters
        sent.fields["filters"] = filters

    def _read_14(self, sent: Sent) -> None:
        sent.fields["code"] = sent.body[0] if sent.body else 0
