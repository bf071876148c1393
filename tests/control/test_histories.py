"""Whatever happens in whatever order: a small world that does what control asks, and its promises.

The world knows what really serves, which control does not: a switch that is abandoned may have
happened all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.control import events as e
from agent.control.lifecycle import resume, step
from agent.control.rollouts import ON_ENTRY, same_target
from agent.control.state import DeviceState, Phase, SlotState, choice_for, packs_needed
from agent.documents.deployment import Slot
from tests.control.stories import (
    ALTERED,
    DYING,
    LASTING,
    PASSING,
    QUALIFIED,
    A,
    B,
    C,
    arrives,
    slot,
)

SLOTS = ("vib", "cam")
FAILURES = {"lasting": LASTING, "passing": PASSING, "altered": ALTERED}
TROUBLES = (
    "crash",
    "recovered",
    "rollback",
    "unservable",
    "outdated",
    "compiled",
    "restart",
    *FAILURES,
)
FACTS: dict[type, Callable[[str, int], e.Event]] = {
    e.Fetch: e.Fetched,
    e.Verify: e.Verified,
    e.Qualify: lambda name, number: e.Qualified(name, number, QUALIFIED),
    e.Switch: e.Switched,
    e.Watch: e.ProbationPassed,
    e.Restore: e.Restored,
    e.Wait: e.RetryDue,
}

document = st.tuples(
    st.just("document"),
    st.fixed_dictionaries({}, optional=dict.fromkeys(SLOTS, st.sampled_from("ABCa"))),
    st.sampled_from(["same name", "new name"]),
    st.booleans(),
)
happening = st.tuples(
    st.sampled_from(TROUBLES),
    st.sampled_from(SLOTS),
)
# Most of what happens is that a step succeeds: else no rollout would ever come far.
success = st.tuples(st.just("ok"), st.sampled_from(SLOTS))
histories = st.lists(
    st.one_of(*[success] * 9, *[happening] * 4, *[document] * 2), min_size=20, max_size=60
)
History = list[tuple[Any, ...]]


class World:
    """Performs actions and keeps what really serves apart from what control believes."""

    def __init__(self) -> None:
        self.state = DeviceState()
        self.doing: dict[str, e.Action] = {}
        self.really: dict[str, Slot] = {}
        self.qualified: set[str] = set()
        # Slots whose end goes on.
        self.stopping: set[str] = set()
        self.number = 0
        # An abandoned switch happens all the same.
        self.late = False

    def feed(self, event: e.Event) -> None:
        before = self.state
        self.state, actions = step(before, event)
        for action in actions:
            self._take(action)
        assert (self.state is not before) or not actions
        check_kept(before, self.state)

    def _take(self, action: e.Action) -> None:
        name = action.slot
        if isinstance(action, e.Abandon):
            left = self.doing.pop(name, None)
            assert left is None or getattr(left, "rollout", None) == action.rollout
            if isinstance(left, (e.Switch, e.Restore)) and self.late:
                self.really[name] = left.target
                fact = FACTS[type(left)](name, left.rollout)
                assert step(self.state, fact).state is self.state
        elif isinstance(action, e.StopSlot):
            assert name not in self.doing
            self.really.pop(name, None)
            self.stopping.add(name)
        else:
            assert name not in self.doing, "a second action while the first goes on"
            self.doing[name] = action

    def happens(self, what: str, name: str) -> None:
        entry = self.state.slots.get(name)
        if what == "restart":
            self.restart()
        elif name in self.stopping and what == "ok":
            self.stopping.discard(name)
            self.feed(e.SlotStopped(name))
            assert name not in self.state.leaving
        elif entry is None:
            return
        elif what == "rollback":
            self.feed(e.RollbackRequested(name))
        elif what == "outdated":
            if entry.serving is not None:
                self.feed(e.Outdated(name, entry.serving.pack))
        elif what == "compiled":
            choice = choice_for(self.state, entry.serving) if entry.serving is not None else None
            if entry.serving is not None and choice is not None:
                other = replace(choice, way=replace(choice.way, threads=choice.way.threads + 1))
                self.feed(e.Compiled(name, entry.serving.pack, choice, other))
        elif what == "unservable":
            if entry.serving is not None:
                self.feed(e.Unservable(name, ALTERED))
        elif what in ("crash", "recovered"):
            if name in self.really:
                pack = self.really[name].pack
                crash = what == "crash"
                self.feed(e.CrashLooped(name, pack, DYING) if crash else e.Recovered(name, pack))
        elif name in self.doing:
            self.ends(self.doing.pop(name), what)

    def ends(self, action: e.Action, how: str) -> None:
        assert not isinstance(action, (e.Abandon, e.StopSlot))
        if how != "ok" and not isinstance(action, (e.Wait, e.Watch)):
            self.feed(e.StepFailed(action.slot, action.rollout, FAILURES[how]))
            return
        if isinstance(action, e.Qualify):
            self.qualified.add(action.target.pack)
        if isinstance(action, (e.Switch, e.Restore)):
            self.really[action.slot] = action.target
        self.feed(FACTS[type(action)](action.slot, action.rollout))

    def restart(self) -> None:
        saved = msgspec.json.encode(self.state)
        assert msgspec.json.decode(saved, type=DeviceState) == self.state
        again = resume(self.state)
        self.doing = {a.slot: a for a in again if not isinstance(a, e.StopSlot)}
        self.stopping = {a.slot for a in again if isinstance(a, e.StopSlot)}
        served = {name: entry.serving for name, entry in self.state.slots.items()}
        self.really = {name: spec for name, spec in served.items() if spec is not None}

    def document(self, wanted: dict[str, str], name: str, newer_telemetry: bool) -> None:
        self.number += 1
        before = self.state
        packs = {"A": A, "B": B, "C": C, "a": A}
        slots = {
            each: slot(packs[pack], f"{each}/+", source="file:/a" if pack == "a" else "mqtt:")
            for each, pack in wanted.items()
        }
        called = before.deployment if name == "same name" else str(self.number)
        interval_s = 5.0 if newer_telemetry else 60.0
        self.feed(arrives(called, slots, interval_s=interval_s, digest=str(self.number)))
        others_changed = slots != {n: old.wanted for n, old in before.slots.items()}
        for each, old in before.slots.items():
            left_alone = has_failed(old) and slots.get(each) == old.wanted
            if left_alone and (others_changed or called == before.deployment):
                assert self.state.slots[each] == old


def has_failed(entry: SlotState) -> bool:
    outcome = entry.outcome
    return entry.rollout is None and outcome is not None and outcome.state != "active"


def check_kept(before: DeviceState, after: DeviceState) -> None:
    """Nothing that serves is lost, and a new pack keeps the last good one to go back to."""
    for name, old in before.slots.items():
        new = after.slots.get(name)
        if new is None or old.serving is None:
            continue
        assert new.serving is not None
        if same_target(old.serving, new.serving):
            continue
        if not new.proven and old.proven and not (old.rollout and old.rollout.back):
            kept = (old.serving, old.previous)
            assert new.previous in kept or same_target(old.previous, new.serving)
            assert new.previous is not None or old.looping is not None


def check(world: World) -> None:
    # A slot that is gone is remembered until it has left nothing behind.
    assert set(world.state.leaving) == world.stopping - set(world.state.slots)
    for name, entry in world.state.slots.items():
        for kept in (entry.serving, entry.previous):
            assert kept is None or kept.pack in world.qualified
            assert kept is None or kept.pack in packs_needed(world.state)
        assert entry.previous is None or not same_target(entry.previous, entry.serving)
        check_not_stuck(entry, world.doing.get(name))
        check_truth(entry, world.really.get(name))


def check_not_stuck(entry: SlotState, action: e.Action | None) -> None:
    rollout = entry.rollout
    if rollout is None:
        assert action is None
        assert entry.outcome is not None
        return
    assert action is not None
    assert isinstance(action, ON_ENTRY.get(rollout.phase, e.Wait))
    assert not isinstance(action, (e.Abandon, e.StopSlot))
    assert action.rollout == rollout.id
    assert same_target(action.target, rollout.target)
    assert rollout.then is None or rollout.heading is Phase.RESTORING


def check_truth(entry: SlotState, really: Slot | None) -> None:
    """What serves is what the state says, except while that is being made certain."""
    rollout, outcome = entry.rollout, entry.outcome
    settled = rollout is None or (
        rollout.phase is not Phase.SWITCHING and rollout.heading is not Phase.RESTORING
    )
    if settled and entry.damaged is None:
        assert same_target(really, entry.serving) or (really is None and entry.serving is None)
    if rollout is None and outcome is not None and outcome.state == "active":
        assert entry.proven
        assert entry.looping is None
        assert same_target(outcome.target, entry.serving)


def live(history: History, late: Random) -> World:
    world = World()
    world.document({"vib": "A"}, "new name", newer_telemetry=False)
    for what, *rest in history:
        world.late = late.random() < 0.5
        if what == "document":
            world.document(*rest)
        else:
            world.happens(what, *rest)
        check(world)
    return world


@settings(max_examples=250, deadline=None)
@given(histories, st.randoms(use_true_random=False))
def test_whatever_happens_the_state_tells_the_truth_and_no_rollout_is_stuck(
    history: History, late: Random
) -> None:
    world = live(history, late)
    # Left in peace, it comes to an end.
    for _ in range(40):
        for name in list(world.doing):
            world.ends(world.doing.pop(name), "ok")
            check(world)
    assert all(entry.rollout is None for entry in world.state.slots.values())


@pytest.mark.parametrize("seed", range(10))
def test_long_histories_keep_the_same_promises(seed: int) -> None:
    """Hypothesis finds the short ones; these go where many rollouts meet."""
    choose = Random(seed)
    packs = "ABCa"
    for _ in range(50):
        history: History = []
        for _ in range(80):
            kind = choose.random()
            slots = {each: choose.choice(packs) for each in SLOTS if choose.random() < 0.9}
            if kind < 0.15:
                name = choose.choice(["same name", "new name"])
                history.append(("document", slots, name, choose.random() < 0.2))
            elif kind < 0.45:
                history.append((choose.choice(TROUBLES), choose.choice(SLOTS)))
            else:
                history.append(("ok", choose.choice(SLOTS)))
        live(history, choose)
