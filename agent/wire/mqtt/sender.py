"""What goes out on one connection after another: bytes to write, and who is told of their fate."""

from __future__ import annotations

from typing import Any, Final

from agent.errors import QueueFull, UsageError
from agent.wire.mqtt.errors import TooLarge
from agent.wire.mqtt.events import Event, Published
from agent.wire.mqtt.options import QOS_2, ConnectOptions, Granted
from agent.wire.mqtt.outbox import Outbox, Outgoing
from agent.wire.mqtt.packets import MAX_PACKET_SIZE, PubAck, encode_publish_head, encode_topic_name
from agent.wire.mqtt.properties import Properties, encode_properties, encode_varint
from agent.wire.mqtt.reasons import sentence

_TOPICS_KEPT: Final = 1024
_TOPIC_KEPT_BYTES: Final = 256
_NO_PROPERTIES: Final = b"\0"
_FIXED_HEADER_AT_MOST: Final = 5
_PACKET_ID: Final = 2
# So many messages go out before the first is acknowledged, one more for each that is. Were all
# sent at once, a connection that always dies young would never bring an acknowledgement back.
_FIRST_WINDOW: Final = 16


class Sender:
    """Encodes and queues, within what the broker grants.

    Args:
        options: Bounds of the queues.
        events: Gets a `Published` for each token.
    """

    def __init__(self, options: ConnectOptions, events: list[Event]) -> None:
        self._options = options
        self._events = events
        self._out: list[bytes] = []
        self.bytes = 0
        self._handed: list[tuple[Any, str]] = []  # QoS 0 tokens whose bytes are still in _out
        self._topics: dict[str, bytes] = {}
        self.outbox = Outbox(options)
        self.requests: dict[int, Any] = {}  # SUBSCRIBE and UNSUBSCRIBE, by packet identifier
        self._connected = False
        self._has_properties = True
        self._window = self._largest_window = options.max_inflight
        self._max_size = MAX_PACKET_SIZE
        self._max_qos = 1
        self._retain_available = True

    def connected(self, granted: Granted, *, session_present: bool) -> None:
        """A connection stands: what waits goes out, in order, as far as the broker grants."""
        self._connected = True
        self._has_properties = granted.version == 5
        self._largest_window = min(granted.receive_maximum, self._options.max_inflight)
        self._window = min(_FIRST_WINDOW, self._largest_window)
        self._max_size = granted.max_packet_size
        self._max_qos = granted.max_qos
        self._retain_available = granted.retain_available
        if not session_present:
            self.outbox.restart()
        self.pump()

    def ended(self) -> None:
        """No more is sent on this connection but what waits in the buffer."""
        self._connected = False

    def lost(self) -> None:
        """The transport is gone, and with it what was not taken from here."""
        self._connected = False
        self._out.clear()
        self.bytes = 0
        for token, _ in self._handed:
            self._report(token, False, "the connection ended before it was sent")
        self._handed.clear()
        self.requests.clear()
        self.outbox.interrupt()

    def take(self) -> bytes:
        """Everything to write, in one piece; at QoS 0 it counts as published."""
        data = b"".join(self._out)
        self._out.clear()
        self.bytes = 0
        if self._handed:
            self._events += [Published(token, True, change) for token, change in self._handed]
            self._handed.clear()
        return data

    def send(self, piece: bytes) -> None:
        """Queue an encoded packet."""
        self._out.append(piece)
        self.bytes += len(piece)

    def new_request(self, request: object) -> int:
        """Give a SUBSCRIBE or UNSUBSCRIBE a packet identifier."""
        packet_id = self.outbox.new_id(self.requests)
        self.requests[packet_id] = request
        return packet_id

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,
        properties: Properties | None,
        token: Any,
    ) -> None:
        """Publish now, or at QoS 1 when there is room; errors as in `Session.publish`."""
        field = self._topics.get(topic) or self._new_topic(topic)
        block = _NO_PROPERTIES if properties is None else encode_properties(properties)
        size = len(field) + len(block) + len(payload)
        if size + _PACKET_ID + _FIXED_HEADER_AT_MOST > self._max_size:
            self._check_size(field, size + _PACKET_ID * qos)
        if qos == 1:
            self._at_least_once(Outgoing(field, payload, retain, block, token, size))
        elif qos == 0:
            self._at_most_once(field, payload, retain, block, token)
        else:
            raise UsageError(f"publishing to {topic!r}: {QOS_2}")

    def pump(self) -> None:
        """Send what waits as far as the broker's receive maximum allows."""
        outbox = self.outbox
        while outbox.waiting and len(outbox.inflight) < self._window:
            self._send_late(outbox.waiting.popleft())

    def acknowledged(self, packet: PubAck) -> None:
        """The broker answered for a QoS 1 message; an unknown one is of an older session."""
        item = self.outbox.done(packet.packet_id)
        if item is None:
            return
        if self._window < self._largest_window:
            self._window += 1
        if packet.reason_code < 0x80:
            if item.token is not None:
                change = "" if self._max_qos and not item.retain else self._change(1, item.retain)
                self._events.append(Published(item.token, True, change))
        else:
            why = sentence(packet.reason_code, packet.reason)
            self._events.append(Published(item.token, False, f"the broker refused it: {why}"))
        if self.outbox.waiting:
            self.pump()

    def abandon(self, why: str) -> None:
        """Give up everything that the broker has not acknowledged."""
        for item in self.outbox.clear():
            self._report(item.token, False, why)

    def _at_most_once(
        self, field: bytes, payload: bytes, retain: bool, block: bytes, token: Any
    ) -> None:
        if not self._connected:
            self._report(token, False, "there is no connection, and QoS 0 does not wait for one")
            return
        self._check_room(payload)
        self._write(0x30, field, payload, 0, retain, block)
        if token is not None:
            change = "" if self._retain_available or not retain else self._change(0, retain)
            self._handed.append((token, change))

    def _at_least_once(self, item: Outgoing) -> None:
        outbox = self.outbox
        if not self._connected or outbox.waiting or len(outbox.inflight) >= self._window:
            outbox.wait(item)
        elif self._max_qos == 0:
            self._check_room(item.payload)
            self._downgrade(item)
        else:
            outbox.take(item.size)
            item.packet_id = packet_id = outbox.new_id(self.requests)
            outbox.inflight[packet_id] = item
            self._write(0x32, item.field, item.payload, packet_id, item.retain, item.block)

    def _send_late(self, item: Outgoing) -> None:
        """Send what was queued, perhaps before this broker stated its limits."""
        outbox = self.outbox
        try:
            self._check_size(item.field, item.size + _PACKET_ID)
        except TooLarge as error:
            outbox.bytes -= item.size
            self._events.append(Published(item.token, False, str(error)))
            return
        if self._max_qos == 0:
            outbox.bytes -= item.size
            self._downgrade(item)
            return
        first = 0x32
        if item.packet_id:
            first |= 0x08  # DUP: an earlier connection may have carried it
            outbox.resend(item)
        else:
            item.packet_id = outbox.new_id(self.requests)
            outbox.inflight[item.packet_id] = item
        self._write(first, item.field, item.payload, item.packet_id, item.retain, item.block)

    def _downgrade(self, item: Outgoing) -> None:
        self._write(0x30, item.field, item.payload, 0, item.retain, item.block)
        if item.token is not None:
            self._handed.append((item.token, self._change(1, item.retain)))

    def _write(
        self, first: int, field: bytes, payload: bytes, packet_id: int, retain: bool, block: bytes
    ) -> None:
        if retain and self._retain_available:
            first |= 0x01
        if not self._has_properties:
            block = b""
        head = encode_publish_head(first, field, packet_id, block, len(payload))
        self._out += (head, payload)
        self.bytes += len(head) + len(payload)

    def _new_topic(self, topic: str) -> bytes:
        field = encode_topic_name(topic, self._options.max_topic_bytes)
        if len(field) <= _TOPIC_KEPT_BYTES:
            if len(self._topics) >= _TOPICS_KEPT:
                self._topics.clear()
            self._topics[topic] = field
        return field

    def _check_size(self, field: bytes, size: int) -> None:
        whole = 1 + len(encode_varint(size)) + size
        if whole > self._max_size:
            topic = field[2:82].decode(errors="ignore")
            raise TooLarge(
                f"a message of {whole} bytes to {topic!r}: the broker takes {self._max_size}",
                hint="send less, or raise the broker's limit",
            )

    def _check_room(self, payload: bytes) -> None:
        if self.bytes + len(payload) > self._options.max_queued_bytes:
            raise QueueFull(f"{self.bytes} bytes wait for the network")

    def _change(self, qos: int, retain: bool) -> str:
        """Say in what the broker's limits change a message."""
        changes = []
        if qos > self._max_qos:
            changes.append("sent at QoS 0: the broker takes no higher")
        if retain and not self._retain_available:
            changes.append("sent without retain: the broker keeps none")
        return "; ".join(changes)

    def _report(self, token: Any, ok: bool, why: str) -> None:
        if token is not None:
            self._events.append(Published(token, ok, why))
