"""What a newer document changes, and what it leaves alone."""

from __future__ import annotations

import pytest

from agent.control import events as e
from agent.control.lifecycle import step
from agent.control.state import DeviceState, Phase
from tests.control.stories import (
    ALTERED,
    LASTING,
    PASSING,
    A,
    B,
    C,
    again,
    arrives,
    deploy,
    desired,
    dies,
    fails,
    outcome,
    previous,
    restored,
    rollout,
    run_to,
    serving,
    serving_a,
    serving_b_after_a,
    slot,
)

# -- leaving a switch -----------------------------------------------------------------------------


def test_a_switch_that_is_left_is_put_right_before_the_slot_is_active_again() -> None:
    state = deploy(serving_a(), "two", Phase.SWITCHING, vib=slot(B))
    left = rollout(state).id
    back = step(state, desired("three", vib=slot(A)))
    assert [type(action) for action in back.actions] == [e.Abandon, e.Restore]
    assert rollout(back.state).target.pack == A
    # The switch happened all the same; its fact comes too late to be believed.
    late = step(back.state, e.Switched("vib", left))
    assert late.state is back.state
    done = restored(late.state).state
    assert serving(done) == A
    assert (outcome(done).state, outcome(done).deployment) == ("active", "three")


def test_a_switch_left_for_a_third_pack_is_put_right_first() -> None:
    state = deploy(serving_a(), "two", Phase.SWITCHING, vib=slot(B))
    state = step(state, desired("three", vib=slot(C))).state
    assert (rollout(state).phase, rollout(state).target.pack) == (Phase.RESTORING, A)
    went_on = restored(state)
    assert [type(action) for action in went_on.actions] == [e.Fetch]
    done = run_to(went_on.state, None)
    assert (serving(done), previous(done)) == (C, A)


def test_a_first_switch_that_is_left_is_stopped_since_nothing_served() -> None:
    state = deploy(DeviceState(), "one", Phase.SWITCHING, vib=slot(A))
    left = step(state, desired("two", vib=slot(B)))
    assert [type(action) for action in left.actions] == [e.Abandon, e.StopSlot, e.Fetch]


def test_what_cannot_be_put_right_is_never_called_active() -> None:
    state = deploy(serving_a(), "two", Phase.SWITCHING, vib=slot(B))
    state = step(state, desired("three", vib=slot(A))).state
    for _ in range(2):
        state = again(fails(state, LASTING).state)
    state = fails(state, LASTING).state
    assert (rollout(state).phase, rollout(state).target.pack) == (Phase.FETCHING, A)
    assert state.slots["vib"].damaged == LASTING


def test_a_document_waits_while_a_slot_is_being_restored() -> None:
    state = dies(deploy(serving_a(), "two", Phase.PROBATION, vib=slot(B))).state
    waiting = step(state, desired("three", vib=slot(C)))
    assert waiting.actions == ()
    went_on = restored(waiting.state).state
    assert (serving(went_on), rollout(went_on).target.pack) == (A, C)


def test_a_rollback_during_a_switch_makes_certain_of_what_serves_first() -> None:
    state = deploy(serving_b_after_a(), "three", Phase.SWITCHING, vib=slot(C))
    state = step(state, e.RollbackRequested("vib")).state
    assert (rollout(state).phase, rollout(state).target.pack) == (Phase.RESTORING, B)
    state = restored(state).state
    assert (rollout(state).phase, rollout(state).target.pack) == (Phase.RESTORING, A)
    done = restored(state).state
    assert serving(done) == A
    assert (outcome(done).state, outcome(done).target.pack) == ("rolled_back", C)


# -- the same target under a newer document -------------------------------------------------------


def test_a_new_source_begins_the_fetch_again() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    old = rollout(state).id
    moved = step(state, desired("two", vib=slot(A, source="https://other.example/")))
    assert [type(action) for action in moved.actions] == [e.Abandon, e.Fetch]
    assert moved.actions[0] == e.Abandon("vib", old)
    assert isinstance(moved.actions[1], e.Fetch)
    assert moved.actions[1].target.source == "https://other.example/"


def test_a_new_source_ends_the_wait_for_the_old_one() -> None:
    state = fails(step(DeviceState(), desired("one", vib=slot(A))).state, PASSING).state
    moved = step(state, desired("two", vib=slot(A, source="https://other.example/")))
    assert [type(action) for action in moved.actions] == [e.Abandon, e.Fetch]
    assert rollout(moved.state).attempts == 0


def test_the_same_under_a_new_name_ends_the_wait() -> None:
    state = fails(step(DeviceState(), desired("one", vib=slot(A))).state, PASSING).state
    moved = step(state, desired("two", vib=slot(A)))
    assert [type(action) for action in moved.actions] == [e.Abandon, e.Fetch]


