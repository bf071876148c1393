"""The router hands messages to lanes, and keeps the broker sending."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agent.daemon.lane import DeadLetter, Done, Effects, Handed, Inbound, Lane
from agent.daemon.meters import SlotMeters
from agent.daemon.router import SUSPECT_FIRST_S, Router
from agent.documents.deployment import Input, Output, Slot
from agent.wire import frames
from tests.daemon.test_lane import Message


@dataclass
class MemoryBus:
    """A bus that takes everything at once."""

    congested: bool = False
    acknowledged: list[bytes] = field(default_factory=list)
    forgotten: list[bytes] = field(default_factory=list)
    filters: list[tuple[str, int]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    room: list[Callable[[], None]] = field(default_factory=list)

    def when_room(self, call: Callable[[], None]) -> None:
        self.room.append(call)

    def publish(
        self,
        topic: str,
        payload: bytes,
        done: Done,
        *,
        qos: int = 0,
        retain: bool = False,
        correlation_data: bytes | None = None,
    ) -> None:
        done(Handed.SENT, "")

    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass

    def subscribe(self, filters: list[tuple[str, int]]) -> None:
        self.filters += filters

    def unsubscribe(self, filters: list[str]) -> None:
        self.left += filters

    def acknowledge(self, message: Inbound) -> None:
        self.acknowledged.append(message.payload)

    def forget(self, message: Inbound) -> None:
        self.forgotten.append(message.payload)


@dataclass
class World:
    bus: MemoryBus = field(default_factory=MemoryBus)
    now: float = 0.0
    dead: list[DeadLetter] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.router = Router(self.bus, lambda: self.now)

    def lane(self, name: str, source: str) -> Lane:
        slot = Slot(pack="sha256:" + "a" * 64, input=Input(source), output=Output(f"out/{name}"))
        lane = Lane(name, "d", slot, Effects(self.dead.append), SlotMeters(), reserved="edgeward/")
        self.router.connect(lane)
        self.router.add(lane)
        lane.worker_ready(self.now)
        return lane

    def absorb(self, lane: Lane) -> None:
        """Let the worker keep every message in an open window."""
        for sequence in list(lane.in_flight):
            data = frames.encode_result(sequence, frames.ABSORBED, b"", released=())
            for frame in frames.FrameReader().feed(data):
                lane.answered(frame, self.now)


def test_a_message_for_two_slots_is_acknowledged_when_both_are_done() -> None:
    world = World()
    lanes = [world.lane("a", "in/+"), world.lane("b", "in/x")]
    world.router.deliver([Message(b"1", topic="in/x")])
    for lane, expected in zip(lanes, ([], [b"1"]), strict=True):
        data = frames.encode_result(1, frames.PREDICTION, b"p")
        for frame in frames.FrameReader().feed(data):
            lane.answered(frame, 0.0)
        assert world.bus.acknowledged == expected


def test_a_message_that_one_of_two_slots_gives_up_stays_with_the_broker() -> None:
    world = World()
    one, other = world.lane("a", "in/+"), world.lane("b", "in/x")
    world.router.deliver([Message(b"1", topic="in/x")])
    one.give_up(for_good=False)
    assert world.bus.forgotten == []
    other.give_up(for_good=True)
    assert (world.bus.acknowledged, world.bus.forgotten) == ([], [b"1"])


def test_a_slot_that_is_left_still_takes_what_was_asked_for() -> None:
    world = World()
    lane = world.lane("a", "in/+")
    world.router.leave("a")
    assert world.bus.left == ["in/+"]
    world.router.deliver([Message(b"1", topic="in/x")])
    assert len(lane.in_flight) == 1
    world.router.remove(lane)
    world.router.deliver([Message(b"2", topic="in/x")])
    assert (world.router.unrouted, world.bus.acknowledged) == (1, [b"2"])


def test_a_broker_that_sends_few_messages_ahead_is_found_out_and_windows_fill() -> None:
    world = World()
    world.router.window(128)
    lane = world.lane("a", "in/+")
    sent = 0

    def broker() -> None:
        """Send as long as fewer than two messages are unacknowledged."""
        nonlocal sent
        while sent - len(world.bus.acknowledged) < 2 and sent < 20:
            sent += 1
            world.router.deliver([Message(b"%d" % sent, topic="in/x")])
            world.absorb(lane)

    broker()
    assert sent == 2
    for _ in range(5):
        world.now += SUSPECT_FIRST_S
        world.router.look_for_stall(world.now)
        world.now += 0.1
        broker()
    assert sent == 20
    assert world.router.budget.limit == 1


def test_a_slow_sensor_is_not_taken_for_a_stalled_broker_again_and_again() -> None:
    world = World()
    world.router.window(128)
    lane = world.lane("a", "in/+")
    for number in range(100):
        world.router.deliver([Message(b"%d" % number, topic="in/x")])
        world.absorb(lane)
        for _ in range(15):
            world.now += 1.0
            world.router.look_for_stall(world.now)
    assert world.router.budget.limit == 64
    assert 100 - 64 <= lane.meters.acknowledged_early < 50


def test_a_congested_bus_that_has_room_again_gets_what_waits() -> None:
    world = World()
    lane = world.lane("a", "in/+")
    world.bus.congested = True
    world.router.deliver([Message(b"1", topic="in/x")])
    assert not lane.in_flight
    world.bus.congested = False
    world.bus.room[0]()
    assert len(lane.in_flight) == 1
