"""One client's session with a broker over any number of connections, with no I/O and no clock.

The owner moves bytes and time: `opened` when a transport stands, `receive` for each read, `closed`
when it is gone, `tick` when `next_timer` is due. After any call it writes `take_outgoing`, and then
asks `take_events`.

    CLOSED --opened--> CONNECTING --CONNACK 0--> CONNECTED --our or the broker's end--> CLOSING
       ^                   |--CONNACK refuses, broken bytes, no answer in time--> CLOSING  |
       `------------------------- closed (the transport is gone) -------------------------'
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from agent.errors import ImpossibleEvent, UsageError
from agent.wire.mqtt.decoder import Decoder
from agent.wire.mqtt.errors import MalformedPacket, QueueFull, TooLarge
from agent.wire.mqtt.events import Connected, Disconnected, Event, Published, Refused, Subscribed
from agent.wire.mqtt.inbox import Arrival, Inbox
from agent.wire.mqtt.options import QOS_2, ConnectOptions, Granted
from agent.wire.mqtt.outbox import Outbox, Outgoing
from agent.wire.mqtt.packets import (
    MAX_PACKET_SIZE,
    PINGREQ,
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
    encode_connect,
    encode_disconnect,
    encode_puback,
    encode_publish_head,
    encode_subscribe,
    encode_topic_filter,
    encode_topic_name,
    encode_unsubscribe,
)
from agent.wire.mqtt.properties import Properties, encode_properties, encode_varint
from agent.wire.mqtt.reasons import FROM_3_1_1, UNSUPPORTED_VERSION, reason, sentence
from agent.wire.mqtt.subscriptions import FILTERS_AT_ONCE, Filters, Subscriptions, sendable


class State(enum.Enum):
    """Where the present connection stands."""

    CLOSED = "closed"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSING = "closing"


class Step(enum.Enum):
    """What moves a connection on."""

    OPENED = "opened"
    ACCEPTED = "accepted"
    ENDED = "ended"
    LOST = "lost"


NEXT: Mapping[tuple[State, Step], State] = {
    (State.CLOSED, Step.OPENED): State.CONNECTING,
    (State.CONNECTING, Step.ACCEPTED): State.CONNECTED,
    (State.CONNECTING, Step.ENDED): State.CLOSING,
    (State.CONNECTED, Step.ENDED): State.CLOSING,
    (State.CONNECTING, Step.LOST): State.CLOSED,
    (State.CONNECTED, Step.LOST): State.CLOSED,
    (State.CLOSING, Step.LOST): State.CLOSED,
}

_PROTOCOL_ERROR: Final = 0x82
_KEEP_ALIVE_TIMEOUT: Final = 0x8D
_RECEIVE_MAXIMUM_EXCEEDED: Final = 0x93
# MQTT 3.1.1 cannot tell the broker how many messages may wait for us, so it gets some grace.
_GRACE_3_1_1: Final = 16
# Before the keep alive is over, so that a slow network does not make it late.
_PING_AFTER: Final = 0.75
_TOPICS_KEPT: Final = 1024
_TOPIC_KEPT_BYTES: Final = 256
_NO_PROPERTIES: Final = b"\0"
_HEADER_AT_MOST: Final = 5


class Session:
    """The protocol of one client.

    Acknowledgements may be given in any order, though 4.6 asks for the order of arrival: one slow
    model must not hold back all others, and brokers match them by packet identifier.
    """

    def __init__(self, options: ConnectOptions) -> None:
        self._options = options
        self._state = State.CLOSED
        self._handlers: Mapping[type[Any], Callable[[Session, Any], None]] = {}
        self._version: Version = 5 if options.version == "auto" else options.version
        self._version_is_settled = options.version != "auto"
        self._was_connected = False
        self._accepted = False  # this connection got as far as CONNECTED
        self._client_id = options.client_id
        self._granted: Granted | None = None
        self._decoder = Decoder(self._version, options.max_packet_size)

        self._events: list[Event] = []
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._handed: list[tuple[Any, str]] = []  # QoS 0 tokens whose bytes are still in _out

        self._topics: dict[str, bytes] = {}
        self._outbox = Outbox(options)
        self._window = options.max_inflight
        self._max_size = MAX_PACKET_SIZE
        self._max_qos = 1
        self._retain_available = True
        self._inbox = Inbox()
        self._max_unacked = options.receive_maximum
        self._subscriptions = Subscriptions(options.max_topic_bytes)
        self._requests: dict[int, _Request] = {}

        self._opened_at = 0.0
        self._last_in = 0.0
        self._last_out = 0.0
        self._pinged_at: float | None = None
        self._keep_alive_s = float(options.keep_alive_s)

    # What holds now

    @property
    def state(self) -> State:
        """Where the present connection stands; in CLOSING the transport is to be closed."""
        return self._state

    @property
    def version(self) -> Version:
        """The version of this connection, or of the next attempt."""
        return self._version

    @property
    def granted(self) -> Granted | None:
        """What holds on the present or the last connection; None before the first."""
        return self._granted

    @property
    def outgoing_bytes(self) -> int:
        """Bytes that wait for `take_outgoing`."""
        return self._out_bytes

    @property
    def unfinished(self) -> int:
        """QoS 1 messages of ours that the broker has not acknowledged."""
        return len(self._outbox)

    # The transport and the time

    def opened(self, now: float, password: bytes | None = None) -> None:
        """A transport stands: queue CONNECT.

        Args:
            now: Monotonic seconds.
            password: In place of the one in the options, so that none need be kept.
        """
        self._move(Step.OPENED)
        options = self._options
        will = options.will
        clean = options.clean_start and not self._was_connected
        if self._version == 4:
            # 3.1.1 has one flag for both: forget what was, and keep nothing afterwards.
            clean = options.clean_start or options.session_expiry_s == 0
        self._decoder = Decoder(self._version, options.max_packet_size)
        self._opened_at = self._last_in = self._last_out = now
        self._pinged_at = None
        self._accepted = False
        self._send(
            encode_connect(
                self._version,
                self._client_id,
                keep_alive_s=options.keep_alive_s,
                clean=clean,
                session_expiry_s=options.session_expiry_s,
                receive_maximum=options.receive_maximum,
                max_packet_size=options.max_packet_size,
                username=options.username,
                password=options.password if password is None else password,
                will=(will.topic, will.payload, will.qos, will.retain) if will else None,
            )
        )

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take what was read and return what happened.

        Bytes that break MQTT end the connection; they raise nothing.
        """
        if self._state is State.CLOSED:
            raise ImpossibleEvent("bytes arrived on a closed connection")
        if self._state is State.CLOSING:
            return self.take_events()
        self._last_in = now
        packets: list[Packet] = []
        broken: MalformedPacket | None = None
        try:
            self._decoder.feed(data, packets)
        except MalformedPacket as error:
            broken = error
        for packet in packets:
            handler = self._handlers.get(type(packet))
            if handler is None:
                self._unexpected(packet)
                break
            handler(self, packet)
        if broken is not None:
            self._fail(f"the broker sent {broken}", broken.reason_code)
        return self.take_events()

    def closed(self, now: float, why: str = "the connection was lost") -> list[Event]:
        """The transport is gone, whoever closed it."""
        before = self._state
        self._move(Step.LOST)
        if self._accepted and not self._version_is_settled:
            self._version = 5
        if before is State.CONNECTING:
            again = self._fall_back(settled=False)
            self._events.append(Disconnected(why, try_again_now=again))
        elif before is State.CONNECTED:
            self._events.append(Disconnected(why))
        self._out.clear()
        self._out_bytes = 0
        self._events.extend(
            Published(token, False, "the connection ended before it was sent")
            for token, _ in self._handed
        )
        self._handed.clear()
        self._outbox.interrupt()
        self._inbox.interrupt()
        self._requests.clear()
        return self.take_events()

    def tick(self, now: float) -> list[Event]:
        """Do what is due: ping, or give a silent broker up."""
        due = self.next_timer()
        if due is None or now < due:
            return self.take_events()
        timeout_s = self._options.response_timeout_s
        if self._state is State.CONNECTING:
            self._end(Disconnected(f"the broker did not answer CONNECT within {timeout_s:g} s"))
        elif self._pinged_at is not None:
            silent = f"the broker did not answer a ping within {timeout_s:g} s"
            self._fail(silent, _KEEP_ALIVE_TIMEOUT)
        else:
            self._pinged_at = now
            self._send(PINGREQ)
        return self.take_events()

    def next_timer(self) -> float | None:
        """When `tick` is to be called next, in monotonic seconds."""
        timeout_s = self._options.response_timeout_s
        if self._state is State.CONNECTING:
            return self._opened_at + timeout_s
        if self._state is not State.CONNECTED or not self._keep_alive_s:
            return None
        if self._pinged_at is None:
            return min(self._last_in, self._last_out) + self._keep_alive_s * _PING_AFTER
        # On a slow network the answer may queue behind messages: any byte shows that it lives.
        last_sign = max(self._pinged_at, self._last_in)
        return min(last_sign + timeout_s, self._pinged_at + 2 * self._keep_alive_s + timeout_s)

    def alive(self, now: float) -> None:
        """The peer took bytes of ours: a slow broker is not a dead one."""
        self._last_in = now

    def take_outgoing(self, now: float) -> bytes:
        """Everything to write, in one piece; it counts as sent."""
        if not self._out:
            return b""
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        self._last_out = now
        if self._handed:
            self._events.extend(Published(token, True, why) for token, why in self._handed)
            self._handed.clear()
        return data

    def take_events(self) -> list[Event]:
        """What happened since the last call that returned events."""
        events = self._events
        if events:
            self._events = []
        return events

    def disconnect(self, reason_code: int = 0) -> list[Event]:
        """Leave in order: queue DISCONNECT, so that the broker drops the last will."""
        if self._state is State.CONNECTED:
            self._send(encode_disconnect(self._version, reason_code))
        self._end(Disconnected("closed by us", reason_code))
        return self.take_events()

    def abandon(self, why: str) -> list[Event]:
        """Give up every message of ours that the broker has not acknowledged."""
        for item in self._outbox.clear():
            self._report(item.token, False, why)
        return self.take_events()

    # Messages

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
        token: Any = None,
    ) -> None:
        """Publish a message, at QoS 1 also while there is no connection.

        Args:
            topic: A plain name.
            payload: Its bytes.
            qos: 0 or 1.
            retain: The broker keeps it.
            properties: Left out under MQTT 3.1.1.
            token: Comes back once in a `Published`; None: only a failure at QoS 1 is told.

        Raises:
            InvalidTopic: The topic is not a name.
            TopicTooLong: Above `max_topic_bytes`.
            InvalidText: A property MQTT cannot carry.
            TooLarge: Above what the broker takes.
            QueueFull: Too much waits already.
            UsageError: QoS 2.
        """
        field = self._topics.get(topic) or self._new_topic(topic)
        block = _NO_PROPERTIES if properties is None else encode_properties(properties)
        size = len(field) + len(block) + len(payload) + 2
        if size + _HEADER_AT_MOST > self._max_size:
            self._check_size(topic, size - (0 if qos else 2))
        if qos == 1:
            self._publish_at_least_once(Outgoing(field, payload, retain, block, token))
        elif qos == 0:
            self._publish_at_most_once(field, payload, retain, block, token)
        else:
            raise UsageError(f"publishing to {topic!r}: {QOS_2}")

    def ack(self, message: Message) -> None:
        """Acknowledge a QoS 1 message; too late, twice or at QoS 0 it does nothing."""
        if message.qos and self._inbox.ack(message) and self._state is State.CONNECTED:
            self._send(encode_puback(message.packet_id))

    def subscribe(self, filters: Iterable[tuple[str, int]]) -> None:
        """Subscribe to filters with their QoS now and whenever the broker has forgotten them.

        Raises:
            InvalidTopic: A filter that MQTT forbids.
            TopicTooLong: Above `max_topic_bytes`.
            UsageError: QoS 2.
        """
        asked = self._subscriptions.want(filters)
        if self._state is State.CONNECTED:
            self._subscribe(asked)

    def unsubscribe(self, filters: Iterable[str]) -> None:
        """Have filters forgotten, at the latest when there is a connection again.

        Raises:
            InvalidTopic: A filter that MQTT forbids.
        """
        left = self._subscriptions.leave(filters)
        if self._state is State.CONNECTED:
            self._unsubscribe(left)

    # Sending

    def _send(self, piece: bytes) -> None:
        self._out.append(piece)
        self._out_bytes += len(piece)

    def _new_topic(self, topic: str) -> bytes:
        field = encode_topic_name(topic, self._options.max_topic_bytes)
        if len(field) <= _TOPIC_KEPT_BYTES:
            if len(self._topics) >= _TOPICS_KEPT:
                self._topics.clear()
            self._topics[topic] = field
        return field

    def _check_size(self, topic: str, size: int) -> None:
        whole = 1 + len(encode_varint(size)) + size
        if whole > self._max_size:
            raise TooLarge(
                f"a message of {whole} bytes to {topic[:80]!r}: the broker takes {self._max_size}",
                hint="send less, or raise the broker's limit",
            )

    def _publish_at_most_once(
        self, field: bytes, payload: bytes, retain: bool, block: bytes, token: Any
    ) -> None:
        if self._state is not State.CONNECTED:
            self._report(token, False, "there is no connection, and QoS 0 does not wait for one")
            return
        if self._out_bytes + len(payload) > self._options.max_queued_bytes:
            raise QueueFull(f"{self._out_bytes} bytes wait for the network")
        self._write_publish(0, field, payload, 0, retain, block)
        if token is not None:
            self._handed.append((token, self._changed(0, retain)))

    def _publish_at_least_once(self, item: Outgoing) -> None:
        outbox = self._outbox
        at_once = (
            self._state is State.CONNECTED
            and not outbox.waiting
            and len(outbox.inflight) < self._window
        )
        outbox.add(item, at_once=at_once)
        if at_once:
            self._send_item(item)

    def _send_item(self, item: Outgoing) -> None:
        size = len(item.field) + len(item.block) + len(item.payload) + 2
        if size + _HEADER_AT_MOST > self._max_size:
            try:
                self._check_size(item.field[2:].decode(), size)
            except TooLarge as error:  # it was queued before this broker stated its limit
                self._outbox.forget(item)
                self._report(item.token, False, str(error))
                return
        if self._max_qos == 0:
            self._outbox.forget(item)
            self._write_publish(0, item.field, item.payload, 0, item.retain, item.block)
            if item.token is not None:
                self._handed.append((item.token, self._changed(1, item.retain)))
            return
        repeated = self._outbox.send(item, self._requests)
        first = 0x0A if repeated else 0x02
        self._write_publish(
            first, item.field, item.payload, item.packet_id, item.retain, item.block
        )

    def _write_publish(
        self, flags: int, field: bytes, payload: bytes, packet_id: int, retain: bool, block: bytes
    ) -> None:
        if retain and self._retain_available:
            flags |= 0x01
        head = encode_publish_head(
            0x30 | flags, field, packet_id, block if self._version == 5 else b"", len(payload)
        )
        self._out += (head, payload)
        self._out_bytes += len(head) + len(payload)

    def _changed(self, qos: int, retain: bool) -> str:
        """Say in what the broker's limits change a message."""
        changes = []
        if qos > self._max_qos:
            changes.append("sent at QoS 0: the broker takes no higher")
        if retain and not self._retain_available:
            changes.append("sent without retain: the broker keeps none")
        return "; ".join(changes)

    def _report(self, token: Any, ok: bool, why: str = "") -> None:
        if token is not None:
            self._events.append(Published(token, ok, why))

    def _pump(self) -> None:
        """Send what waits as far as the broker's receive maximum allows."""
        outbox = self._outbox
        while outbox.waiting and len(outbox.inflight) < self._window:
            self._send_item(outbox.waiting.popleft())

    def _subscribe(self, asked: Filters) -> None:
        assert self._granted is not None, "only called while connected"
        requests, denied = sendable(asked, self._granted)
        if denied:
            self._events.append(Subscribed(denied))
        for filters in requests:
            packet_id = self._outbox.new_id(self._requests)
            self._requests[packet_id] = _Request(subscribe=filters)
            fields = [(encode_topic_filter(topic), qos) for topic, qos in filters]
            self._send(encode_subscribe(self._version, packet_id, fields))

    def _unsubscribe(self, left: tuple[str, ...]) -> None:
        for start in range(0, len(left), FILTERS_AT_ONCE):
            filters = left[start : start + FILTERS_AT_ONCE]
            packet_id = self._outbox.new_id(self._requests)
            self._requests[packet_id] = _Request(unsubscribe=filters)
            fields = [encode_topic_filter(topic) for topic in filters]
            self._send(encode_unsubscribe(self._version, packet_id, fields))

    # Moving on

    def _move(self, step: Step) -> None:
        state = NEXT.get((self._state, step))
        if state is None:
            raise ImpossibleEvent(f"{step.value} in state {self._state.value}")
        self._state = state
        self._handlers = _EXPECTED[state]

    def _end(self, event: Refused | Disconnected) -> None:
        """Have the owner close the transport, and tell why; once for each connection."""
        if self._state in {State.CONNECTING, State.CONNECTED}:
            self._move(Step.ENDED)
            self._events.append(event)

    def _fail(self, why: str, reason_code: int) -> None:
        """End a connection on which the broker broke MQTT or fell silent."""
        if self._state is State.CONNECTED and self._version == 5:
            self._send(encode_disconnect(5, reason_code))
        again = self._state is State.CONNECTING and self._fall_back(settled=False)
        self._end(Disconnected(why, reason_code, try_again_now=again))

    def _unexpected(self, packet: Packet) -> None:
        name = type(packet).__name__.upper()
        self._fail(f"the broker sent {name} out of place", _PROTOCOL_ERROR)

    def _fall_back(self, *, settled: bool) -> bool:
        """Choose the version of the next attempt; True when trying again at once makes sense.

        A broker that says it does not know MQTT 5 is believed from then on. One that just closes
        may also have been restarting, so 5 gets another chance after each try of 3.1.1.
        """
        if self._version_is_settled:
            return False
        older = self._version == 5
        self._version = 4 if older else 5
        self._version_is_settled = older and settled
        return older

    # What the broker sends

    def _on_connack(self, packet: ConnAck) -> None:
        code = packet.reason_code
        if code:
            self._on_refusal(packet, FROM_3_1_1.get(code, code))
            return
        options = self._options
        self._client_id = packet.assigned_client_id or self._client_id
        self._granted = Granted(
            version=self._version,
            client_id=self._client_id,
            keep_alive_s=_stated(packet.keep_alive_s, options.keep_alive_s),
            session_expiry_s=_stated(packet.session_expiry_s, options.session_expiry_s),
            receive_maximum=_stated(packet.receive_maximum, 0xFFFF),
            max_packet_size=_stated(packet.max_packet_size, MAX_PACKET_SIZE),
            max_qos=_stated(packet.max_qos, 1),
            retain_available=packet.retain_available is not False,
            wildcard_available=packet.wildcard_available is not False,
        )
        self._obey(self._granted)
        self._was_connected = self._accepted = True
        self._move(Step.ACCEPTED)
        self._events.append(Connected(packet.session_present, self._granted))
        self._resume(packet.session_present)

    def _obey(self, granted: Granted) -> None:
        options = self._options
        self._keep_alive_s = float(granted.keep_alive_s)
        self._window = min(granted.receive_maximum, options.max_inflight)
        self._max_size = granted.max_packet_size
        self._max_qos = granted.max_qos
        self._retain_available = granted.retain_available
        grace = _GRACE_3_1_1 if self._version == 4 else 1
        self._max_unacked = min(options.receive_maximum * grace, 0xFFFF)

    def _resume(self, session_present: bool) -> None:
        """Bring the broker's session up to what we want of it."""
        if not session_present:
            self._outbox.restart()
            self._inbox.restart()
        wanted, leaving = self._subscriptions.due(session_present=session_present)
        self._unsubscribe(leaving)
        self._subscribe(wanted)
        self._pump()

    def _on_refusal(self, packet: ConnAck, code: int) -> None:
        again = self._fall_back(settled=code == UNSUPPORTED_VERSION)
        again = again and code == UNSUPPORTED_VERSION
        why = sentence(code, packet.reason, packet.server_reference)
        self._end(Refused(code, f"the broker refused us: {why}", reason(code).retryable, again))

    def _on_message(self, message: Message) -> None:
        if message.qos:
            arrival = self._inbox.take(message)
            if arrival is not Arrival.NEW:
                if arrival is Arrival.DONE:
                    self._send(encode_puback(message.packet_id))
                return
            if len(self._inbox.unacked) > self._max_unacked:
                many = f"the broker sent more than {self._max_unacked} messages unacknowledged"
                self._fail(many, _RECEIVE_MAXIMUM_EXCEEDED)
                return
        self._events.append(message)

    def _on_oversized(self, packet: Oversized) -> None:
        # It will never fit: unless it is acknowledged the broker repeats it for ever.
        if packet.qos:
            self._send(encode_puback(packet.packet_id))
        self._events.append(packet)

    def _on_puback(self, packet: PubAck) -> None:
        item = self._outbox.done(packet.packet_id)
        if item is None:
            return
        if packet.reason_code < 0x80:
            if item.token is not None:
                self._report(item.token, True, self._changed(1, item.retain))
        else:
            why = sentence(packet.reason_code, packet.reason)
            self._events.append(Published(item.token, False, f"the broker refused it: {why}"))
        if self._outbox.waiting:
            self._pump()

    def _on_suback(self, packet: SubAck) -> None:
        request = self._requests.pop(packet.packet_id, _NO_REQUEST)
        if len(request.subscribe) != len(packet.reason_codes):
            self._fail("the broker sent a SUBACK that answers nothing we asked", _PROTOCOL_ERROR)
            return
        answer = self._subscriptions.answered(request.subscribe, packet.reason_codes, packet.reason)
        self._events.append(answer)

    def _on_unsuback(self, packet: UnsubAck) -> None:
        self._subscriptions.left(self._requests.pop(packet.packet_id, _NO_REQUEST).unsubscribe)

    def _on_pingresp(self, packet: PingResp) -> None:
        self._pinged_at = None

    def _on_disconnect(self, packet: Disconnect) -> None:
        why = sentence(packet.reason_code, packet.reason, packet.server_reference)
        self._end(Disconnected(f"the broker closed the connection: {why}", packet.reason_code))


class _Request(NamedTuple):
    """What a SUBSCRIBE or UNSUBSCRIBE in flight asks for."""

    subscribe: Filters = ()
    unsubscribe: tuple[str, ...] = ()


_NO_REQUEST: Final = _Request()


def _stated(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


# What a broker may send in each state; anything else breaks the protocol (4.13). In CLOSING nothing
# is read any more.
_EXPECTED: Mapping[State, Mapping[type[Any], Callable[[Session, Any], None]]] = {
    State.CLOSED: {},
    State.CONNECTING: {ConnAck: Session._on_connack},
    State.CONNECTED: {
        Message: Session._on_message,
        Oversized: Session._on_oversized,
        PubAck: Session._on_puback,
        SubAck: Session._on_suback,
        UnsubAck: Session._on_unsuback,
        PingResp: Session._on_pingresp,
        Disconnect: Session._on_disconnect,
    },
    State.CLOSING: {},
}
