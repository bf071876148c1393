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

from agent.errors import ImpossibleEvent
from agent.wire.mqtt.decoder import Decoder
from agent.wire.mqtt.errors import MalformedPacket
from agent.wire.mqtt.events import Connected, Disconnected, Event, Refused, Subscribed
from agent.wire.mqtt.inbox import Arrival, Inbox
from agent.wire.mqtt.options import ConnectOptions, Granted
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
    encode_subscribe,
    encode_topic_filter,
    encode_unsubscribe,
)
from agent.wire.mqtt.properties import Properties
from agent.wire.mqtt.reasons import FROM_3_1_1, UNSUPPORTED_VERSION, reason, sentence
from agent.wire.mqtt.sender import Sender
from agent.wire.mqtt.subscriptions import Filters, Subscriptions, batches, split
from agent.wire.mqtt.timing import Timing
from agent.wire.mqtt.versions import Versions


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
_UNSPECIFIED: Final = 0x80
_RECEIVE_MAXIMUM_EXCEEDED: Final = 0x93
# MQTT 3.1.1 cannot tell the broker our receive maximum, and mosquitto 2.0.11 (Debian's) passes it:
# it counts what is in flight by the place of the message just acknowledged. Only a flood ends the
# connection; ending it sooner would make the broker send all of it again, and more.
_GRACE: Final = 16
_GRACE_AT_LEAST: Final = 1024


