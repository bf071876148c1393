"""Every order of events: a session and a broker that keeps the rules, over a network that cuts."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.wire.mqtt.events import Connected, Disconnected, Event, Published, Subscribed
from agent.wire.mqtt.options import ConnectOptions
from agent.wire.mqtt.packets import Message, Version
from agent.wire.mqtt.session import Session, State
from tests.wire.mqtt import broker_side

BROKER_TAKES = 3
CLIENT_TAKES = 4
CONNECT, PUBLISH, PUBACK, SUBSCRIBE = 1, 3, 4, 8
MQTT_5_REFUSES = 0x97


class Broker:
    """Keeps one client's session as the specification says, QoS 1 only."""

    def __init__(self) -> None:
        self.reader = broker_side.Reader()
        self.version = 5
        self.session = False
        self.resumed = False
        self.connected = False
        self.down: deque[tuple[bytes, int]] = deque()  # bytes, and the identifier they free
        self.inflight: dict[int, str] = {}
        self.queue: deque[str] = deque()
        self.last_id = 0
        self.received: list[str] = []
        self.unanswered: set[int] = set()
        self.refuses_next = False
        self.subscribed = False

    def open(self) -> None:
        self.reader = broker_side.Reader()
        self.down.clear()
        self.unanswered.clear()

    def close(self) -> None:
        self.connected = False
        self.open()

    def forget(self) -> None:
        self.session = self.subscribed = False
        self.inflight.clear()
        self.queue.clear()

    def say(self, data: bytes, frees: int = 0) -> None:
        self.down.append((data, frees))

    def read(self, data: bytes, acked: set[str]) -> None:
        for sent in self.reader.read(data):
            if sent.kind == CONNECT:
                self._on_connect(sent)
            elif sent.kind == PUBLISH and sent.fields["qos"]:
                self._on_publish(sent)
            elif sent.kind == PUBACK:
                payload = self.inflight.pop(sent.fields["packet_id"])
                assert payload in acked, "acknowledged before the owner said so"
            elif sent.kind == SUBSCRIBE:
                self.subscribed = True
                packet_id = sent.fields["packet_id"]
                assert packet_id not in self.unanswered
                codes = bytes(len(sent.fields["filters"]))
                self.say(broker_side.suback(self.version, packet_id, codes))
        self.send()

    def _on_connect(self, sent: broker_side.Sent) -> None:
        self.version = sent.fields["version"]
        block = b"\x21\0" + bytes([BROKER_TAKES]) if self.version == 5 else b""
        self.say(broker_side.connack(self.version, self.session, 0, block))
        self.resumed = self.session
        self.session = self.connected = True
        for packet_id, payload in self.inflight.items():
            self._deliver(packet_id, payload, dup=True)

    def _on_publish(self, sent: broker_side.Sent) -> None:
        packet_id = sent.fields["packet_id"]
        assert packet_id not in self.unanswered, "two messages share a packet identifier"
        self.unanswered.add(packet_id)
        assert self.resumed or not sent.fields["dup"], "a repeat in a new session"
        if self.version == 5:
            assert len(self.unanswered) <= BROKER_TAKES, "our receive maximum was passed"
        self.received.append(sent.fields["payload"].decode())
        code = MQTT_5_REFUSES if self.refuses_next and self.version == 5 else 0
        self.refuses_next = False
        self.say(broker_side.puback(packet_id, code), frees=packet_id)

    def send(self) -> None:
        while self.connected and self.queue and len(self.inflight) < CLIENT_TAKES:
            self.last_id = self.last_id % 6 + 1  # few, so that they are soon used again
            while self.last_id in self.inflight:
                self.last_id = self.last_id % 6 + 1
            self.inflight[self.last_id] = self.queue.popleft()
            self._deliver(self.last_id, self.inflight[self.last_id], dup=False)

    def _deliver(self, packet_id: int, payload: str, *, dup: bool) -> None:
        self.say(
            broker_side.publish(
                self.version, "in", payload.encode(), qos=1, packet_id=packet_id, dup=dup
            )
        )


