"""One session with a broker that is played, packet by packet."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import ImpossibleEvent, QueueFull, UsageError
from agent.wire.mqtt.errors import InvalidTopic, TooLarge, TopicTooLong
from agent.wire.mqtt.events import (
    Connected,
    Disconnected,
    Event,
    FilterResult,
    Published,
    Refused,
    Subscribed,
)
from agent.wire.mqtt.options import ConnectOptions, Will
from agent.wire.mqtt.packets import Message, Oversized
from agent.wire.mqtt.properties import Properties
from agent.wire.mqtt.session import NEXT, Session, State, Step
from tests.wire.mqtt import broker_side as broker

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 4, 8, 10, 12, 14


class Peer:
    """A session and the reader of what it sends."""

    def __init__(self, **options: Any) -> None:
        settings: dict[str, Any] = {"client_id": "c", "version": 5} | options
        self.session = Session(ConnectOptions(**settings))
        self.reader = broker.Reader()

    def open(self, now: float = 0.0) -> broker.Sent:
        self.reader = broker.Reader()
        self.session.opened(now)
        (connect,) = self.sent(now)
        assert connect.kind == CONNECT
        return connect

    def connect(self, present: bool = False, block: bytes = b"", now: float = 0.0) -> list[Event]:
        self.open(now)
        version = self.session.version
        return self.session.receive(broker.connack(version, present, 0, block), now)

    def lose(self, now: float = 0.0) -> list[Event]:
        return self.session.closed(now)

    def sent(self, now: float = 0.0) -> list[broker.Sent]:
        return self.reader.read(self.session.take_outgoing(now))

    def kinds(self, now: float = 0.0) -> list[int]:
        return [packet.kind for packet in self.sent(now)]

    def get(self, data: bytes, now: float = 0.0) -> list[Event]:
        return self.session.receive(data, now)

    def messages(self, data: bytes) -> list[Message]:
        return [event for event in self.get(data) if isinstance(event, Message)]


def publish(packet_id: int, payload: bytes = b"x", *, dup: bool = False) -> bytes:
    return broker.publish(5, "in", payload, qos=1, packet_id=packet_id, dup=dup)


# Connecting


def test_a_connection_begins_with_connect_and_stands_after_connack() -> None:
    peer = Peer(receive_maximum=20)
    connect = peer.open()
    assert connect.fields["client_id"] == b"c"
    assert not connect.fields["clean"]
    (event,) = peer.get(broker.connack(5, True))
    assert isinstance(event, Connected)
    assert event.session_present
    assert event.granted.receive_maximum == 0xFFFF
    assert peer.session.state is State.CONNECTED


def test_the_broker_s_keep_alive_and_client_id_take_the_place_of_ours() -> None:
    peer = Peer(client_id="", clean_start=True, keep_alive_s=60)
    block = b"\x12" + broker.text("given") + b"\x13\0\x08"
    (event,) = peer.connect(block=block)
    assert isinstance(event, Connected)
    assert (event.granted.client_id, event.granted.keep_alive_s) == ("given", 8)
    assert peer.session.next_timer() == 6.0
    peer.lose()
    assert peer.open().fields["client_id"] == b"given"


def test_clean_start_forgets_once_and_not_at_each_reconnect() -> None:
    peer = Peer(clean_start=True)
    assert peer.open().fields["clean"]
    peer.get(broker.connack(5))
    peer.lose()
    assert not peer.open().fields["clean"]


def test_under_3_1_1_a_session_that_is_not_to_last_is_clean() -> None:
    assert Peer(version=4, session_expiry_s=0).open().fields["clean"]
    assert not Peer(version=4, session_expiry_s=60).open().fields["clean"]


def test_a_password_given_at_opening_is_sent() -> None:
    peer = Peer(username="u")
    peer.session.opened(0.0, b"p")
    (connect,) = peer.sent()
    assert connect.fields["password"] == b"p"


@pytest.mark.parametrize(
    ("version", "code", "says", "retryable"),
    [
        (5, 0x86, "bad user name or password", False),
        (4, 4, "bad user name or password", False),
        (5, 0x87, "not authorized", False),
        (4, 5, "not authorized", False),
        (5, 0x85, "client identifier not valid", False),
        (5, 0x89, "server busy", True),
        (4, 3, "server unavailable", True),
        (5, 0x97, "quota exceeded", True),
        (5, 0xEE, "reason code 0xEE", True),
    ],
)
def test_a_refusal_says_why(version: int, code: int, says: str, retryable: bool) -> None:
    peer = Peer(version=version)
    peer.open()
    (event,) = peer.get(broker.connack(version, code=code))
    assert isinstance(event, Refused)
    assert says in event.reason
    assert event.retryable is retryable
    assert peer.session.state is State.CLOSING
    assert peer.lose() == []


def test_a_refusal_passes_on_the_broker_s_own_words() -> None:
    peer = Peer()
    peer.open()
    block = b"\x1f" + broker.text("licence ended") + b"\x1c" + broker.text("b2:1883")
    (event,) = peer.get(broker.connack(5, code=0x9C, block=block))
    assert isinstance(event, Refused)
    assert "licence ended" in event.reason
    assert "b2:1883" in event.reason


# Versions


@pytest.mark.parametrize("answer", [b"\x20\x02\0\x01", broker.connack(5, code=0x84)])
def test_a_broker_that_does_not_know_5_is_spoken_to_in_3_1_1_from_then_on(answer: bytes) -> None:
    peer = Peer(version="auto")
    assert peer.open().fields["version"] == 5
    (event,) = peer.get(answer)
    assert isinstance(event, Refused)
    assert event.try_again_now
    peer.lose()
    assert peer.open().fields["version"] == 4
    (event,) = peer.get(broker.connack(4))
    assert isinstance(event, Connected)
    peer.lose()
    assert peer.open().fields["version"] == 4


def choke(peer: Peer, answer: bytes | None) -> list[Event]:
    if answer:
        return peer.get(answer)
    return peer.session.tick(5.0) if answer is None else peer.lose()


@pytest.mark.parametrize("answer", [b"", None, b"\x20\x02\0\0", b"HTTP/1.1 400 Bad Request\r\n"])
def test_a_broker_that_chokes_on_5_is_tried_in_3_1_1_but_5_gets_another_chance(
    answer: bytes | None,
) -> None:
    peer = Peer(version="auto")
    peer.open()
    (event,) = choke(peer, answer)
    assert isinstance(event, Disconnected)
    assert event.try_again_now
    if answer != b"":
        assert peer.lose() == []
    assert peer.open().fields["version"] == 4
    (event,) = peer.lose()
    assert isinstance(event, Disconnected)
    assert not event.try_again_now
    assert peer.open().fields["version"] == 5


def test_a_broker_that_chokes_on_5_twice_and_takes_3_1_1_both_times_is_believed() -> None:
    peer = Peer(version="auto")
    for _ in range(2):
        assert peer.open().fields["version"] == 5
        peer.lose()
        assert peer.open().fields["version"] == 4
        peer.get(broker.connack(4))
        peer.lose()
    assert peer.open().fields["version"] == 4


def test_a_broker_that_took_5_in_between_is_not_given_up_for_5() -> None:
    peer = Peer(version="auto")
    for _ in range(4):
        peer.open()
        peer.lose()
        assert peer.open().fields["version"] == 4
        peer.get(broker.connack(4))
        peer.lose()
        assert peer.open().fields["version"] == 5
        peer.get(broker.connack(5))
        peer.lose()


def test_another_refusal_does_not_change_the_version() -> None:
    peer = Peer(version="auto")
    peer.open()
    (event,) = peer.get(broker.connack(5, code=0x87))
    assert isinstance(event, Refused)
    assert not event.try_again_now
    peer.lose()
    assert peer.open().fields["version"] == 5


def test_a_version_that_was_asked_for_is_kept() -> None:
    peer = Peer(version=5)
    peer.open()
    (event,) = peer.get(broker.connack(5, code=0x84))
    assert isinstance(event, Refused)
    assert not event.try_again_now
    peer.lose()
    assert peer.open().fields["version"] == 5


# The time


def test_silence_is_ended_by_a_ping_and_an_answer_starts_anew() -> None:
    peer = Peer(keep_alive_s=40)
    peer.connect()
    assert peer.session.next_timer() == 30.0
    assert peer.session.tick(29.9) == []
    assert peer.sent() == []
    peer.session.tick(30.0)
    assert peer.kinds(30.0) == [PINGREQ]
    assert peer.session.next_timer() == 45.0
    peer.get(broker.PINGRESP, 31.0)
    assert peer.session.next_timer() == 60.0


def test_traffic_both_ways_needs_no_ping_and_one_way_does() -> None:
    peer = Peer(keep_alive_s=40)
    peer.connect()
    peer.session.publish("a", b"x")
    peer.sent(20.0)
    assert peer.session.next_timer() == 30.0
    peer.get(broker.publish(5, "in", b""), 25.0)
    assert peer.session.next_timer() == 50.0


def test_a_broker_that_does_not_answer_a_ping_is_given_up() -> None:
    peer = Peer(keep_alive_s=40)
    peer.connect()
    peer.session.tick(30.0)
    (event,) = peer.session.tick(45.0)
    assert isinstance(event, Disconnected)
    assert "did not answer a ping" in event.reason
    assert peer.session.state is State.CLOSING


def test_a_slow_broker_that_sends_or_takes_anything_is_not_given_up_at_once() -> None:
    peer = Peer(keep_alive_s=40)
    peer.connect()
    peer.session.tick(30.0)
    peer.get(broker.publish(5, "in", b""), 44.0)
    assert peer.session.tick(45.0) == []
    peer.session.alive(58.0)
    assert peer.session.tick(59.0) == []
    assert peer.session.next_timer() == 73.0
    for now in (72.0, 86.0, 100.0, 114.0, 124.0):
        peer.session.alive(now)
    (event,) = peer.session.tick(125.0)
    assert isinstance(event, Disconnected)


def test_no_answer_to_connect_is_given_up() -> None:
    peer = Peer(response_timeout_s=5)
    peer.open(100.0)
    assert peer.session.next_timer() == 105.0
    (event,) = peer.session.tick(105.0)
    assert isinstance(event, Disconnected)
    assert "did not answer CONNECT" in event.reason
    assert peer.session.next_timer() is None


def test_keep_alive_0_never_pings() -> None:
    peer = Peer(keep_alive_s=0)
    peer.connect()
    assert peer.session.next_timer() is None


# Publishing


def test_qos_0_is_done_when_its_bytes_are_taken() -> None:
    peer = Peer()
    peer.connect()
    peer.session.publish("a", b"x", token="t")
    assert peer.session.take_events() == []
    (packet,) = peer.sent()
    assert packet.fields | {"block": b""} == {
        "topic": "a",
        "qos": 0,
        "dup": False,
        "retain": False,
        "packet_id": 0,
        "block": b"",
        "payload": b"x",
    }
    assert peer.session.take_events() == [Published("t", True)]


def test_qos_0_without_a_connection_fails_and_is_not_kept() -> None:
    peer = Peer()
    peer.session.publish("a", b"x", token="t")
    (event,) = peer.session.take_events()
    assert isinstance(event, Published)
    assert not event.ok
    peer.connect()
    assert peer.sent() == []


def test_qos_0_that_was_not_taken_before_the_end_fails() -> None:
    peer = Peer()
    peer.connect()
    peer.session.publish("a", b"x", token="t")
    published, disconnected = sorted(peer.lose(), key=lambda event: type(event).__name__)[::-1]
    assert published == Published("t", False, "the connection ended before it was sent")
    assert isinstance(disconnected, Disconnected)


def test_qos_1_is_done_when_the_broker_acknowledges_it() -> None:
    peer = Peer()
    peer.connect()
    peer.session.publish("a", b"x", qos=1, token="t")
    (packet,) = peer.sent()
    assert packet.fields["packet_id"] == 1
    assert peer.session.take_events() == []
    assert peer.get(broker.puback(1)) == [Published("t", True)]
    assert peer.get(broker.puback(1)) == []
    assert peer.session.unfinished == 0


def test_qos_1_that_nobody_receives_is_done_too() -> None:
    peer = Peer()
    peer.connect()
    peer.session.publish("a", b"x", qos=1, token="t")
    assert peer.get(broker.puback(1, 0x10)) == [Published("t", True)]


@pytest.mark.parametrize("token", ["t", None])
def test_a_message_the_broker_refuses_is_told_with_its_reason(token: str | None) -> None:
    peer = Peer()
    peer.connect()
    peer.session.publish("a", b"x", qos=1, token=token)
    block = b"\x1f" + broker.text("over 100 a day")
    (event,) = peer.get(broker.puback(1, 0x97, block))
    assert isinstance(event, Published)
    assert (event.token, event.ok) == (token, False)
    assert "quota exceeded" in event.reason
    assert "over 100 a day" in event.reason


def test_no_more_is_in_flight_than_the_broker_takes() -> None:
    peer = Peer()
    peer.connect(block=b"\x21\0\2")
    for number in range(5):
        peer.session.publish("a", bytes([number]), qos=1, token=number)
    assert [packet.fields["payload"] for packet in peer.sent()] == [b"\0", b"\1"]
    assert peer.get(broker.puback(2)) == [Published(1, True)]
    assert [packet.fields["payload"] for packet in peer.sent()] == [b"\2"]
    assert peer.session.unfinished == 4


def test_a_connection_begins_with_few_messages_and_widens_with_each_acknowledgement() -> None:
    peer = Peer()
    for _ in range(100):
        peer.session.publish("a", b"", qos=1)
    peer.connect()
    assert len(peer.sent()) == 16
    for number in range(1, 17):
        peer.get(broker.puback(number))
    assert len(peer.sent()) == 32
    peer.lose()
    peer.connect(present=True)
    assert len(peer.sent()) == 16


def test_qos_1_waits_for_a_connection_and_keeps_its_order() -> None:
    peer = Peer()
    for number in range(3):
        peer.session.publish("a", bytes([number]), qos=1)
    peer.connect()
    assert [packet.fields["payload"] for packet in peer.sent()] == [b"\0", b"\1", b"\2"]


def test_in_a_resumed_session_messages_are_repeated_in_order_and_marked() -> None:
    peer = Peer()
    peer.connect()
    for number in range(3):
        peer.session.publish("a", bytes([number]), qos=1, token=number)
    peer.sent()
    peer.get(broker.puback(1))
    peer.lose()
    peer.session.publish("a", b"\3", qos=1, token=3)
    peer.connect(present=True, block=b"\x21\0\2")
    seen = [
        (packet.fields["payload"], packet.fields["packet_id"], packet.fields["dup"])
        for packet in peer.sent()
    ]
    assert seen == [(b"\1", 2, True), (b"\2", 3, True)]
    peer.get(broker.puback(2))
    (last,) = peer.sent()
    assert (last.fields["payload"], last.fields["dup"]) == (b"\3", False)
    assert last.fields["packet_id"] not in {2, 3}


def test_in_a_new_session_messages_are_sent_as_new() -> None:
    peer = Peer()
    peer.connect()
    for number in range(2):
        peer.session.publish("a", bytes([number]), qos=1)
    peer.sent()
    peer.lose()
    peer.connect(present=False)
    assert [(sent.fields["payload"], sent.fields["dup"]) for sent in peer.sent()] == [
        (b"\0", False),
        (b"\1", False),
    ]


def test_a_second_loss_before_all_is_repeated_loses_nothing() -> None:
    peer = Peer()
    peer.connect()
    for number in range(4):
        peer.session.publish("a", bytes([number]), qos=1)
    peer.sent()
    peer.lose()
    peer.connect(present=True, block=b"\x21\0\1")
    peer.lose()
    peer.connect(present=True)
    seen = [(sent.fields["payload"], sent.fields["packet_id"]) for sent in peer.sent()]
    assert seen == [(bytes([number]), number + 1) for number in range(4)]


def test_what_waits_is_bounded_in_number_and_bytes() -> None:
    peer = Peer(max_queued=2, max_queued_bytes=100)
    peer.session.publish("a", bytes(40), qos=1)
    with pytest.raises(QueueFull):
        peer.session.publish("a", bytes(60), qos=1)
    peer.session.publish("a", b"", qos=1)
    with pytest.raises(QueueFull):
        peer.session.publish("a", b"", qos=1)
    assert peer.session.unfinished == 2


def test_room_comes_back_when_the_broker_acknowledges() -> None:
    peer = Peer(max_queued_bytes=100)
    peer.connect()
    for _ in range(50):
        peer.session.publish("a", bytes(60), qos=1)
        (sent,) = peer.sent()
        peer.get(broker.puback(sent.fields["packet_id"]))


def test_qos_0_is_bounded_while_nobody_takes_it() -> None:
    peer = Peer(max_queued_bytes=100)
    peer.connect()
    peer.session.publish("a", bytes(60))
    with pytest.raises(QueueFull):
        peer.session.publish("a", bytes(60))
    peer.sent()
    peer.session.publish("a", bytes(60))


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("properties", [None, Properties(correlation_data=b"12")])
def test_the_broker_s_packet_size_is_obeyed_to_the_byte(
    qos: int, properties: Properties | None
) -> None:
    peer = Peer()
    peer.connect(block=b"\x27\0\0\1\0")
    extra = 2 * qos + (5 if properties else 0)
    fits = 256 - 3 - 3 - 1 - extra
    peer.session.publish("a", bytes(fits), qos=qos, properties=properties)
    assert len(peer.session.take_outgoing(0.0)) == 256
    with pytest.raises(TooLarge):
        peer.session.publish("a", bytes(fits + 1), qos=qos, properties=properties)


def test_a_message_that_waited_and_is_too_large_for_this_broker_fails() -> None:
    peer = Peer()
    peer.session.publish("a", bytes(300), qos=1, token="large")
    peer.session.publish("a", b"x", qos=1, token="small")
    events = peer.connect(block=b"\x27\0\0\1\0")
    failed = [event for event in events if isinstance(event, Published)]
    assert [(event.token, event.ok) for event in failed] == [("large", False)]
    assert [sent.fields["payload"] for sent in peer.sent()] == [b"x"]
    assert peer.session.unfinished == 1


def test_what_the_broker_does_not_offer_is_told_with_each_message() -> None:
    peer = Peer()
    peer.session.publish("a", b"early", qos=1, token="early")
    peer.connect(block=b"\x24\0\x25\0")
    peer.session.publish("a", b"late", qos=1, retain=True, token="late")
    sent = peer.sent()
    assert [(packet.fields["qos"], packet.fields["retain"]) for packet in sent] == [
        (0, False),
        (0, False),
    ]
    early, late = peer.session.take_events()
    assert early == Published("early", True, "sent at QoS 0: the broker takes no higher")
    assert isinstance(late, Published)
    assert "sent without retain" in late.reason
    assert peer.session.unfinished == 0


def test_properties_are_sent_in_5_and_left_out_in_3_1_1() -> None:
    for version, block in ((5, b"\x09\0\1x"), (4, b"")):
        peer = Peer(version=version)
        peer.connect()
        for qos in (0, 1):
            peer.session.publish("a", b"p", qos=qos, properties=Properties(correlation_data=b"x"))
        for sent in peer.sent():
            assert (sent.fields["block"], sent.fields["payload"]) == (block, b"p")


def test_bad_topics_and_qos_2_are_refused_at_the_call() -> None:
    peer = Peer(max_topic_bytes=10)
    with pytest.raises(InvalidTopic):
        peer.session.publish("a/#", b"")
    with pytest.raises(TopicTooLong):
        peer.session.publish("a" * 11, b"")
    with pytest.raises(UsageError, match="QoS 2"):
        peer.session.publish("a", b"", qos=2)
    with pytest.raises(UsageError, match="QoS 2"):
        peer.session.subscribe([("a", 2)])
    with pytest.raises(InvalidTopic):
        peer.session.subscribe([("good", 1), ("a/#/b", 1)])
    peer.connect()
    assert peer.sent() == []


def test_abandoning_ends_every_message_once() -> None:
    peer = Peer()
    peer.connect(block=b"\x21\0\1")
    peer.session.publish("a", b"", qos=1, token=1)
    peer.session.publish("a", b"", qos=1, token=2)
    assert peer.session.abandon("stopped") == [
        Published(1, False, "stopped"),
        Published(2, False, "stopped"),
    ]
    assert peer.get(broker.puback(1)) == []


def test_packet_identifiers_start_over_and_leave_out_those_in_use() -> None:
    peer = Peer()
    peer.connect()
    peer.session.publish("a", b"", qos=1)
    peer.sent()
    for number in range(2, 0x10000):
        peer.session.publish("a", b"", qos=1)
        peer.session.receive(broker.puback(number), 0.0)
    peer.sent()
    peer.session.publish("a", b"", qos=1)
    (sent,) = peer.sent()
    assert sent.fields["packet_id"] == 2


def test_identifiers_of_interrupted_messages_and_of_requests_are_not_given_out() -> None:
    peer = Peer()
    peer.connect()
    for _ in range(2):
        peer.session.publish("a", b"old", qos=1)
    peer.session.subscribe([("in", 1)])
    assert [sent.fields["packet_id"] for sent in peer.sent()] == [1, 2, 3]
    peer.lose()
    peer.session._sender.outbox._last_id = 0xFFFF
    peer.connect(present=True, block=b"\x21\0\1")
    # Message 1 is in flight again, 2 waits for it, and the request gets what neither has.
    assert [(sent.kind, sent.fields["packet_id"]) for sent in peer.sent()] == [
        (SUBSCRIBE, 3),
        (PUBLISH, 1),
    ]
    peer.session._sender.outbox._last_id = 2
    peer.session.publish("a", b"new", qos=1)
    peer.get(broker.puback(1) + broker.puback(2))
    assert [sent.fields["packet_id"] for sent in peer.sent()] == [2, 4]


# Receiving


def test_a_message_is_acknowledged_when_we_say_so_in_any_order() -> None:
    peer = Peer()
    peer.connect()
    first, second = peer.messages(publish(1) + publish(2))
    assert peer.sent() == []
    peer.session.ack(second)
    peer.session.ack(first)
    peer.session.ack(first)
    assert [sent.fields["packet_id"] for sent in peer.sent()] == [2, 1]


def test_a_message_of_the_last_connection_is_acknowledged_when_it_is_repeated() -> None:
    peer = Peer()
    peer.connect()
    (message,) = peer.messages(publish(1))
    peer.lose()
    peer.connect(present=True)
    assert peer.messages(publish(1, dup=True)) == []
    assert peer.sent() == []
    peer.session.ack(message)
    assert [sent.fields["packet_id"] for sent in peer.sent()] == [1]


@pytest.mark.parametrize("when", ["closing", "away", "back"])
def test_a_message_acknowledged_without_a_connection_is_acknowledged_at_its_repeat(
    when: str,
) -> None:
    peer = Peer()
    peer.connect()
    (message,) = peer.messages(publish(1))
    if when == "closing":
        peer.session.disconnect()
        peer.sent()
        peer.session.ack(message)
    peer.lose()
    if when == "away":
        peer.session.ack(message)
    peer.connect(present=True)
    if when == "back":
        peer.session.ack(message)
    assert peer.sent() == []
    assert peer.messages(publish(1, dup=True)) == []
    assert [sent.fields["packet_id"] for sent in peer.sent()] == [1]


def test_an_identifier_that_was_given_to_another_message_is_no_repeat() -> None:
    peer = Peer()
    peer.connect()
    (message,) = peer.messages(publish(1, b"old"))
    peer.lose()
    peer.connect(present=True)
    (other,) = peer.messages(publish(1, b"new", dup=True))
    peer.session.ack(message)
    assert peer.sent() == []
    peer.session.ack(other)
    assert [sent.fields["packet_id"] for sent in peer.sent()] == [1]


def test_a_message_acknowledged_away_does_not_swallow_a_new_one_with_its_identifier() -> None:
    peer = Peer()
    peer.connect()
    (message,) = peer.messages(publish(1))
    peer.lose()
    peer.session.ack(message)
    peer.connect(present=True)
    (fresh,) = peer.messages(publish(1))
    peer.lose()
    peer.connect(present=True)
    assert peer.messages(publish(1, dup=True)) == []
    assert peer.sent() == []
    peer.session.ack(fresh)
    assert len(peer.sent()) == 1


def test_a_message_acknowledged_away_and_not_repeated_is_forgotten() -> None:
    peer = Peer()
    peer.connect()
    (message,) = peer.messages(publish(1))
    peer.lose()
    peer.session.ack(message)
    peer.connect(present=True)
    peer.lose()
    assert not peer.session._inbox.stale


@pytest.mark.parametrize("when", ["connected", "away", "acknowledged"])
def test_a_message_left_to_the_broker_is_handed_out_again_at_its_repeat(when: str) -> None:
    peer = Peer()
    peer.connect()
    (message,) = peer.messages(publish(1))
    if when == "connected":
        peer.session.forget(message)
    peer.lose()
    if when == "acknowledged":
        peer.session.ack(message)
    if when != "connected":
        peer.session.forget(message)
    peer.connect(present=True)
    (again,) = peer.messages(publish(1, dup=True))
    peer.session.ack(message)
    assert peer.sent() == []
    peer.session.ack(again)
    assert len(peer.sent()) == 1


def test_a_repeat_with_another_correlation_is_another_message() -> None:
    peer = Peer()
    peer.connect()
    first, second = (
        broker.publish(5, "in", b"x", qos=1, packet_id=1, dup=dup, block=b"\x09\0\1" + data)
        for dup, data in ((False, b"a"), (True, b"b"))
    )
    assert len(peer.messages(first)) == 1
    peer.lose()
    peer.connect(present=True)
    assert len(peer.messages(second)) == 1


def test_in_a_new_session_a_repeat_is_a_message() -> None:
    peer = Peer()
    peer.connect()
    (message,) = peer.messages(publish(1))
    peer.lose()
    peer.connect(present=False)
    (again,) = peer.messages(publish(1, dup=True))
    peer.session.ack(message)
    assert peer.sent() == []
    peer.session.ack(again)
    assert len(peer.sent()) == 1


def test_a_repeat_on_the_same_connection_is_handed_out_once() -> None:
    peer = Peer()
    peer.connect()
    (message,) = peer.messages(publish(1))
    assert peer.messages(publish(1, dup=True)) == []
    peer.session.ack(message)
    assert len(peer.sent()) == 1


def test_a_broker_may_pass_our_receive_maximum_but_not_flood_us() -> None:
    peer = Peer(receive_maximum=2)
    peer.connect()
    assert len(peer.messages(b"".join(map(publish, range(1, 1025))))) == 1024
    (event,) = peer.get(publish(1025))
    assert isinstance(event, Disconnected)
    (sent,) = peer.sent()
    assert (sent.kind, sent.fields["code"]) == (DISCONNECT, 0x93)


def test_an_oversized_message_is_told_and_acknowledged_so_that_it_never_comes_back() -> None:
    peer = Peer(max_packet_size=128)
    peer.connect()
    (event,) = peer.get(publish(7, bytes(200)))
    assert isinstance(event, Oversized)
    assert (event.topic, event.qos) == ("in", 1)
    assert [sent.fields["packet_id"] for sent in peer.sent()] == [7]


def test_everything_mqtt_5_says_about_a_message_is_there() -> None:
    peer = Peer()
    peer.connect()
    block = b"\x08" + broker.text("to") + b"\x09\0\1c\x26" + broker.text("k") + broker.text("v")
    (message,) = peer.messages(broker.publish(5, "in", b"p", block=block))
    assert (message.response_topic, message.correlation_data) == ("to", b"c")
    assert message.user_properties == (("k", "v"),)


# Subscribing


def test_subscriptions_are_asked_for_once_and_again_when_the_broker_forgot_them() -> None:
    peer = Peer()
    peer.session.subscribe([("a/+", 1), ("b", 0)])
    peer.connect()
    (subscribe,) = peer.sent()
    assert subscribe.fields["filters"] == [("a/+", 1), ("b", 0)]
    answer = broker.suback(5, subscribe.fields["packet_id"], b"\1\0")
    assert peer.get(answer) == [Subscribed((FilterResult("a/+", 1), FilterResult("b", 0)))]
    peer.lose()
    peer.connect(present=True)
    assert peer.sent() == []
    peer.lose()
    peer.connect(present=False)
    assert peer.kinds() == [SUBSCRIBE]


def test_a_subscription_whose_answer_was_lost_is_asked_for_again() -> None:
    peer = Peer()
    peer.connect()
    peer.session.subscribe([("a", 1)])
    assert peer.kinds() == [SUBSCRIBE]
    peer.lose()
    peer.connect(present=True)
    assert peer.kinds() == [SUBSCRIBE]


def test_a_refused_filter_is_told_with_what_to_do_and_tried_again_later() -> None:
    peer = Peer()
    peer.connect()
    peer.session.subscribe([("a", 1), ("b", 1)])
    (sent,) = peer.sent()
    (event,) = peer.get(broker.suback(5, sent.fields["packet_id"], b"\x87\0"))
    assert isinstance(event, Subscribed)
    refused, lower = event.results
    assert refused.granted_qos is None
    assert "not authorized" in refused.reason
    assert lower.granted_qos == 0
    peer.lose()
    peer.connect(present=True)
    (again,) = peer.sent()
    assert again.fields["filters"] == [("a", 1)]


def test_the_bare_refusal_of_3_1_1_gets_a_sentence() -> None:
    peer = Peer(version=4)
    peer.connect()
    peer.session.subscribe([("a", 1)])
    peer.sent()
    (event,) = peer.get(broker.suback(4, 1, b"\x80"))
    assert isinstance(event, Subscribed)
    assert "check this client's rights" in event.results[0].reason


def test_wildcards_that_the_broker_does_not_take_are_not_sent() -> None:
    peer = Peer()
    peer.session.subscribe([("a/#", 1), ("b", 1)])
    events = peer.connect(block=b"\x28\0")
    (denied,) = [event for event in events if isinstance(event, Subscribed)]
    assert denied.results[0].filter == "a/#"
    assert "wildcard" in denied.results[0].reason
    (sent,) = peer.sent()
    assert sent.fields["filters"] == [("b", 1)]


def test_many_filters_go_in_packets_that_the_broker_takes() -> None:
    peer = Peer()
    peer.session.subscribe([(f"sensor/{number:03}", 1) for number in range(20)])
    peer.session.subscribe([("x" * 200, 1)])
    events = peer.connect(block=b"\x27\0\0\0\x80")
    (denied,) = [event for event in events if isinstance(event, Subscribed)]
    assert denied.results[0].filter == "x" * 200
    sent = peer.sent()
    assert [name for packet in sent for name, _ in packet.fields["filters"]] == [
        f"sensor/{number:03}" for number in range(20)
    ]
    assert max(len(packet.fields["filters"]) for packet in sent) <= 8
    assert max(len(packet.body) for packet in sent) <= 126


def test_what_is_left_while_away_is_unsubscribed_on_return() -> None:
    peer = Peer()
    peer.session.subscribe([("a", 1), ("b", 1)])
    peer.connect()
    (sent,) = peer.sent()
    peer.get(broker.suback(5, sent.fields["packet_id"], b"\1\1"))
    peer.lose()
    peer.session.unsubscribe(["a"])
    peer.connect(present=True)
    (left,) = peer.sent()
    assert (left.kind, left.fields["filters"]) == (UNSUBSCRIBE, ["a"])
    peer.get(broker.unsuback(5, left.fields["packet_id"], b"\0"))
    peer.lose()
    peer.connect(present=True)
    assert peer.sent() == []
    peer.lose()
    peer.connect(present=False)
    (again,) = peer.sent()
    assert again.fields["filters"] == [("b", 1)]


# The end


def test_leaving_in_order_says_so_and_closes() -> None:
    peer = Peer(will=Will("status", b"offline"))
    peer.connect()
    peer.session.publish("a", b"last")
    assert peer.session.disconnect() == [Disconnected("closed by us")]
    assert peer.kinds() == [PUBLISH, DISCONNECT]
    assert peer.session.state is State.CLOSING
    assert peer.lose() == []


def test_the_broker_s_reason_for_leaving_is_told() -> None:
    peer = Peer()
    peer.connect()
    (event,) = peer.get(broker.disconnect(0x8E))
    assert isinstance(event, Disconnected)
    assert event.reason_code == 0x8E
    assert "another client uses the same client id" in event.reason
    assert peer.get(b"whatever follows") == []
    assert peer.lose() == []


def test_broken_bytes_end_the_connection_after_what_came_before_them() -> None:
    peer = Peer()
    peer.connect()
    message, event = peer.get(broker.publish(5, "in", b"x") + b"\xf0\0")
    assert isinstance(message, Message)
    assert isinstance(event, Disconnected)
    (sent,) = peer.sent()
    assert (sent.kind, sent.fields["code"]) == (DISCONNECT, 0x82)


@pytest.mark.parametrize(
    "data",
    [
        broker.connack(5),
        broker.suback(5, 9, b"\0"),
    ],
)
def test_a_packet_out_of_place_ends_the_connection(data: bytes) -> None:
    peer = Peer()
    peer.connect()
    (event,) = peer.get(data)
    assert isinstance(event, Disconnected)
    assert event.reason_code == 0x82


def test_a_message_before_connack_ends_the_connection() -> None:
    peer = Peer()
    peer.open()
    (event,) = peer.get(broker.publish(5, "in", b"x"))
    assert isinstance(event, Disconnected)


def test_the_table_has_a_way_out_of_every_state_and_misuse_is_a_bug() -> None:
    assert {state for state, step in NEXT if step is Step.LOST} == set(State) - {State.CLOSED}
    session = Session(ConnectOptions("c"))
    with pytest.raises(ImpossibleEvent):
        session.receive(b"", 0.0)
    with pytest.raises(ImpossibleEvent):
        session.closed(0.0)
    session.opened(0.0)
    with pytest.raises(ImpossibleEvent):
        session.opened(0.0)
