"""The load generator in Python, for machines without a C compiler: load.c says what it does.

    python -m bench.load PORT QOS EPOCH ANSWERS FILE MODE NUMBER COUNT LIMIT_MS DRAIN_MS

Costs several times as much per message as load.c; the benchmark says how much of the system's cost.
"""

from __future__ import annotations

import json
import re
import select
import socket
import struct
import sys
import time
from pathlib import Path

CONNACK, PUBLISH, PUBACK, SUBACK = 2, 3, 4, 9
TOLERANCE = 2e-3
READ_BYTES = 65_536
PER_EPOCH = 1_000_000
_ID = re.compile(rb'"id": ?"(\d+)"')
_VERSION = re.compile(rb'"model_version": ?"(.)')
_DATA = re.compile(rb'"data": ?(\[[^\]]*\])')


def remaining_length(size: int) -> bytes:
    """The variable byte integer of an MQTT fixed header (MQTT 3.1.1, 2.2.3)."""
    out = bytearray()
    while True:
        size, digit = divmod(size, 128)
        out.append(digit | (128 if size else 0))
        if not size:
            return bytes(out)


def connect_packet(client_id: str) -> bytes:
    """CONNECT of MQTT 3.1.1 with a clean session and no keep-alive."""
    body = b"\0\4MQTT\4\2\0\0" + _text(client_id)
    return b"\x10" + remaining_length(len(body)) + body


def subscribe_packet(topic: str, qos: int) -> bytes:
    body = b"\0\1" + _text(topic) + bytes([qos])
    return b"\x82" + remaining_length(len(body)) + body


def publish_packet(
    topic: str, payload: bytes, *, qos: int = 0, packet_id: int = 1, retain: bool = False
) -> bytes:
    body = _text(topic) + (struct.pack(">H", packet_id) if qos else b"") + payload
    return bytes([PUBLISH << 4 | qos << 1 | retain]) + remaining_length(len(body)) + body


def publish_once(port: int, topic: str, payload: bytes, *, retain: bool = False) -> None:
    """Publish one message at QoS 1 on a connection of its own; returns when the broker has it."""
    with socket.create_connection(("127.0.0.1", port), 5) as channel:
        channel.sendall(connect_packet("bench-order"))
        channel.sendall(publish_packet(topic, payload, qos=1, retain=retain))
        received = b""
        while len(received) < 8:  # CONNACK and PUBACK
            piece = channel.recv(64)
            if not piece:
                raise ConnectionError("the broker closed the connection")
            received += piece


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">H", len(encoded)) + encoded


class Message:
    """One kind of message: what is sent, and the floats that must come back."""

    def __init__(self, topic: str, payload: bytes, id_at: int, wanted: tuple[float, ...]) -> None:
        self.topic, self.payload, self.id_at, self.wanted = topic, payload, id_at, wanted

    def fits(self, got: tuple[float, ...]) -> bool:
        return len(got) == len(self.wanted) and all(
            abs(value - wanted) <= TOLERANCE for value, wanted in zip(got, self.wanted, strict=True)
        )


def read_messages(path: Path) -> list[Message]:
    """Read a file that `bench.prepare` has written; load.c has its layout."""
    data = path.read_bytes()
    (count,) = struct.unpack_from("<I", data)
    at, messages = 4, []
    for _ in range(count):
        topic_size, size, id_at, floats = struct.unpack_from("<IIiI", data, at)
        at += 16
        topic = data[at : at + topic_size].decode()
        payload = data[at + topic_size : at + topic_size + size]
        at += topic_size + size
        messages.append(Message(topic, payload, id_at, struct.unpack_from(f"<{floats}f", data, at)))
        at += 4 * floats
    return messages


