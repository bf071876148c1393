"""What the router asks of the bus, and who gets a message."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.daemon.lane import Effects, Inbound, Lane
from agent.daemon.meters import SlotMeters
from agent.daemon.router import Router
from agent.documents.deployment import Input, Output, Slot
from tests.daemon.test_lane import Message


@dataclass
class Recorder:
    """A bus that notes what it is asked for."""

    asked: list[tuple[str, object]] = field(default_factory=list)
    acknowledged: list[Inbound] = field(default_factory=list)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        correlation_data: bytes | None = None,
        on_done: Callable[[bool, str], None] | None = None,
    ) -> None:
        self.asked.append(("publish", topic))

    def subscribe(self, filters: Iterable[tuple[str, int]]) -> None:
        self.asked += [("subscribe", row) for row in filters]

    def unsubscribe(self, filters: Iterable[str]) -> None:
        self.asked += [("unsubscribe", topic_filter) for topic_filter in filters]

    def acknowledge(self, message: Inbound) -> None:
        self.acknowledged.append(message)

    def forget(self, message: Inbound) -> None: ...


def slot(topic: str, qos: int = 1) -> Slot:
    return Slot("sha256:" + "a" * 64, Input(topic, qos=qos), Output("out/{slot}"))  # type: ignore[arg-type]


def lane(router: Router, name: str, topic: str, qos: int = 1) -> Lane:
    effects: Effects = router.effects(name, lambda letter: None)
    made = Lane(name, "d", slot(topic, qos), effects, SlotMeters(), reserved="edgeward/d/")
    router.add(made)
    return made


def test_a_filter_that_another_covers_is_not_asked_for_and_keeps_its_qos() -> None:
    bus = Recorder()
    router = Router(bus, lambda: 0.0)
    lane(router, "narrow", "in/a", qos=1)
    lane(router, "wide", "in/+", qos=0)
    assert bus.asked == [
        ("subscribe", ("in/a", 1)),
        ("subscribe", ("in/+", 1)),
        ("unsubscribe", "in/a"),
    ]
    bus.asked.clear()
    router.remove("wide")
    assert bus.asked == [("subscribe", ("in/a", 1)), ("unsubscribe", "in/+")]


def test_two_slots_with_one_filter_share_its_higher_qos_until_the_last_is_gone() -> None:
    bus = Recorder()
    router = Router(bus, lambda: 0.0)
    lane(router, "one", "in/+", qos=1)
    lane(router, "two", "in/+", qos=0)
    assert bus.asked == [("subscribe", ("in/+", 1))]
    router.remove("one")
    assert bus.asked[1:] == [("subscribe", ("in/+", 0))]
    router.remove("two")
    assert bus.asked[2:] == [("unsubscribe", "in/+")]


def test_a_message_for_two_slots_is_acknowledged_when_both_are_done_with_it() -> None:
    bus = Recorder()
    router = Router(bus, lambda: 0.0)
    lanes = [lane(router, "one", "in/+"), lane(router, "two", "in/a")]
    message = Message(b"1", topic="in/a")
    router.deliver([message])
    assert [len(each.waiting) for each in lanes] == [1, 1]
    for each in lanes:
        assert bus.acknowledged == []
        each.effects.acknowledge(message)
    assert bus.acknowledged == [message]


def test_a_message_of_a_slot_at_qos_0_that_came_at_qos_1_may_be_dropped_and_is_acknowledged() -> (
    None
):
    bus = Recorder()
    router = Router(bus, lambda: 0.0)
    wide, narrow = lane(router, "wide", "in/#", qos=1), lane(router, "narrow", "in/a", qos=0)
    messages = [Message(b"%d" % number, topic="in/a") for number in range(200)]
    router.deliver(messages)
    assert narrow.meters.dropped == 200 - 2 * narrow.spec.input.max_in_flight
    for message in messages:
        wide.effects.acknowledge(message)
    assert len(bus.acknowledged) == narrow.meters.dropped


def test_what_no_slot_wants_is_acknowledged_and_counted() -> None:
    bus = Recorder()
    router = Router(bus, lambda: 0.0)
    message = Message(b"1", topic="elsewhere")
    router.deliver([message])
    assert (bus.acknowledged, router.unrouted) == ([message], 1)
