"""What the life of a deployment promises, whatever happens in whatever order."""

from __future__ import annotations

import pytest

from agent.control import events as e
from agent.control.lifecycle import TRANSITIONS, resume, step
from agent.control.rollouts import ON_ENTRY
from agent.control.state import DeviceState, Phase
from agent.documents.choice import Choice, Way
from agent.documents.report import Failure
from agent.errors import (
    AgentError,
    FetchPostponed,
    ImpossibleEvent,
    SourceExpired,
    SourceMissing,
)
from tests.control.stories import (
    LASTING,
    PASSING,
    QUALIFIED,
    A,
    B,
    C,
    desired,
    rollout,
    serving,
    slot,
)


def rollout_of(state: DeviceState, name: str = "vib") -> int:
    return rollout(state, name).id


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


def test_what_was_chosen_on_another_device_is_proven_and_chosen_anew_while_it_serves() -> None:
    state = run_to_the_end(step(DeviceState(), desired("one", vib=slot(A))).state)
    again = step(state, e.Outdated("vib", A))
    assert isinstance(again.actions[0], e.Qualify)
    assert again.state.slots["vib"].serving == slot(A)
    other = Choice(Way("main", "tflite"))
    chosen = step(again.state, e.Qualified("vib", rollout_of(again.state), other))
    assert chosen.state.qualified == {A: other}
    state = chosen.state
    for fact in (e.Switched, e.ProbationPassed):
        state = step(state, fact("vib", rollout_of(state))).state
    done = state.slots["vib"]
    assert (done.serving, done.rollout) == (slot(A), None)
    assert done.outcome is not None
    assert done.outcome.state == "active"


def test_what_is_under_way_or_ails_is_not_chosen_anew() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    assert step(state, e.Outdated("vib", A)).state is state
    served = run_to_the_end(state)
    assert step(served, e.Outdated("vib", B)).state is served
    assert step(served, e.Outdated("cam", A)).state is served


def test_a_slot_that_is_gone_is_left_again_after_a_restart_until_that_is_done() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    gone = step(state, desired("two")).state
    assert gone.leaving == ("vib",)
    assert resume(gone) == (e.StopSlot("vib"),)
    done = step(gone, e.SlotStopped("vib")).state
    assert (done.leaving, resume(done)) == ((), ())


def test_a_slot_that_comes_back_is_not_left_any_more() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    gone = step(state, desired("two")).state
    back = step(gone, desired("three", vib=slot(A))).state
    assert back.leaving == ()
    assert step(back, e.SlotStopped("vib")).state is back


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


def test_a_source_that_brings_something_each_time_is_asked_again_soon() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    for progressed, seconds in (
        (False, 1.0),
        (False, 2.0),
        (False, 4.0),
        (True, 1.0),
        (False, 2.0),
    ):
        failed = step(state, e.StepFailed("vib", rollout_of(state), PASSING, progressed))
        (wait,) = failed.actions
        assert isinstance(wait, e.Wait)
        assert wait.seconds == seconds
        state = step(failed.state, e.RetryDue("vib", rollout_of(state))).state


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(SourceExpired, 3600.0), (SourceMissing, 300.0), (FetchPostponed, 60.0)],
)
def test_what_a_growing_pause_does_not_help_has_a_pause_of_its_own(
    error: type[AgentError], seconds: float
) -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    failure = Failure(error.code, "no", retryable=error.retryable)
    for _ in range(3):
        failed = step(state, e.StepFailed("vib", rollout_of(state), failure))
        assert failed.actions == (e.Wait("vib", rollout_of(state), slot(A), seconds),)
        state = step(failed.state, e.RetryDue("vib", rollout_of(state))).state


def test_a_fresh_address_for_the_same_pack_ends_the_wait_at_once() -> None:
    old, new = (slot(A, source=f"https://models/p/?sig={one}") for one in "12")
    state = step(DeviceState(), desired("one", vib=old)).state
    expired = Failure(SourceExpired.code, "the server answers 403", retryable=True)
    state = step(state, e.StepFailed("vib", rollout_of(state), expired)).state
    renewed = step(state, desired("two", vib=new))
    assert isinstance(renewed.actions[0], e.Abandon)
    assert renewed.actions[1] == e.Fetch("vib", rollout_of(renewed.state), new)
    assert serving(run_to_the_end(renewed.state)) == A


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