class Load:
    """One run."""

    def __init__(self, messages: list[Message], qos: int, epoch: int, count: int) -> None:
        self.messages, self.qos, self.count = messages, qos, count
        self.first_id = epoch * PER_EPOCH
        self.sent_at: list[float] = []
        self.arrived_at: list[float | None] = []
        self.versions: list[str] = []
        self.answered = self.oldest = self.duplicates = self.split = 0
        self.stray = self.wrong = self.disordered = 0
        self.highest = -1
        self.subscribed = False
        self.started = self.cpu_before = 0.0
        self._in = bytearray()
        self._out: list[bytes] = []

    def connect(self, port: int, answers: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(connect_packet("load") + subscribe_packet(answers, self.qos))
        until = time.monotonic() + 5
        while not self.subscribed:
            self.receive(until)
            if time.monotonic() > until:
                raise ConnectionError("the broker did not answer")
        self.started, self.cpu_before = time.monotonic(), time.process_time()

    def window(self, in_flight: int, limit_s: float, drain_s: float) -> None:
        """Keep messages in flight until `count` are sent or `limit_s` is over."""
        quiet_since = time.monotonic()
        now = 0.0
        while self.answered < (self.count if now < limit_s else self.sent):
            while self.sent < self.count and self.sent - self.answered < in_flight:
                if now >= limit_s:
                    break
                self.send(now)
            self.flush()
            before = self.answered
            self.receive(quiet_since + drain_s)
            if self.answered > before:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > drain_s:
                break
            now = time.monotonic() - self.started
        self.flush()

    def schedule(self, per_s: float, limit_s: float, drain_s: float, *, first_only: bool) -> None:
        """Send at fixed times, until something is answered or for as long as in `window`."""
        now, last_due = 0.0, min(self.count / per_s, limit_s)
        while self.answered < self.count and not (first_only and self.answered):
            while self.sent < self.count and self.sent / per_s <= min(now, last_due):
                self.send(self.sent / per_s)
            self.flush()
            more = self.sent < self.count and self.sent / per_s <= last_due
            if (not more and self.answered == self.sent) or now > last_due + drain_s:
                break
            self.receive(self.started + (self.sent / per_s if more else last_due + drain_s + 0.001))
            now = time.monotonic() - self.started
        self.flush()

    @property
    def sent(self) -> int:
        return len(self.sent_at)

    def send(self, at: float) -> None:
        number = len(self.sent_at)
        message = self.messages[number % len(self.messages)]
        payload = message.payload
        if message.id_at >= 0:
            digits = b"%08d" % (self.first_id + number)
            payload = payload[: message.id_at] + digits + payload[message.id_at + 8 :]
        packet_id = number % 65_535 + 1
        self._out.append(publish_packet(message.topic, payload, qos=self.qos, packet_id=packet_id))
        self.sent_at.append(at)
        self.arrived_at.append(None)
        self.versions.append("-")

    def flush(self) -> None:
        if self._out:
            self.socket.sendall(b"".join(self._out))
            self._out.clear()

    def receive(self, until: float) -> None:
        """Wait for something to read and take it."""
        if not select.select([self.socket], [], [], max(0.0, until - time.monotonic()))[0]:
            return
        piece = self.socket.recv(READ_BYTES)
        if not piece:
            raise ConnectionError("the broker closed the connection")
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self._in += piece
        self._parse()

    def _parse(self) -> None:
        data, at = self._in, 0
        now = time.monotonic() - self.started
        while len(data) - at >= 2:
            length, shift, body = 0, 0, at + 1
            while body < len(data):
                digit = data[body]
                length |= (digit & 127) << shift
                shift, body = shift + 7, body + 1
                if digit < 128:
                    break
            else:
                break
            if body + length > len(data):
                break
            kind = data[at] >> 4
            if kind == PUBLISH:
                self._published(data[at], bytes(data[body : body + length]), now)
            elif kind == SUBACK:
                self.subscribed = True
            elif kind == CONNACK and data[body + 1]:
                raise ConnectionError("the broker refused the connection")
            at = body + length
        del data[:at]

    def _published(self, header: int, body: bytes, now: float) -> None:
        at = 2 + int.from_bytes(body[:2], "big")
        if header & 6:
            self._out.append(bytes([PUBACK << 4, 2]) + body[at : at + 2])
            at += 2
        take = self._with_id if self.messages[0].id_at >= 0 else self._without_id
        take(body[at:], now)

    def _with_id(self, payload: bytes, now: float) -> None:
        found, version = _ID.search(payload), _VERSION.search(payload)
        number = int(found[1]) - self.first_id if found else -1
        if not 0 <= number < len(self.sent_at):
            self.stray += 1
            return
        data = _DATA.search(payload)
        got = tuple(json.loads(data[1])) if data else ()
        if not self.messages[number % len(self.messages)].fits(got):
            self.wrong += 1
        self._count(number, now, version[1].decode() if version else "?")

    def _without_id(self, payload: bytes, now: float) -> None:
        got = struct.unpack(f"<{len(payload) // 4}f", payload[: len(payload) // 4 * 4])
        for number in range(self.oldest, len(self.sent_at)):
            message = self.messages[number % len(self.messages)]
            if self.arrived_at[number] is None and message.fits(got):
                self._count(number, now, "?")
                return
        self.wrong += 1

    def _count(self, number: int, now: float, version: str) -> None:
        if self.arrived_at[number] is not None:
            self.duplicates += 1
            self.split += self.versions[number] != version
            return
        self.arrived_at[number] = now
        self.versions[number] = version
        self.answered += 1
        self.disordered += number < self.highest
        self.highest = max(self.highest, number)
        while self.oldest < len(self.sent_at) and self.arrived_at[self.oldest] is not None:
            self.oldest += 1

    def report(self, *, with_times: bool) -> dict[str, object]:
        pairs = zip(self.arrived_at, self.sent_at, strict=True)
        result: dict[str, object] = {
            "sent": self.sent,
            "answered": self.answered,
            "duplicates": self.duplicates,
            "split": self.split,
            "stray": self.stray,
            "wrong": self.wrong,
            "disordered": self.disordered,
            "started_s": self.started,
            "wall_s": time.monotonic() - self.started,
            "cpu_s": time.process_time() - self.cpu_before,
            "latency_us": [None if a is None else round((a - s) * 1e6, 1) for a, s in pairs],
        }
        if with_times:
            result["sent_us"] = [at * 1e6 for at in self.sent_at]
            result["versions"] = "".join(self.versions)
        return result


def main(words: list[str]) -> None:
    """Run one load and print what came back."""
    port, qos, epoch, answers, file, mode, number, count, limit_ms, drain_ms = words
    load = Load(read_messages(Path(file)), int(qos), int(epoch), int(count))
    load.connect(int(port), answers)
    limit_s, drain_s = int(limit_ms) / 1e3, int(drain_ms) / 1e3
    if mode == "window":
        load.window(int(number), limit_s, drain_s)
    else:
        load.schedule(float(number), limit_s, drain_s, first_only=mode == "first")
    print(json.dumps(load.report(with_times=mode != "window")))


if __name__ == "__main__":
    main(sys.argv[1:])