class Orders(RuleBasedStateMachine):
    version: Version = 5

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(
            ConnectOptions("c", version=self.version, receive_maximum=CLIENT_TAKES)
        )
        self.broker = Broker()
        self.up = b""
        self.now = 0.0
        self.count = 0
        self.promised: list[str] = []  # QoS 1 payloads published, which are their tokens too
        self.at_most_once: set[str] = set()
        self.ended: dict[str, bool] = {}
        self.emitted: dict[str, int] = {}
        self.expected: set[str] = set()
        self.may_repeat: set[str] = set()
        self.held: list[Message] = []
        self.acked: set[str] = set()
        self.ends = 0

    # Helpers

    @property
    def live(self) -> bool:
        return self.session.state is not State.CLOSED

    def take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Published):
                assert event.token not in self.ended, "told twice"
                self.ended[event.token] = event.ok
            elif isinstance(event, Message):
                payload = event.payload.decode()
                if payload in self.emitted:
                    assert payload in self.may_repeat, "handed out again while in work"
                    self.may_repeat.discard(payload)
                    self.acked.discard(payload)
                self.emitted[payload] = self.emitted.get(payload, 0) + 1
                self.held.append(event)
            elif isinstance(event, Disconnected):
                self.ends += 1
            else:
                assert isinstance(event, (Connected, Subscribed))

    def deliver(self, size: int) -> None:
        data = b""
        while size and self.broker.down:
            raw, frees = self.broker.down.popleft()
            data += raw[:size]
            if len(raw) > size:
                self.broker.down.appendleft((raw[size:], frees))
                break
            size -= len(raw)
            self.broker.unanswered.discard(frees)
        if data:
            self.take(self.session.receive(data, self.now))

    def flush(self) -> None:
        self.up += self.session.take_outgoing(self.now)
        self.take(self.session.take_events())

    # What may happen

    @precondition(lambda self: not self.live)
    @rule()
    def open(self) -> None:
        self.broker.open()
        self.up = b""
        self.ends = 0
        self.session.opened(self.now)

    @rule(times=st.integers(1, 4))
    def all_goes_well(self, times: int) -> None:
        for _ in range(times):
            if self.session.state is State.CLOSED:
                self.open()
            self.our_bytes_arrive(1 << 20)
            self.deliver(1 << 20)

    @precondition(lambda self: self.live)
    @rule(size=st.sampled_from([1, 3, 10, 100, 10_000]))
    def our_bytes_arrive(self, size: int) -> None:
        self.flush()
        data, self.up = self.up[:size], self.up[size:]
        self.broker.read(data, self.acked)

    @precondition(lambda self: self.live and self.broker.down)
    @rule(size=st.sampled_from([1, 3, 10, 100, 10_000]))
    def their_bytes_arrive(self, size: int) -> None:
        self.deliver(size)

    @precondition(lambda self: self.live)
    @rule(taken=st.booleans())
    def cut(self, taken: bool) -> None:
        if taken:
            self.flush()
        # An acknowledgement may be lost with the connection; the repeat is then news to us.
        self.may_repeat |= self.acked
        self.take(self.session.closed(self.now))
        assert self.ends == 1, "each connection ends once"
        self.broker.close()
        self.up = b""

    @precondition(lambda self: not self.live)
    @rule()
    def the_broker_forgets(self) -> None:
        self.expected -= {*self.broker.inflight.values(), *self.broker.queue}
        self.broker.forget()

    @rule(qos=st.integers(0, 1), times=st.integers(1, 5))
    def publish(self, qos: int, times: int) -> None:
        for _ in range(times):
            self.publish_one(qos)

    def publish_one(self, qos: int) -> None:
        self.count += 1
        token = f"out {self.count}"
        self.session.publish("out", token.encode(), qos=qos, token=token)
        if qos:
            self.promised.append(token)
        else:
            self.at_most_once.add(token)

    @precondition(lambda self: self.broker.session)
    @rule(times=st.integers(1, 5))
    def the_broker_has_messages(self, times: int) -> None:
        for _ in range(times):
            self.count += 1
            payload = f"in {self.count}"
            self.expected.add(payload)
            self.broker.queue.append(payload)
        self.broker.send()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.held) - 1))
        message = self.held.pop(at)
        self.acked.add(message.payload.decode())
        self.session.ack(message)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leave_to_the_broker(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.held) - 1))
        message = self.held.pop(at)
        self.may_repeat.add(message.payload.decode())
        self.session.forget(message)
        if self.live and message.packet_id in self.broker.inflight:
            self.cut(taken=True)  # it is repeated only on another connection

    @rule()
    def the_broker_refuses_the_next(self) -> None:
        self.broker.refuses_next = True

    @rule()
    def subscribe(self) -> None:
        self.session.subscribe([("in", 1)])

    @rule(seconds=st.sampled_from([0.1, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.live:
            self.take(self.session.tick(self.now))

    # What always holds

    @invariant()
    def identifiers_are_not_shared(self) -> None:
        outbox = self.session._sender.outbox
        waiting = {item.packet_id for item in outbox.waiting} - {0}
        assert outbox._interrupted == waiting
        assert not waiting & set(outbox.inflight)
        assert not set(self.session._sender.requests) & (waiting | set(outbox.inflight))

    @invariant()
    def bytes_are_counted(self) -> None:
        outbox = self.session._sender.outbox
        held = [*outbox.waiting, *outbox.inflight.values()]
        assert outbox.bytes == sum(item.size for item in held)

    def teardown(self) -> None:
        """With a network that works again, everything ends well."""
        for _ in range(200):
            if not self.live:
                self.open()
            elif self.session.state is State.CLOSING:
                self.cut(taken=True)
                continue
            self.our_bytes_arrive(1 << 20)
            self.deliver(1 << 20)
            for message in self.held:
                self.acked.add(message.payload.decode())
                self.session.ack(message)
            self.held.clear()
        assert self.session.unfinished == 0
        assert set(self.promised) <= set(self.ended), "a publish never ended"
        assert self.at_most_once <= set(self.ended)
        done = {token for token in self.promised if self.ended[token]}
        assert done <= set(self.broker.received), "told as done, but the broker has it not"
        firsts = list(dict.fromkeys(self.broker.received))
        assert firsts == [token for token in self.promised if token in set(firsts)], "order"
        assert not self.broker.inflight
        assert not self.broker.queue
        assert self.expected <= set(self.emitted), "a message of the broker was lost"


class OrdersUnder311(Orders):
    version: Version = 4


TestOrders = Orders.TestCase
TestOrders.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestOrdersUnder311 = OrdersUnder311.TestCase
TestOrdersUnder311.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
