"""A slot's bus: what it asks the broker for, and what becomes of messages and predictions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from agent.daemon.bus import Bus
from agent.daemon.held import HELD_UNKNOWN
from agent.daemon.lane import DeadLetter, Effects, Lane
from agent.daemon.meters import SlotMeters
from agent.documents.deployment import Input, Output, Slot
from agent.errors import QueueFull
from agent.links.mqtt import LinkState
from agent.wire import frames
from agent.wire.mqtt.events import FilterResult, Subscribed
from agent.wire.mqtt.options import Granted
from agent.wire.mqtt.packets import Oversized
from agent.wire.mqtt.properties import Properties
from tests.daemon.test_lane import Message


@dataclass
class Wire:
    """A connection whose broker does what the test says."""

    on_messages: Callable[[Any], None]
    on_state: Callable[[LinkState], None]
    on_subscribed: Callable[[Subscribed], None]
    on_oversized: Callable[[Oversized], None]
    state: LinkState = field(default_factory=lambda: LinkState("stopped"))
    full: bool = False
    asked: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    published: list[tuple[str, bytes]] = field(default_factory=list)
    done: list[Callable[[bool, str], None]] = field(default_factory=list)
    acknowledged: list[bytes] = field(default_factory=list)
    forgotten: list[bytes] = field(default_factory=list)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
        on_done: Callable[[bool, str], None] | None = None,
    ) -> None:
        if self.full:
            raise QueueFull("as much as fits waits")
        self.published.append((topic, payload))
        assert on_done is not None
        self.done.append(on_done)

    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass

    def subscribe(self, filters: Iterable[tuple[str, int]]) -> None:
        self.asked.append(("subscribe", tuple(filters)))

    def unsubscribe(self, filters: Iterable[str]) -> None:
        self.asked.append(("unsubscribe", tuple(sorted(filters))))

    def ack(self, message: Any) -> None:
        self.acknowledged.append(message.payload)

    def forget(self, message: Any) -> None:
        self.forgotten.append(message.payload)

    def reconnect(self) -> None:
        self.asked.append(("reconnect", ()))

    async def run(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def enter(self, state: LinkState) -> None:
        self.state = state
        self.on_state(state)


@dataclass
class World:
    wire: Wire = field(init=False)
    now: float = 0.0
    dead: list[DeadLetter] = field(default_factory=list)
    started: int = 0
    changes: list[None] = field(default_factory=list)

    def __post_init__(self) -> None:
        lane = Lane(
            "vib", "d", slot("in/+"), Effects(self.dead.append), SlotMeters(), reserved="edgeward/"
        )
        self.lane = lane
        self.bus = Bus(
            lane,
            self._connect,
            clock=lambda: self.now,
            spawn=self._spawn,
            changed=lambda: self.changes.append(None),
        )

    def _connect(self, **calls: Any) -> Wire:
        self.wire = Wire(**calls)
        return self.wire

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        work.close()
        self.started += 1

    def serve(self) -> World:
        self.bus.listen()
        self.lane.worker_ready(self.now)
        return self

    def trouble(self) -> str:
        trouble = self.bus.trouble
        return "" if trouble is None else trouble.message

    def deliver(self, *payloads: bytes, topic: str = "in/x", **fields: Any) -> None:
        self.bus.deliver([Message(payload, topic, **fields) for payload in payloads])

    def answer(self) -> None:
        """Let the worker answer every message it has."""
        for sequence in list(self.lane.in_flight):
            data = frames.encode_result(sequence, frames.PREDICTION, b"p%d" % sequence)
            for frame in frames.FrameReader().feed(data):
                self.lane.answered(frame, self.now)

    def absorb(self) -> None:
        """Let the worker keep every message in an open window."""
        for sequence in list(self.lane.in_flight):
            data = frames.encode_result(sequence, frames.ABSORBED, b"", released=())
            for frame in frames.FrameReader().feed(data):
                self.lane.answered(frame, self.now)


def slot(topic: str, qos: Literal[0, 1] = 1) -> Slot:
    return Slot(pack="sha256:" + "a" * 64, input=Input(topic, qos=qos), output=Output("out/vib"))


def granted(version: Any) -> LinkState:
    return LinkState("connected", None, Granted(version, "me", 60, 0))


# What it asks for.


def test_a_bus_connects_when_its_slot_listens_and_only_once() -> None:
    world = World()
    assert world.started == 0
    world.bus.listen()
    world.bus.listen()
    assert world.started == 1
    assert world.wire.asked == [("subscribe", (("in/+", 1),))]


def test_another_filter_is_subscribed_to_before_the_old_one_is_left() -> None:
    world = World().serve()
    world.lane.retarget(slot("other/#"))
    world.bus.listen()
    assert world.wire.asked[1:] == [
        ("subscribe", (("other/#", 1),)),
        ("unsubscribe", ("in/+",)),
    ]


def test_the_same_filter_at_another_qos_is_asked_for_and_not_left() -> None:
    world = World().serve()
    world.lane.retarget(slot("in/+", qos=0))
    world.bus.listen()
    assert world.wire.asked[1:] == [("subscribe", (("in/+", 0),))]


def test_what_an_earlier_run_may_have_asked_for_is_left() -> None:
    world = World()
    world.bus.listen(former={"in/+", "before/#"})
    assert world.wire.asked == [
        ("subscribe", (("in/+", 1),)),
        ("unsubscribe", ("before/#",)),
    ]


def test_a_message_of_a_filter_that_was_left_is_acknowledged_and_counted_apart() -> None:
    world = World().serve()
    world.deliver(b"old", topic="before/x")
    assert world.wire.acknowledged == [b"old"]
    assert (world.lane.meters.unrouted, world.lane.meters.received) == (1, 0)


def test_a_bus_that_was_left_still_takes_what_was_asked_for() -> None:
    world = World().serve()
    world.bus.leave()
    assert world.wire.asked[-1] == ("unsubscribe", ("in/+",))
    world.deliver(b"1")
    assert len(world.lane.in_flight) == 1


def test_listening_ends_with_the_broker_s_answer_or_without_it_after_a_while() -> None:
    async def story() -> None:
        world = World()
        world.bus.listen()
        waiting = asyncio.ensure_future(world.bus.listening(60.0))
        await asyncio.sleep(0)
        assert not waiting.done()
        world.wire.on_subscribed(Subscribed((FilterResult("in/+", 1),)))
        await asyncio.wait_for(waiting, 5)
        await world.bus.listening(60.0)
        world.lane.retarget(slot("other"))
        world.bus.listen()
        await world.bus.listening(0.01)

    asyncio.run(story())


# Why it is deaf.


def test_a_bus_says_why_no_message_can_come() -> None:
    world = World().serve()
    assert world.trouble() == ""
    world.wire.enter(LinkState("waiting", "connection refused"))
    assert world.trouble() == "no connection for sensor messages: connection refused"
    world.wire.enter(granted(5))
    assert world.trouble() == ""
    world.wire.on_subscribed(Subscribed((FilterResult("in/+", None, "'in/+': not authorized"),)))
    assert world.trouble() == "the broker refused to subscribe to 'in/+': not authorized"
    world.wire.on_subscribed(Subscribed((FilterResult("in/+", 1),)))
    assert world.trouble() == ""
    assert len(world.changes) == 4


# Messages and predictions.


def test_a_message_is_acknowledged_when_the_broker_has_its_prediction() -> None:
    world = World().serve()
    world.deliver(b"1")
    world.answer()
    assert (world.wire.published, world.wire.acknowledged) == ([("out/vib", b"p1")], [])
    world.wire.done.pop()(True, "")
    assert world.wire.acknowledged == [b"1"]


def test_a_message_at_qos_0_is_neither_acknowledged_nor_forgotten() -> None:
    world = World().serve()
    world.deliver(b"1", qos=0)
    world.deliver(b"2", qos=0)
    world.answer()
    world.wire.done.pop(0)(True, "")
    world.wire.done.pop(0)(False, "the connection was lost")
    assert (world.wire.acknowledged, world.wire.forgotten) == ([], [])


def test_what_the_connection_cannot_take_waits_in_order_and_holds_the_worker_back() -> None:
    world = World().serve()
    world.deliver(b"1")
    world.answer()
    world.deliver(b"2", b"3")
    world.wire.full = True
    world.answer()
    world.deliver(b"4")
    assert not world.lane.in_flight
    world.wire.full = False
    world.wire.done[0](True, "")
    assert [payload for _, payload in world.wire.published] == [b"p1", b"p2", b"p3"]
    assert len(world.lane.in_flight) == 1


@pytest.mark.parametrize("stopping", [False, True])
def test_a_refused_prediction_is_set_aside_unless_it_is_we_who_leave(stopping: bool) -> None:
    async def story() -> None:
        world = World().serve()
        world.deliver(b"1")
        world.answer()
        if stopping:
            await world.bus.stop()
        world.wire.done.pop()(False, "quota exceeded")
        assert len(world.dead) == (0 if stopping else 1)
        assert (world.wire.forgotten == [b"1"]) is stopping

    asyncio.run(story())


def test_a_message_too_large_to_take_is_a_dead_letter_that_says_how_large() -> None:
    world = World().serve()
    world.wire.on_oversized(Oversized("in/x", 2_000_000, 1, 7))
    (letter,) = world.dead
    assert (letter.topic, letter.payload, letter.code) == ("in/x", b"", "too_large")
    assert letter.size_bytes == 2_000_000
    assert (world.lane.meters.received, world.lane.meters.dead_letters) == (1, 1)


# Windows, and brokers that send few messages ahead.


def test_windows_may_hold_what_the_broker_s_version_lets_be_known() -> None:
    world = World().serve()
    assert world.lane.budget.limit == HELD_UNKNOWN
    world.wire.enter(granted(5))
    assert world.lane.budget.limit == 64
    world.wire.enter(granted(4))
    assert world.lane.budget.limit == HELD_UNKNOWN


def test_a_broker_that_waits_for_room_gets_it_and_windows_fill() -> None:
    world = World().serve()
    world.wire.enter(granted(5))
    sent = 0

    def broker() -> None:
        """Send as long as fewer than two messages are unacknowledged."""
        nonlocal sent
        while sent - len(world.wire.acknowledged) < 2 and sent < 20:
            sent += 1
            world.deliver(b"%d" % sent)
            world.absorb()

    broker()
    assert sent == 2
    for _ in range(15):
        world.now += 1.0
        world.bus.look_for_stall()
        broker()
    assert sent == 20
    assert world.lane.budget.limit == 1
