"""What the life of a deployment promises, whatever happens in whatever order."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control import events as e
from agent.control.lifecycle import ON_ENTRY, TRANSITIONS, resume, step
from agent.control.state import DeviceState, Phase, Qualification, packs_needed
from agent.documents.deployment import Deployment, Input, Output, Slot
from agent.documents.report import Failure
from agent.errors import ImpossibleEvent

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
QUALIFIED = Qualification("main", "onnx")
LASTING = Failure(code="self_test_failed", message="it answers 2, expected 4")
PASSING = Failure(code="fetch_failed", message="no answer", retryable=True)


def slot(pack: str, topic: str = "sensors/+") -> Slot:
    return Slot(pack=pack, input=Input(topic), output=Output("out/{1}"), source="mqtt:")


def desired(name: str, **slots: Slot) -> e.DesiredArrived:
    return e.DesiredArrived(Deployment(schema=1, deployment=name, slots=slots), digest=name)


def rollout_of(state: DeviceState, name: str = "vib") -> int:
    rollout = state.slots[name].rollout
    assert rollout is not None
    return rollout.id


def run_to_the_end(state: DeviceState, name: str = "vib") -> DeviceState:
    """Let every step of the slot's rollout succeed."""
    for make in (
        e.Fetched,
        e.Verified,
        lambda slot, number: e.Qualified(slot, number, QUALIFIED),
        e.Switched,
        e.ProbationPassed,
    ):
        state = step(state, make(name, rollout_of(state, name))).state
    return state


def serving(state: DeviceState, name: str = "vib") -> str | None:
    found = state.slots[name].serving
    return found.pack if found is not None else None


def test_a_deployment_runs_through_its_phases_and_ends_active() -> None:
    first = step(DeviceState(), desired("one", vib=slot(A)))
    assert [type(action) for action in first.actions] == [e.Fetch]
    done = run_to_the_end(first.state)
    assert serving(done) == A
    assert done.slots["vib"].rollout is None
    assert done.slots["vib"].outcome is not None
    assert done.slots["vib"].outcome.state == "active"
    assert done.qualified == {A: QUALIFIED}


def test_an_equal_desired_document_is_no_news() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    again = step(state, desired("one", vib=slot(A)))
    assert again.state is state
    assert again.actions == ()


def test_a_malformed_desired_document_changes_no_slot() -> None:
    state = run_to_the_end(step(DeviceState(), desired("one", vib=slot(A))).state)
    refused = step(state, e.DesiredRefused(LASTING, "bad"))
    assert refused.actions == ()
    assert refused.state.slots == state.slots
    assert refused.state.refused == LASTING


def test_a_failed_step_leaves_the_old_pack_serving_and_says_why() -> None:
    state = run_to_the_end(step(DeviceState(), desired("one", vib=slot(A))).state)
    state = step(state, desired("two", vib=slot(B))).state
    state = step(state, e.Fetched("vib", rollout_of(state))).state
    state = step(state, e.Verified("vib", rollout_of(state))).state
    state = step(state, e.StepFailed("vib", rollout_of(state), LASTING)).state
    outcome = state.slots["vib"].outcome
    assert serving(state) == A
    assert outcome is not None
    assert (outcome.state, outcome.failure, outcome.target.pack) == ("failed", LASTING, B)


def test_a_newer_document_overtakes_a_running_rollout() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    old = rollout_of(state)
    new = step(state, desired("two", vib=slot(B)))
    assert new.actions[0] == e.Abandon("vib", old)
    assert isinstance(new.actions[1], e.Fetch)
    late = step(new.state, e.Fetched("vib", old))
    assert late.state is new.state


def test_an_absent_slot_is_stopped_and_an_unchanged_one_is_left_alone() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A), cam=slot(B))).state
    state = run_to_the_end(run_to_the_end(state), "cam")
    after = step(state, desired("two", vib=slot(A)))
    assert after.actions == (e.StopSlot("cam"),)
    assert set(after.state.slots) == {"vib"}


def test_a_source_that_is_away_is_asked_again_for_ever_with_growing_pauses() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    pauses: list[float] = []
    for _ in range(15):
        failed = step(state, e.StepFailed("vib", rollout_of(state), PASSING))
        (wait,) = failed.actions
        assert isinstance(wait, e.Wait)
        pauses.append(wait.seconds)
        state = step(failed.state, e.RetryDue("vib", rollout_of(state))).state
    assert pauses == sorted(pauses)
    assert pauses[0] == 1.0
    assert pauses[-1] == 300.0


def test_a_pack_that_keeps_proving_altered_is_given_up() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    altered = Failure(code="store_corrupt", message="altered", retryable=True)
    for _ in range(2):
        state = step(state, e.Fetched("vib", rollout_of(state))).state
        state = step(state, e.StepFailed("vib", rollout_of(state), altered)).state
        if state.slots["vib"].rollout is None:
            break
        state = step(state, e.RetryDue("vib", rollout_of(state))).state
    outcome = state.slots["vib"].outcome
    assert outcome is not None
    assert outcome.state == "failed"