@pytest.mark.parametrize(
    "phase", [Phase.VERIFYING, Phase.QUALIFYING, Phase.SWITCHING, Phase.PROBATION]
)
def test_a_later_phase_goes_on_with_the_new_settings(phase: Phase) -> None:
    state = deploy(DeviceState(), "one", phase, vib=slot(A))
    wanted = slot(A, source="https://other.example/", probation_s=3.0)
    moved = step(state, desired("two", vib=wanted))
    assert moved.actions == ()
    assert rollout(moved.state).phase is phase
    assert rollout(moved.state).target == wanted
    assert rollout(moved.state).deployment == "two"


def test_where_a_serving_pack_comes_from_changes_without_a_rollout() -> None:
    wanted = slot(A, source="https://other.example/")
    moved = step(serving_a(), desired("two", vib=wanted))
    assert moved.actions == ()
    assert moved.state.slots["vib"].serving == wanted
    assert outcome(moved.state).deployment == "two"


# -- what failed, or was taken back ---------------------------------------------------------------


def failed_b() -> DeviceState:
    """A serves in two slots, and B failed in one of them."""
    state = deploy(DeviceState(), "one", vib=slot(A), cam=slot(A, "frames/+"))
    state = step(state, desired("two", vib=slot(B), cam=slot(A, "frames/+"))).state
    return fails(run_to(state, Phase.QUALIFYING), LASTING).state


def test_a_document_about_another_slot_leaves_a_failed_target_alone() -> None:
    state = failed_b()
    after = step(state, desired("three", vib=slot(B), cam=slot(C, "frames/+")))
    assert after.state.slots["vib"] == state.slots["vib"]
    assert [(type(action), action.slot) for action in after.actions] == [(e.Fetch, "cam")]


def test_a_document_about_telemetry_leaves_a_failed_target_alone() -> None:
    state = failed_b()
    wanted = {"vib": slot(B), "cam": slot(A, "frames/+")}
    after = step(state, arrives("three", wanted, interval_s=5.0))
    assert after.actions == ()
    assert after.state.slots["vib"] == state.slots["vib"]


def test_the_same_document_under_its_old_name_leaves_a_failed_target_alone() -> None:
    state = failed_b()
    wanted = {"vib": slot(B), "cam": slot(A, "frames/+")}
    assert step(state, arrives("two", wanted, digest="other spaces")).actions == ()


def test_the_same_document_under_a_new_name_tries_a_failed_target_again() -> None:
    wanted = {"vib": slot(B), "cam": slot(A, "frames/+")}
    after = step(failed_b(), arrives("three", wanted))
    assert [(type(action), action.slot) for action in after.actions] == [(e.Fetch, "vib")]


def test_a_failed_target_from_another_source_is_tried_at_once() -> None:
    wanted = slot(B, source="https://other.example/")
    after = step(failed_b(), desired("three", vib=wanted, cam=slot(C, "frames/+")))
    assert {(type(action), action.slot) for action in after.actions} == {
        (e.Fetch, "vib"),
        (e.Fetch, "cam"),
    }


def test_a_pack_being_taken_back_is_not_active_because_a_document_names_it() -> None:
    state = dies(serving_b_after_a()).state
    same = step(state, desired("three", vib=slot(B), cam=slot(C, "frames/+")))
    done = restored(same.state).state
    assert (serving(done), outcome(done).state, outcome(done).target.pack) == (
        A,
        "rolled_back",
        B,
    )


def test_a_pack_that_was_taken_back_is_served_again_only_after_a_rollout() -> None:
    state = restored(dies(serving_b_after_a()).state).state
    after = step(state, desired("three", vib=slot(B)))
    assert [type(action) for action in after.actions] == [e.Fetch]
    assert (serving(run_to(after.state, None)), serving(after.state)) == (B, A)


def test_a_pack_that_keeps_dying_is_not_active_because_a_document_names_it() -> None:
    state = dies(serving_a()).state
    state = fails(deploy(state, "two", Phase.QUALIFYING, vib=slot(B)), LASTING).state
    after = step(state, desired("three", vib=slot(A)))
    assert rollout(after.state).phase is Phase.FETCHING


def test_what_serves_on_probation_goes_on_with_it_when_it_is_wanted_again() -> None:
    state = deploy(serving_a(), "two", Phase.PROBATION, vib=slot(B))
    state = step(state, desired("three", vib=slot(C))).state
    after = step(state, desired("four", vib=slot(B)))
    assert [type(action) for action in after.actions] == [e.Abandon, e.Watch]


def test_what_a_pack_goes_back_to_while_it_is_fetched_again_can_be_overtaken() -> None:
    state = dies(serving_b_after_a()).state
    state = fails(state, ALTERED).state
    assert rollout(state).heading is Phase.FETCHING
    assert step(state, desired("three", vib=slot(B), cam=slot(C))).state.slots["vib"].rollout
    after = step(state, desired("three", vib=slot(C)))
    assert [type(action) for action in after.actions] == [e.Abandon, e.Fetch]
