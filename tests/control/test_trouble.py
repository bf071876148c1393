"""What keeps dying, what is damaged on disk, and what is fetched again."""

from __future__ import annotations

from agent.control import events as e
from agent.control.lifecycle import MAX_REFETCHES, step
from agent.control.reporting import build_report
from agent.control.state import DeviceState, Phase, packs_needed
from agent.documents.report import Failure
from tests.control.stories import (
    ALTERED,
    DYING,
    LASTING,
    PASSING,
    A,
    B,
    C,
    again,
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


def reported(state: DeviceState) -> tuple[str, str, Failure | None]:
    found = build_report(state, agent="1", device="d", facts={}).slots["vib"]
    return found.state, found.wanted, found.error


# -- a crash loop ---------------------------------------------------------------------------------


def test_a_crash_loop_while_a_newer_pack_cannot_be_fetched_goes_back_and_then_on() -> None:
    state = deploy(serving_b_after_a(), "three", Phase.FETCHING, vib=slot(C))
    state = fails(state, PASSING).state
    looped = dies(state)
    assert [type(action) for action in looped.actions] == [e.Abandon, e.Restore]
    assert packs_needed(looped.state) == {A, B, C}
    assert reported(looped.state) == ("failed", C, DYING)
    went_on = restored(looped.state)
    assert serving(went_on.state) == A
    assert (outcome(went_on.state).state, outcome(went_on.state).target.pack) == ("rolled_back", B)
    assert [type(action) for action in went_on.actions] == [e.Fetch]
    assert serving(run_to(went_on.state, None)) == C


def test_a_crash_loop_lets_a_pack_through_that_is_here_already() -> None:
    state = deploy(serving_b_after_a(), "three", Phase.QUALIFYING, vib=slot(C))
    looped = dies(state)
    assert looped.actions == ()
    assert rollout(looped.state).phase is Phase.QUALIFYING
    assert fails(looped.state, LASTING).state.slots["vib"].rollout is None
    assert isinstance(dies(fails(looped.state, LASTING).state).actions[-1], e.Restore)


def test_the_same_crash_loop_again_is_no_news_to_write_down() -> None:
    state = dies(serving_a()).state
    assert dies(state).state is state


def test_a_pack_that_recovers_from_its_crash_loop_is_active_again() -> None:
    state = dies(serving_a()).state
    assert reported(state) == ("failed", A, DYING)
    well = step(state, e.Recovered("vib", A)).state
    assert reported(well) == ("active", A, None)
    assert step(well, e.Recovered("vib", A)).state is well


def test_a_pack_that_recovers_before_it_was_proven_goes_on_probation_first() -> None:
    state = dies(deploy(DeviceState(), "one", Phase.PROBATION, vib=slot(A))).state
    assert outcome(state).state == "failed"
    watched = step(state, e.Recovered("vib", A))
    assert [type(action) for action in watched.actions] == [e.Watch]


def test_a_crash_loop_of_what_was_gone_back_to_keeps_what_the_deployment_wants() -> None:
    state = restored(dies(serving_b_after_a()).state).state
    looped = dies(state).state
    assert reported(looped) == ("rolled_back", B, DYING)
    assert reported(step(looped, e.Recovered("vib", A)).state)[:2] == ("rolled_back", B)


# -- going back to a damaged pack -----------------------------------------------------------------


def test_a_damaged_pack_is_fetched_again_to_go_back_to_it() -> None:
    state = dies(serving_b_after_a()).state
    waiting = fails(state, ALTERED)
    assert isinstance(waiting.actions[0], e.Wait)
    state = again(waiting.state)
    assert (rollout(state).phase, rollout(state).target.source) == (Phase.FETCHING, "mqtt:")
    done = run_to(state, None)
    assert (serving(done), previous(done)) == (A, None)
    assert (outcome(done).state, outcome(done).target.pack) == ("rolled_back", B)


def test_going_back_is_given_up_after_three_attempts() -> None:
    state = dies(serving_b_after_a()).state
    for _ in range(2):
        state = again(fails(state, LASTING).state)
    done = fails(state, LASTING)
    assert done.actions == ()
    assert (serving(done.state), previous(done.state)) == (B, None)
    failure = outcome(done.state).failure
    assert failure is not None
    assert failure.code == DYING.code
    assert LASTING.message in failure.message


def test_a_newer_pack_does_not_wait_for_a_damaged_one() -> None:
    state = deploy(serving_b_after_a(), "three", Phase.FETCHING, vib=slot(C))
    state = dies(state).state
    went_on = fails(state, ALTERED)
    assert [type(action) for action in went_on.actions] == [e.Fetch]
    assert rollout(went_on.state).target.pack == C


# -- what serves is damaged -----------------------------------------------------------------------


def test_what_serves_is_repaired_when_its_pack_is_damaged() -> None:
    state = serving_b_after_a()
    repairing = step(state, e.Unservable("vib", ALTERED))
    assert [type(action) for action in repairing.actions] == [e.Fetch]
    assert reported(repairing.state) == ("fetching", B, ALTERED)
    assert serving(repairing.state) == B
    done = run_to(repairing.state, None)
    assert (serving(done), previous(done)) == (B, A)
    assert reported(done) == ("active", B, None)


def test_a_repair_does_not_change_how_the_last_rollout_ended() -> None:
    state = restored(dies(serving_b_after_a()).state).state
    done = run_to(step(state, e.Unservable("vib", ALTERED)).state, None)
    assert (serving(done), outcome(done).state, outcome(done).target.pack) == (
        A,
        "rolled_back",
        B,
    )


def test_a_repair_that_fails_says_why() -> None:
    state = step(serving_a(), e.Unservable("vib", ALTERED)).state
    done = fails(state, LASTING).state
    assert serving(done) == A
    assert outcome(done).state == "failed"
    assert done.slots["vib"].rollout is None


def test_what_is_damaged_is_repaired_when_the_newer_pack_fails() -> None:
    state = deploy(serving_a(), "two", Phase.FETCHING, vib=slot(B))
    state = step(state, e.Unservable("vib", ALTERED)).state
    assert rollout(state).target.pack == B
    repairing = fails(state, LASTING)
    assert [type(action) for action in repairing.actions] == [e.Fetch]
    done = run_to(repairing.state, None)
    assert (serving(done), outcome(done).state, outcome(done).target.pack) == (A, "failed", B)


def test_a_damaged_pack_on_probation_keeps_what_it_can_go_back_to() -> None:
    state = deploy(serving_a(), "two", Phase.PROBATION, vib=slot(B))
    repairing = step(state, e.Unservable("vib", ALTERED))
    assert [type(action) for action in repairing.actions] == [e.Abandon, e.Fetch]
    assert previous(run_to(repairing.state, None)) == A


# -- attempts -------------------------------------------------------------------------------------


def test_a_bad_network_costs_no_attempt_of_a_later_phase() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    for _ in range(10):
        state = again(fails(state, PASSING).state)
    state = run_to(state, Phase.VERIFYING)
    for _ in range(MAX_REFETCHES):
        state = again(fails(state, ALTERED).state)
        assert rollout(state).phase is Phase.FETCHING
        for _ in range(5):
            state = again(fails(state, PASSING).state)
        state = run_to(state, Phase.VERIFYING)
    done = fails(state, ALTERED).state
    assert done.slots["vib"].rollout is None
    assert outcome(done).failure == ALTERED


def test_a_pack_that_proves_damaged_when_it_is_needed_is_fetched_again() -> None:
    for phase in (Phase.QUALIFYING, Phase.SWITCHING):
        state = deploy(DeviceState(), "one", phase, vib=slot(A))
        assert rollout(again(fails(state, ALTERED).state)).phase is Phase.FETCHING


# -- a lost state ---------------------------------------------------------------------------------


def test_a_lost_state_is_known_as_one_until_a_document_is_accepted() -> None:
    state = step(DeviceState(lost=True), e.DesiredRefused(LASTING, "bad")).state
    assert state.lost
    assert not step(state, desired("one", vib=slot(A))).state.lost