def test_a_crash_loop_on_probation_brings_the_last_proven_pack_back() -> None:
    state = run_to_the_end(step(DeviceState(), desired("one", vib=slot(A))).state)
    state = step(state, desired("two", vib=slot(B))).state
    for event in (
        e.Fetched("vib", rollout_of(state)),
        e.Verified("vib", rollout_of(state)),
        e.Qualified("vib", rollout_of(state), QUALIFIED),
        e.Switched("vib", rollout_of(state)),
    ):
        state = step(state, event).state
    assert serving(state) == B
    looped = step(state, e.CrashLooped("vib", B, LASTING))
    assert isinstance(looped.actions[-1], e.Restore)
    assert looped.actions[-1].target.pack == A
    done = step(looped.state, e.Restored("vib", rollout_of(looped.state))).state
    outcome = done.slots["vib"].outcome
    assert serving(done) == A
    assert outcome is not None
    assert (outcome.state, outcome.target.pack, outcome.failure) == ("rolled_back", B, LASTING)


def test_a_pack_replaced_on_probation_is_not_what_the_next_one_goes_back_to() -> None:
    state = run_to_the_end(step(DeviceState(), desired("one", vib=slot(A))).state)
    for name, pack in (("two", B), ("three", C)):
        state = step(state, desired(name, vib=slot(pack))).state
        for event in (
            e.Fetched("vib", rollout_of(state)),
            e.Verified("vib", rollout_of(state)),
            e.Qualified("vib", rollout_of(state), QUALIFIED),
            e.Switched("vib", rollout_of(state)),
        ):
            state = step(state, event).state
    previous = state.slots["vib"].previous
    assert serving(state) == C
    assert previous is not None
    assert previous.pack == A


def test_a_person_can_go_back_to_the_previous_pack() -> None:
    state = run_to_the_end(step(DeviceState(), desired("one", vib=slot(A))).state)
    state = run_to_the_end(step(state, desired("two", vib=slot(B))).state)
    back = step(state, e.RollbackRequested("vib"))
    done = step(back.state, e.Restored("vib", rollout_of(back.state))).state
    assert serving(done) == A


def test_every_phase_but_waiting_has_an_entry_action_and_every_row_a_known_phase() -> None:
    assert set(ON_ENTRY) == set(Phase) - {Phase.WAITING}
    assert {phase for phase, _ in TRANSITIONS} <= set(Phase)


def test_an_event_without_a_row_is_a_bug() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    with pytest.raises(ImpossibleEvent, match="Switched arrived in fetching"):
        step(state, e.Switched("vib", rollout_of(state)))


EVENTS = st.sampled_from(
    ["a", "b", "c", "none", "ok", "lasting", "passing", "late", "crash", "rollback", "restart"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_only_a_proven_pack_serves_and_the_last_good_one_is_kept(
    history: list[str],
) -> None:
    state = DeviceState()
    proven: set[str] = set()
    for number, what in enumerate(history):
        before = state
        state = _apply(state, what, number, proven)
        for entry in state.slots.values():
            for kept in (entry.serving, entry.previous):
                if kept is not None:
                    assert kept.pack in proven
                    assert kept.pack in packs_needed(state)
        for name, entry in before.slots.items():
            if entry.serving is not None and name in state.slots:
                assert state.slots[name].serving is not None
        # What is saved can be read back, and resuming asks for one action per running rollout.
        again = msgspec.json.decode(msgspec.json.encode(state), type=DeviceState)
        assert again == state
        running = sum(entry.rollout is not None for entry in state.slots.values())
        assert len(resume(again)) == running


def _apply(state: DeviceState, what: str, number: int, proven: set[str]) -> DeviceState:
    packs = {"a": A, "b": B, "c": C}
    if what in packs:
        return step(state, desired(str(number), vib=slot(packs[what]))).state
    if what == "none":
        return step(state, desired(str(number))).state
    if what == "restart":
        return msgspec.json.decode(msgspec.json.encode(state), type=DeviceState)
    if "vib" not in state.slots:
        return state
    entry = state.slots["vib"]
    if what == "rollback":
        return step(state, e.RollbackRequested("vib")).state
    if what == "crash" and entry.serving is not None:
        return step(state, e.CrashLooped("vib", entry.serving.pack, LASTING)).state
    if entry.rollout is None:
        return state
    if what == "late":
        return step(state, e.Fetched("vib", entry.rollout.id - 1)).state
    return _outcome_of_step(state, what, proven)


def _outcome_of_step(state: DeviceState, what: str, proven: set[str]) -> DeviceState:
    rollout = state.slots["vib"].rollout
    assert rollout is not None
    if rollout.phase is Phase.WAITING:
        return step(state, e.RetryDue("vib", rollout.id)).state
    if what in ("lasting", "passing") and rollout.phase is not Phase.PROBATION:
        failure = LASTING if what == "lasting" else PASSING
        return step(state, e.StepFailed("vib", rollout.id, failure)).state
    if rollout.phase is Phase.QUALIFYING:
        proven.add(rollout.target.pack)
        return step(state, e.Qualified("vib", rollout.id, QUALIFIED)).state
    done: dict[Phase, Callable[[str, int], e.Event]] = {
        Phase.FETCHING: e.Fetched,
        Phase.VERIFYING: e.Verified,
        Phase.SWITCHING: e.Switched,
        Phase.PROBATION: e.ProbationPassed,
        Phase.RESTORING: e.Restored,
    }
    return step(state, done[rollout.phase]("vib", rollout.id)).state
