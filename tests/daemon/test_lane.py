"""What a lane promises about messages, whatever the worker and the bus do."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control.heat import Easing
from agent.daemon.held import HeldBudget
from agent.daemon.lane import (
    MAX_HELD_BYTES,
    MAX_IN_FLIGHT_BYTES,
    DeadLetter,
    Done,
    Effects,
    Handed,
    Inbound,
    Lane,
    Pending,
)
from agent.daemon.meters import SlotMeters
from agent.documents.deployment import Input, Output, Slot
from agent.errors import AgentError, BadOutput, WorkerError, WorkerExited
from agent.wire import frames


@dataclass(eq=False)
class Message:
    payload: bytes
    topic: str = "sensors/press-7"
    qos: int = 1
    dup: bool = False
    response_topic: str | None = None
    correlation_data: bytes | None = None


@dataclass
class World:
    """A lane between a bus and a worker that do what the test says."""

    lane: Lane = field(init=False)
    to_worker: list[frames.Frame] = field(default_factory=list)
    published: list[tuple[str, bytes]] = field(default_factory=list)
    retained: list[bool] = field(default_factory=list)
    handing_over: list[Done] = field(default_factory=list)
    acknowledged: list[bytes] = field(default_factory=list)
    forgotten: list[bytes] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    replaced: list[AgentError] = field(default_factory=list)
    wakes: list[None] = field(default_factory=list)
    asked_again: int = 0
    waits: list[float] = field(default_factory=list)
    slot: Slot = field(
        default_factory=lambda: Slot(
            pack="sha256:" + "a" * 64,
            input=Input("sensors/+", max_in_flight=4),
            output=Output("out/{slot}/{1}"),
        )
    )

    def __post_init__(self) -> None:
        effects = Effects(
            send=self._send,
            publish=self._publish,
            acknowledge=lambda message: self.acknowledged.append(message.payload),
            forget=lambda message: self.forgotten.append(message.payload),
            dead_letter=self.dead.append,
            replace_worker=self.replaced.append,
            flush_soon=lambda: self.wakes.append(None),
            ask_again=self._ask_again,
            flush_after=self.waits.append,
        )
        self.lane = Lane("vib", "d", self.slot, effects, SlotMeters(), reserved="edgeward/")

    def _ask_again(self) -> None:
        self.asked_again += 1

    def _send(self, data: bytes) -> None:
        for frame in frames.FrameReader().feed(data):
            self.to_worker.append(
                frame._replace(
                    meta=memoryview(bytes(frame.meta)), payload=memoryview(bytes(frame.payload))
                )
            )

    def _publish(
        self, topic: str, payload: bytes, pending: Pending, retain: bool, done: Done
    ) -> None:
        self.published.append((topic, payload))
        self.retained.append(retain)
        self.handing_over.append(done)

    def arrive(self, payload: bytes, **fields: object) -> None:
        message: Inbound = Message(payload, **fields)  # type: ignore[arg-type]
        self.lane.arrived(message, 0.0)
        self.lane.flush(0.0)

    def answer(self, flags: int = frames.PREDICTION, **fields: object) -> None:
        asked = self.to_worker.pop(0)
        data = frames.encode_result(
            asked.sequence,
            flags,
            b"p:" + bytes(asked.payload),
            **fields,  # type: ignore[arg-type]
        )
        for frame in frames.FrameReader().feed(data):
            self.lane.answered(frame, 0.0)
        self.lane.flush(0.0)

    def die(self) -> None:
        self.to_worker.clear()
        self.lane.worker_gone(WorkerExited("signal 11"))

    def hand_over(self, outcome: Handed = Handed.SENT) -> None:
        self.handing_over.pop(0)(outcome, "" if outcome is Handed.SENT else "quota exceeded")
        if self.wakes:
            self.wakes.clear()
            self.lane.flush(0.0)


def test_a_message_is_acknowledged_only_when_its_prediction_is_handed_over() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"1")
    world.answer()
    assert world.published == [("out/vib/press-7", b"p:1")]
    assert world.acknowledged == []
    world.hand_over()
    assert world.acknowledged == [b"1"]


def test_messages_wait_for_a_worker_and_keep_their_order() -> None:
    world = World()
    for payload in (b"1", b"2", b"3"):
        world.arrive(payload)
    world.lane.worker_ready(0.0)
    assert [bytes(frame.payload) for frame in world.to_worker] == [b"1", b"2", b"3"]


def test_no_more_than_the_bound_is_in_flight() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    for number in range(10):
        world.arrive(b"%d" % number)
    assert len(world.to_worker) == 4
    world.answer()
    assert len(world.to_worker) == 3  # its prediction is not handed over yet
    world.hand_over()
    assert len(world.to_worker) == 4


def test_few_large_messages_are_in_flight_at_a_time() -> None:
    slot = Slot("sha256:" + "a" * 64, Input("sensors/+", max_in_flight=64), Output("out"))
    world = World(slot=slot)
    world.lane.worker_ready(0.0)
    large = bytes(MAX_IN_FLIGHT_BYTES // 4)
    for _ in range(20):
        world.arrive(large)
    assert len(world.to_worker) == 4
    world.answer()
    assert len(world.to_worker) == 4
    world.die()
    world.lane.worker_ready(0.0)
    while world.to_worker:
        world.answer()
    assert len(world.published) == 20


def test_after_a_death_messages_go_one_at_a_time_and_only_the_killer_is_set_aside() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    for payload in (b"1", b"poison", b"3"):
        world.arrive(payload)
    world.answer()
    world.die()
    world.lane.worker_ready(0.0)
    assert [bytes(frame.payload) for frame in world.to_worker] == [b"poison"]
    world.die()
    assert [(letter.payload, letter.code) for letter in world.dead] == [
        (b"poison", "worker_exited")
    ]
    assert world.acknowledged == [b"poison"]
    world.lane.worker_ready(0.0)
    assert [bytes(frame.payload) for frame in world.to_worker] == [b"3"]
    world.answer()
    world.hand_over()
    world.hand_over()
    assert world.acknowledged == [b"poison", b"1", b"3"]


def test_a_bad_output_is_tried_once_more_and_then_set_aside() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"nan")
    world.answer(frames.REJECTED | frames.BAD_OUTPUT)
    assert world.replaced
    world.lane.worker_gone(BadOutput("replaced"))
    world.lane.worker_ready(0.0)
    world.answer(frames.REJECTED | frames.BAD_OUTPUT)
    assert [letter.code for letter in world.dead] == ["bad_output"]
    assert world.acknowledged == [b"nan"]


def test_a_bad_output_does_not_change_the_order_of_what_was_behind_it() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    for payload in (b"nan", b"2", b"3"):
        world.arrive(payload)
    world.answer(frames.REJECTED | frames.BAD_OUTPUT)
    world.die()
    assert [pending.message.payload for pending in world.lane.waiting] == [b"nan", b"2", b"3"]
    # Only the first is to blame.
    assert [pending.tries for pending in world.lane.waiting] == [1, 0, 0]


def test_a_window_that_gives_a_bad_output_twice_is_not_tried_with_the_next_reading() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"nan")
    world.answer(frames.ABSORBED, released=())
    world.arrive(b"2")
    for _ in range(2):
        world.answer(frames.REJECTED | frames.BAD_OUTPUT, released=(1, 2))
        world.die()
        world.lane.worker_ready(0.0)
        world.to_worker[:] = [f for f in world.to_worker if not f.flags & frames.REPLAY]
    assert [letter.payload for letter in world.dead] == [b"2"]
    assert world.acknowledged == [b"2", b"nan"]
    assert not world.lane.held


def test_a_window_that_kills_two_workers_is_given_up_with_the_message_that_closed_it() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"1")
    world.arrive(b"other source", topic="sensors/press-8")
    world.answer(frames.ABSORBED, released=())
    world.answer(frames.ABSORBED, released=())
    world.arrive(b"2")
    for _ in range(2):
        world.die()
        world.lane.worker_ready(0.0)
    assert world.acknowledged == [b"2", b"1"]
    assert [pending.message.payload for pending in world.lane.held.values()] == [b"other source"]
    assert world.lane.meters.state_lost == 1


def test_a_result_that_cannot_be_read_costs_no_message() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"1")
    asked = world.to_worker.pop()
    broken = frames.encode_frame(frames.RESULT, 0, asked.sequence, b"", b"")
    (frame,) = frames.FrameReader().feed(broken)
    with pytest.raises(WorkerError):
        world.lane.answered(frame, 0.0)
    world.die()
    world.lane.worker_ready(0.0)
    assert [bytes(frame.payload) for frame in world.to_worker] == [b"1"]


def test_a_refused_message_with_an_id_gets_an_error_answer_and_one_without_is_set_aside() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"with id")
    world.arrive(b"without")
    world.answer(frames.REJECTED | frames.HAS_ID)
    world.answer(frames.REJECTED)
    assert [payload for _, payload in world.published] == [b"p:with id"]
    assert [letter.payload for letter in world.dead] == [b"without"]
    assert world.acknowledged == [b"without"]


def test_messages_of_an_open_window_are_acknowledged_when_it_closes() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"1")
    world.arrive(b"2")
    world.answer(frames.ABSORBED, released=())
    assert world.acknowledged == []
    world.answer(frames.PREDICTION, released=(1, 2))
    world.hand_over()
    assert world.acknowledged == [b"1", b"2"]


def test_a_new_worker_gets_the_messages_of_open_windows_again() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"1")
    world.answer(frames.ABSORBED, released=())
    world.die()
    world.lane.worker_ready(0.0)
    (replayed,) = world.to_worker
    assert replayed.flags & frames.REPLAY
    assert bytes(replayed.payload) == b"1"


def test_windows_never_hold_back_more_than_they_may() -> None:
    world = World()
    world.lane.budget.limit = 2
    world.lane.worker_ready(0.0)
    for number in range(4):
        world.arrive(b"%d" % number)
        world.answer(frames.ABSORBED, released=())
    assert world.acknowledged == [b"0", b"1"]
    assert world.lane.meters.acknowledged_early == 2


def test_small_messages_of_a_window_are_bounded_by_what_they_take_with_all_around_them() -> None:
    world = World(slot=Slot("sha256:" + "a" * 64, Input("sensors/#"), Output("out")))
    world.lane.budget.limit = 2
    world.lane.worker_ready(0.0)
    large = "x" * 60_000
    for number in range(400):
        about = {"response_topic": large, "correlation_data": large.encode()}
        world.arrive(b"1", topic=f"sensors/{number}/{large}", **about)
        world.answer(frames.ABSORBED, released=())
    assert sum(len(held.topic) for held in world.lane.held.values()) < MAX_HELD_BYTES
    kept = [held for held in world.lane.held.values() if held.message.response_topic]
    assert len(kept) == 2  # of the rest only what a replay needs
    assert len(world.acknowledged) == 398


def test_a_worker_that_answers_what_it_was_not_given_is_found_out() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"1")
    made_up = frames.FrameReader().feed(frames.encode_result(77, frames.PREDICTION, b"p"))[0]
    with pytest.raises(WorkerError, match="answered message 77, which it was not given"):
        world.lane.answered(made_up, 60.0)
    assert world.lane.overdue(60.0, deadline_s=10.0)


def test_a_replay_is_answered_once() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"1")
    world.answer(frames.ABSORBED, released=())
    world.die()
    world.lane.worker_ready(0.0)
    again = frames.FrameReader().feed(frames.encode_result(1, frames.ABSORBED, b"", released=()))
    assert not world.lane.answered(again[0], 0.0)
    with pytest.raises(WorkerError):
        world.lane.answered(again[0], 0.0)


def test_at_qos_0_the_slot_says_which_message_gives_way() -> None:
    for drop, kept in (("drop_oldest", [b"2", b"3", b"4", b"5"]), ("drop_newest", [b"0", b"1"])):
        world = World()
        for number in range(10):
            world.lane.spec = Slot(
                pack=world.slot.pack,
                input=Input("sensors/+", qos=0, drop=drop, max_in_flight=4),  # type: ignore[arg-type]
                output=world.slot.output,
            )
            world.arrive(b"%d" % number, qos=0)
        waiting = [pending.message.payload for pending in world.lane.waiting]
        assert waiting[: len(kept)] == kept
        assert world.lane.meters.dropped == 2


def test_an_answer_never_goes_to_the_agents_own_topics() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"1", response_topic="edgeward/another/desired")
    world.arrive(b"2", response_topic="replies/me")
    world.answer()
    world.answer()
    assert [topic for topic, _ in world.published] == ["out/vib/press-7", "replies/me"]


def test_a_prediction_that_the_broker_refuses_is_set_aside_not_lost_in_silence() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"1")
    world.answer()
    world.hand_over(Handed.REFUSED)
    assert [letter.code for letter in world.dead] == ["publish_refused"]
    assert world.acknowledged == [b"1"]


def test_a_prediction_lost_with_its_connection_leaves_its_message_to_the_broker() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"1")
    world.answer()
    world.hand_over(Handed.LOST)
    assert (world.forgotten, world.dead, world.acknowledged) == ([b"1"], [], [])


def test_what_waits_when_the_topics_change_goes_where_it_was_meant_to_go() -> None:
    world = World()
    world.arrive(b"1")
    world.lane.retarget(
        Slot(pack=world.slot.pack, input=Input("other/+/x"), output=Output("new/{1}"))
    )
    world.lane.worker_ready(0.0)
    world.arrive(b"2", topic="other/b/x")
    world.answer()
    world.answer()
    assert [topic for topic, _ in world.published] == ["out/vib/press-7", "new/b"]


def test_a_wildcard_cannot_make_an_output_topic_of_an_agent() -> None:
    world = World()
    world.lane.retarget(Slot(pack=world.slot.pack, input=Input("#"), output=Output("{1}")))
    world.lane.worker_ready(0.0)
    world.arrive(b"1", topic="edgeward/another/desired")
    world.answer()
    assert world.published == []
    assert [letter.code for letter in world.dead] == ["publish_refused"]
    assert world.acknowledged == [b"1"]


def test_a_reply_is_never_retained() -> None:
    world = World()
    output = Output("out/{1}", retain=True)
    world.lane.retarget(Slot(pack=world.slot.pack, input=Input("sensors/+"), output=output))
    world.lane.worker_ready(0.0)
    world.arrive(b"1", response_topic="replies/me")
    world.arrive(b"2")
    world.answer()
    world.answer()
    assert world.retained == [False, True]


def test_a_pack_without_windows_lets_go_what_the_one_before_held() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.arrive(b"1")
    world.answer(frames.ABSORBED, released=())
    world.lane.close()
    world.lane.worker_ready(0.0)
    world.answer(frames.ABSORBED)
    assert world.acknowledged == [b"1"]
    assert not world.lane.held
    assert world.lane.budget.used == 0


def test_windows_of_all_slots_share_what_the_broker_lets_wait() -> None:
    budget = HeldBudget(2)
    worlds = [World(), World()]
    for world in worlds:
        world.lane.budget = budget
        world.lane.worker_ready(0.0)
        for number in range(2):
            world.arrive(b"%d" % number)
            world.answer(frames.ABSORBED, released=())
    assert budget.used == 2
    assert sum(len(world.acknowledged) for world in worlds) == 2


def test_a_slot_that_is_gone_holds_nothing_back_and_a_stopping_agent_keeps_nothing() -> None:
    for for_good in (True, False):
        world = World()
        world.lane.worker_ready(0.0)
        world.arrive(b"held")
        world.answer(frames.ABSORBED, released=())
        world.arrive(b"in flight")
        world.lane.give_up(for_good=for_good)
        settled = world.acknowledged if for_good else world.forgotten
        assert sorted(settled) == [b"held", b"in flight"]
        assert world.lane.budget.used == 0


def test_a_congested_bus_gets_no_more_predictions() -> None:
    world = World()
    world.lane.effects.congested = lambda: True
    world.lane.worker_ready(0.0)
    world.arrive(b"1")
    assert world.to_worker == []


WHAT = st.sampled_from(["arrive", "answer", "hand over", "die", "start", "reject", "bad"])


@settings(max_examples=300, deadline=None)
@given(st.lists(WHAT, max_size=60))
def test_whatever_happens_every_message_ends_exactly_once(history: list[str]) -> None:
    world = World()
    arrived: list[bytes] = []
    for what in history:
        _do(world, what, arrived)
        assert len(world.lane.in_flight) + world.lane.handing_over <= 4
        assert len(world.acknowledged) == len(set(world.acknowledged))
    # Then the worker stays healthy and the bus takes everything.
    for _ in range(4 * len(arrived) + 4):
        _do(world, "start", arrived)
        _do(world, "answer", arrived)
        _do(world, "hand over", arrived)
    assert sorted(world.acknowledged) == sorted(arrived)
    answered = {payload for _, payload in world.published}
    set_aside = {letter.payload for letter in world.dead}
    assert {b"p:" + payload for payload in arrived if payload not in set_aside} <= answered


def _do(world: World, what: str, arrived: list[bytes]) -> None:
    if what == "arrive":
        arrived.append(b"%d" % len(arrived))
        world.arrive(arrived[-1])
    elif what == "start" and not world.lane.open:
        world.lane.worker_ready(0.0)
    elif what == "die" and world.lane.open:
        world.die()
    elif what == "hand over" and world.handing_over:
        world.hand_over()
    elif what in ("answer", "reject", "bad") and world.to_worker and world.lane.open:
        if what == "bad":
            world.answer(frames.REJECTED | frames.BAD_OUTPUT)
            world.die()
        else:
            world.answer(frames.PREDICTION if what == "answer" else frames.REJECTED)


MEGABYTE = bytes(1 << 20)


def test_above_a_number_of_bytes_messages_are_left_to_the_broker_and_asked_for_when_idle() -> None:
    world = World()
    for _ in range(40):
        world.arrive(MEGABYTE)
    waiting = len(world.lane.waiting)
    assert waiting <= 17
    assert len(world.forgotten) == 40 - waiting
    # In order: what comes after one that was left is left too, however small.
    world.arrive(b"small")
    assert world.forgotten[-1] == b"small"
    world.lane.ask_again_if_idle()
    assert world.asked_again == 0
    world.lane.worker_ready(0.0)
    while world.to_worker or world.handing_over:
        while world.to_worker:
            world.answer()
        while world.handing_over:
            world.hand_over()
    assert len(world.acknowledged) == waiting
    world.lane.ask_again_if_idle()
    world.lane.ask_again_if_idle()
    assert world.asked_again == 1
    world.arrive(b"again")
    assert world.forgotten[-1] == b"small"


def test_at_qos_0_as_many_bytes_wait_and_the_oldest_gives_way() -> None:
    world = World()
    for _ in range(40):
        world.arrive(MEGABYTE, qos=0)
    assert len(world.lane.waiting) <= 17
    assert world.lane.meters.dropped >= 23
    assert (world.forgotten, world.acknowledged) == ([], [])


# While the device is under strain.


def sent(world: World) -> list[bytes]:
    return [bytes(frame.payload) for frame in world.to_worker]


def test_at_a_reduced_rate_messages_wait_their_turn_and_none_is_lost() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.lane.ease(Easing("reduce_rate", rate_per_s=2.0), 0.0)
    for payload in (b"1", b"2", b"3"):
        world.arrive(payload)
    assert sent(world) == [b"1"]
    assert world.waits[-1] == 0.5
    world.lane.flush(0.4)
    assert sent(world) == [b"1"]
    world.lane.flush(0.5)
    assert sent(world) == [b"1", b"2"]
    world.lane.ease(None, 0.6)
    assert sent(world) == [b"1", b"2", b"3"]
    assert world.lane.meters.dropped == 0


def test_at_a_reduced_rate_only_a_second_of_messages_waits_where_nobody_keeps_them() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.lane.ease(Easing("reduce_rate", rate_per_s=2.0), 0.0)
    for number in range(10):
        world.arrive(b"%d" % number, qos=0)
    assert sent(world) == [b"0"]
    assert [pending.message.payload for pending in world.lane.waiting] == [b"8", b"9"]
    assert world.lane.meters.dropped == 7
    # What waits at QoS 1 stays, however much it is.
    for number in range(10):
        world.arrive(b"%d" % number)
    assert world.lane.meters.dropped == 7


def test_what_waits_for_too_long_is_dropped_when_the_rate_is_reduced() -> None:
    world = World()
    for number in range(6):
        world.arrive(b"%d" % number, qos=number % 2)
    world.lane.ease(Easing("reduce_rate", rate_per_s=1.0), 0.0)
    assert [p.message.payload for p in world.lane.waiting] == [b"1", b"3", b"5"]
    assert world.lane.meters.dropped == 3


def test_of_each_topic_one_message_in_so_many_is_run_and_the_others_are_acknowledged() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.lane.ease(Easing("skip", one_in=3), 0.0)
    for number in range(4):
        for source in "ab":
            world.arrive(b"%d" % number, topic=f"sensors/{source}")
        while world.to_worker:
            world.answer()
            world.hand_over()
    assert world.published == [
        (f"out/vib/{source}", f"p:{number}".encode()) for number in (0, 3) for source in "ab"
    ]
    assert world.lane.meters.skipped == 4
    assert world.lane.meters.received == 8
    assert len(world.acknowledged) == 8


def test_a_repeat_is_not_skipped_since_it_may_be_the_one_that_was_to_be_run() -> None:
    world = World()
    world.lane.worker_ready(0.0)
    world.lane.ease(Easing("skip", one_in=3), 0.0)
    world.arrive(b"1")
    world.arrive(b"2", dup=True)
    assert sent(world) == [b"1", b"2"]


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.5, 20.0),
    st.lists(
        st.tuples(st.floats(0.0, 0.4), st.sampled_from(["arrive", "answer", "die", "flush"])),
        max_size=60,
    ),
)
def test_the_worker_never_gets_more_than_the_rate_whatever_happens(
    rate: float, steps: list[tuple[float, str]]
) -> None:
    world, now = World(), 0.0
    lane = world.lane
    lane.worker_ready(0.0)
    lane.ease(Easing("reduce_rate", rate_per_s=rate), 0.0)
    times: list[float] = []
    for pause, act in steps:
        now += pause
        before = len(world.to_worker)
        if act == "arrive":
            lane.arrived(Message(b"m"), now)
            lane.flush(now)
        elif act == "answer" and world.to_worker:
            before -= 1
            asked = world.to_worker.pop(0)
            data = frames.encode_result(asked.sequence, frames.PREDICTION, b"p")
            for frame in frames.FrameReader().feed(data):
                lane.answered(frame, now)
            world.hand_over()
            lane.flush(now)
        elif act == "die":
            world.die()
            before = 0
            lane.worker_ready(now)
        else:
            lane.flush(now)
        new = len(world.to_worker) - before
        assert new <= 1
        times += [now] * new
    for first, second in pairwise(times):
        assert second - first >= 1 / rate - 1e-9