class Session:
    """The protocol of one client.

    Acknowledgements may be given in any order, though 4.6 asks for the order of arrival: one slow
    model must not hold back all others, and brokers match them by packet identifier.
    """

    def __init__(self, options: ConnectOptions) -> None:
        self._options = options
        self._state = State.CLOSED
        self._handlers: Mapping[type[Any], Callable[[Session, Any], None]] = {}
        self._versions = Versions(options.version)
        self._was_connected = False
        self._client_id = options.client_id
        self._granted: Granted | None = None
        self._decoder = Decoder(self.version, options.max_packet_size)
        self._timing = Timing(0.0, 0.0, 0.0)

        self._events: list[Event] = []
        self._sender = Sender(options, self._events)
        self._inbox = Inbox()
        self._max_unacked = options.receive_maximum
        self._subscriptions = Subscriptions(options.max_topic_bytes)

    # What holds now

    @property
    def state(self) -> State:
        """Where the present connection stands; in CLOSING the transport is to be closed."""
        return self._state

    @property
    def version(self) -> Version:
        """The version of this connection, or of the next attempt."""
        return self._versions.current

    @property
    def granted(self) -> Granted | None:
        """What holds on the present or the last connection; None before the first."""
        return self._granted

    @property
    def outgoing_bytes(self) -> int:
        """Bytes that wait for `take_outgoing`."""
        return self._sender.bytes

    @property
    def unfinished(self) -> int:
        """QoS 1 messages of ours that the broker has not acknowledged."""
        return len(self._sender.outbox)

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
        if self.version == 4:
            # 3.1.1 has one flag for both: forget what was, and keep nothing afterwards.
            clean = options.clean_start or options.session_expiry_s == 0
        self._versions.opened()
        self._decoder = Decoder(self.version, options.max_packet_size)
        patience_s = self._versions.answer_within_s(options.response_timeout_s)
        self._timing = Timing(now, options.keep_alive_s, patience_s)
        self._sender.send(
            encode_connect(
                self.version,
                self._client_id,
                keep_alive_s=options.keep_alive_s,
                clean=clean,
                session_expiry_s=options.session_expiry_s,
                receive_maximum=options.receive_maximum,
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
        self._timing.last_in = now
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
        if before is State.CONNECTING:
            again = self._versions.refused(by_name=False)
            self._events.append(Disconnected(why, try_again_now=again))
        elif before is State.CONNECTED:
            self._inbox.interrupt()
            self._events.append(Disconnected(why))
        self._versions.closed()
        self._sender.lost()
        return self.take_events()

    def tick(self, now: float) -> list[Event]:
        """Do what is due: ping, or give a silent broker up."""
        due = self.next_timer()
        if due is None or now < due:
            return self.take_events()
        timing = self._timing
        silent = f"the broker did not answer %s within {timing.answer_within_s:g} s"
        if self._state is State.CONNECTING:
            again = self._versions.refused(by_name=False)
            self._end(Disconnected(silent % "CONNECT", try_again_now=again))
        elif timing.pinged_at is not None:
            self._fail(silent % "a ping", _UNSPECIFIED)
        else:
            timing.pinged_at = now
            self._sender.send(PINGREQ)
        return self.take_events()

    def next_timer(self) -> float | None:
        """When `tick` is to be called next, in monotonic seconds."""
        if self._state is State.CONNECTING:
            return self._timing.connack_due()
        return self._timing.due() if self._state is State.CONNECTED else None

    def alive(self, now: float) -> None:
        """The peer took bytes of ours: a slow broker is not a dead one."""
        self._timing.last_in = now

    def take_outgoing(self, now: float) -> bytes:
        """Everything to write, in one piece; it counts as sent."""
        if not self._sender.bytes:
            return b""
        self._timing.last_out = now
        return self._sender.take()

    def take_events(self) -> list[Event]:
        """What happened since the last call that returned events."""
        events = self._events[:]
        self._events.clear()
        return events

    def disconnect(self, reason_code: int = 0) -> list[Event]:
        """Leave in order: queue DISCONNECT, so that the broker drops the last will."""
        if self._state is State.CONNECTED:
            self._sender.send(encode_disconnect(self.version, reason_code))
        self._end(Disconnected("closed by us", reason_code))
        return self.take_events()

    def abandon(self, why: str) -> list[Event]:
        """Give up every message of ours that the broker has not acknowledged."""
        self._sender.abandon(why)
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
        self._sender.publish(topic, payload, qos, retain, properties, token)

    def ack(self, message: Message) -> None:
        """Acknowledge a QoS 1 message; too late, twice or at QoS 0 it does nothing."""
        if message.qos and self._inbox.ack(message):
            self._sender.send(encode_puback(message.packet_id))

    def forget(self, message: Message) -> None:
        """Leave a QoS 1 message unacknowledged: the broker repeats it on the next connection, and
        then it is handed out again."""
        self._inbox.forget(message)

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

    def _subscribe(self, asked: Filters) -> None:
        assert self._granted is not None, "only called while connected"
        sendable, denied = split(asked, self._granted)
        if denied:
            self._events.append(Subscribed(denied))
        for filters in batches(sendable, self._granted.max_packet_size):
            rows = tuple((topic, sendable[topic]) for topic in filters)
            packet_id = self._sender.new_request(_Request(subscribe=rows))
            fields = [(encode_topic_filter(topic), qos) for topic, qos in rows]
            self._sender.send(encode_subscribe(self.version, packet_id, fields))

    def _unsubscribe(self, left: tuple[str, ...]) -> None:
        assert self._granted is not None, "only called while connected"
        for filters in batches(left, self._granted.max_packet_size):
            packet_id = self._sender.new_request(_Request(unsubscribe=filters))
            fields = [encode_topic_filter(topic) for topic in filters]
            self._sender.send(encode_unsubscribe(self.version, packet_id, fields))

    # Moving on

    def _move(self, step: Step) -> None:
        state = NEXT.get((self._state, step))
        if state is None:
            raise ImpossibleEvent(f"{step.value} in state {self._state.value}")
        self._state = state
        self._handlers = _EXPECTED[state]

    def _end(self, event: Refused | Disconnected) -> None:
        """Have the owner close the transport, and tell why; once for each connection."""
        if self._state is State.CONNECTED:
            self._inbox.interrupt()
        if self._state in {State.CONNECTING, State.CONNECTED}:
            self._move(Step.ENDED)
            self._sender.ended()
            self._events.append(event)

    def _fail(self, why: str, reason_code: int) -> None:
        """End a connection on which the broker broke MQTT or fell silent."""
        if self._state is State.CONNECTED and self.version == 5:
            self._sender.send(encode_disconnect(5, reason_code))
        again = self._state is State.CONNECTING and self._versions.refused(by_name=False)
        self._end(Disconnected(why, reason_code, try_again_now=again))

    def _unexpected(self, packet: Packet) -> None:
        name = type(packet).__name__.upper()
        self._fail(f"the broker sent {name} out of place", _PROTOCOL_ERROR)

    # What the broker sends

    def _on_connack(self, packet: ConnAck) -> None:
        code = packet.reason_code
        if code:
            self._on_refusal(packet, FROM_3_1_1.get(code, code))
            return
        options = self._options
        self._client_id = packet.assigned_client_id or self._client_id
        self._granted = Granted(
            version=self.version,
            client_id=self._client_id,
            keep_alive_s=_stated(packet.keep_alive_s, options.keep_alive_s),
            session_expiry_s=_stated(packet.session_expiry_s, options.session_expiry_s),
            receive_maximum=_stated(packet.receive_maximum, 0xFFFF),
            max_packet_size=_stated(packet.max_packet_size, MAX_PACKET_SIZE),
            max_qos=_stated(packet.max_qos, 1),
            retain_available=packet.retain_available is not False,
            wildcard_available=packet.wildcard_available is not False,
        )
        self._timing.keep_alive_s = self._granted.keep_alive_s
        self._timing.answer_within_s = options.response_timeout_s
        self._max_unacked = max(options.receive_maximum * _GRACE, _GRACE_AT_LEAST)
        self._was_connected = True
        self._versions.accepted()
        self._move(Step.ACCEPTED)
        self._events.append(Connected(packet.session_present, self._granted))
        self._resume(self._granted, packet.session_present)

    def _resume(self, granted: Granted, session_present: bool) -> None:
        """Bring the broker's session up to what we want of it."""
        if not session_present:
            self._inbox.restart()
        wanted, leaving = self._subscriptions.due(session_present=session_present)
        self._unsubscribe(leaving)
        self._subscribe(wanted)
        self._sender.connected(granted, session_present=session_present)

    def _on_refusal(self, packet: ConnAck, code: int) -> None:
        again = code == UNSUPPORTED_VERSION and self._versions.refused(by_name=True)
        why = sentence(code, packet.reason, packet.server_reference)
        self._end(Refused(code, f"the broker refused us: {why}", reason(code).retryable, again))

    def _on_message(self, message: Message) -> None:
        if message.qos:
            inbox = self._inbox
            if message.dup or inbox.stale:
                arrival = inbox.match(message)
                if arrival is not Arrival.NEW:
                    if arrival is Arrival.DONE:
                        self._sender.send(encode_puback(message.packet_id))
                    return
            inbox.unacked[message.packet_id] = message
            if len(inbox.unacked) > self._max_unacked:
                many = (
                    f"more than {self._max_unacked} messages wait for our acknowledgement: "
                    "more come than are dealt with"
                )
                self._fail(many, _RECEIVE_MAXIMUM_EXCEEDED)
                return
        self._events.append(message)

    def _on_oversized(self, packet: Oversized) -> None:
        # It will never fit: unless it is acknowledged the broker repeats it for ever.
        if packet.qos:
            self._sender.send(encode_puback(packet.packet_id))
        self._events.append(packet)

    def _on_puback(self, packet: PubAck) -> None:
        self._sender.acknowledged(packet)

    def _on_suback(self, packet: SubAck) -> None:
        request = self._sender.requests.pop(packet.packet_id, _NO_REQUEST)
        if len(request.subscribe) != len(packet.reason_codes):
            self._fail("the broker sent a SUBACK that answers nothing we asked", _PROTOCOL_ERROR)
            return
        answer = self._subscriptions.answered(request.subscribe, packet.reason_codes, packet.reason)
        self._events.append(answer)

    def _on_unsuback(self, packet: UnsubAck) -> None:
        self._subscriptions.left(
            self._sender.requests.pop(packet.packet_id, _NO_REQUEST).unsubscribe
        )

    def _on_pingresp(self, packet: PingResp) -> None:
        self._timing.pinged_at = None

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
