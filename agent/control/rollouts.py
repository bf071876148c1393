"""What beginning, leaving and taking back a rollout means for a slot: steps that the tables use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec.structs import replace

from agent.control import events as e
from agent.control.state import Aim, DeviceState, Outcome, Phase, Rollout, SlotState
from agent.documents.deployment import Slot
from agent.documents.report import Failure
from agent.errors import FetchPostponed, SourceExpired, SourceMissing

# Performed on entering a phase, and again after a restart in it.
ON_ENTRY: Mapping[Phase, type] = {
    Phase.FETCHING: e.Fetch,
    Phase.VERIFYING: e.Verify,
    Phase.QUALIFYING: e.Qualify,
    Phase.SWITCHING: e.Switch,
    Phase.PROBATION: e.Watch,
    Phase.RESTORING: e.Restore,
}
BACKOFF_FIRST_S = 1.0
BACKOFF_LAST_S = 300.0
# Where a growing pause is of no use. An expired address may be one whose signer's clock was wrong,
# or, at a store that does not say so, a file that was not there yet.
PAUSES_S: Mapping[str, float] = {
    SourceExpired.code: 3600.0,
    SourceMissing.code: 300.0,
    FetchPostponed.code: 60.0,
}


class Step(NamedTuple):
    """The state to save, and then the actions to perform, in order."""

    state: DeviceState
    actions: tuple[e.Action, ...] = ()

    def after(self, *actions: e.Action) -> Step:
        """The same step with actions that come before its own."""
        return Step(self.state, (*actions, *self.actions))


def same_target(one: Slot | None, other: Slot | None) -> bool:
    """Whether two slots ask for the same thing; where a pack comes from does not matter."""
    if one is None or other is None:
        return False
    return one == replace(other, source=one.source, rollout=one.rollout)


def blamed(entry: SlotState, target: Slot | None) -> bool:
    """Whether the last rollout ended with this target failed or taken back."""
    outcome = entry.outcome
    return outcome is not None and outcome.state != "active" and same_target(outcome.target, target)


def with_slot(state: DeviceState, name: str, entry: SlotState) -> DeviceState:
    return replace(state, slots={**state.slots, name: entry})


def with_rollout(state: DeviceState, name: str, entry: SlotState, rollout: Rollout) -> Step:
    """Put a rollout into its phase, and ask for what the phase does."""
    moved = replace(entry, rollout=rollout)
    return Step(with_slot(state, name, moved), (entry_action(name, rollout),))


def entry_action(name: str, rollout: Rollout) -> e.Action:
    if rollout.phase is Phase.WAITING:
        return e.Wait(name, rollout.id, rollout.target, _pause_s(rollout))
    action: e.Action = ON_ENTRY[rollout.phase](name, rollout.id, rollout.target)
    return action


def _pause_s(rollout: Rollout) -> float:
    code = rollout.failure.code if rollout.failure is not None else ""
    return PAUSES_S.get(code, backoff_s(rollout.attempts - 1))


def backoff_s(attempts: int) -> float:
    """Seconds to wait before attempt number `attempts` + 1; the caller adds jitter."""
    return min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2.0 ** min(attempts, 10))


def start(state: DeviceState, name: str, entry: SlotState, rollout: Rollout) -> Step:
    """Begin a rollout under a new id, in place of the one that runs."""
    numbered = replace(rollout, id=state.next_rollout)
    counted = replace(state, next_rollout=state.next_rollout + 1)
    return with_rollout(counted, name, entry, numbered).after(*abandon(name, entry))


def abandon(name: str, entry: SlotState) -> list[e.Action]:
    return [e.Abandon(name, entry.rollout.id)] if entry.rollout is not None else []


def begin(state: DeviceState, name: str, entry: SlotState, aim: Aim) -> Step:
    """Set out for an aim from what serves, which is known for certain.

    What serves already, well and proven, is `active` at once; what serves unproven goes on with a
    probation; everything else runs through all phases.
    """
    target = aim.target
    if aim.back and entry.outcome is not None and same_target(entry.previous, target):
        return go_back(state, name, entry, entry.outcome)
    well = entry.looping is None and entry.damaged is None and not blamed(entry, target)
    if not well or not same_target(entry.serving, target):
        return start(state, name, entry, Rollout(0, target, Phase.FETCHING, aim.deployment))
    entry = replace(entry, serving=target)
    if not entry.proven:
        return start(state, name, entry, Rollout(0, target, Phase.PROBATION, aim.deployment))
    outcome = Outcome("active", target, aim.deployment)
    done = replace(entry, rollout=None, outcome=outcome)
    return Step(with_slot(state, name, done), tuple(abandon(name, entry)))


def go_back(
    state: DeviceState, name: str, entry: SlotState, left: Outcome, then: Aim | None = None
) -> Step:
    """Begin the way back to the previous pack; `left` says what is left, and why."""
    assert entry.previous is not None
    restoring = Rollout(
        0,
        entry.previous,
        Phase.RESTORING,
        left.deployment,
        failure=left.failure,
        back=True,
        then=then,
    )
    return start(state, name, replace(entry, outcome=left), restoring)


def put_right(state: DeviceState, name: str, entry: SlotState, then: Aim) -> Step:
    """Leave a switch that may have happened: first make certain of what serves, then go on.

    Without this the state could say that one pack serves while another does.
    """
    if entry.serving is None:
        step = begin(state, name, replace(entry, rollout=None), then)
        return step.after(*abandon(name, entry), e.StopSlot(name))
    restoring = Rollout(0, entry.serving, Phase.RESTORING, then.deployment, then=then)
    return start(state, name, entry, restoring)


def repair(state: DeviceState, name: str, entry: SlotState, failure: Failure) -> Step:
    """Fetch again what serves, since its pack on disk is damaged."""
    assert entry.serving is not None
    running = entry.rollout
    deployment = state.deployment if running is None else running.deployment
    back = running is None or running.back
    rollout = Rollout(0, entry.serving, Phase.FETCHING, deployment, failure=failure, back=back)
    return start(state, name, entry, rollout)


def taken_over(entry: SlotState, rollout: Rollout) -> SlotState:
    """The rollout's target serves now."""
    target = rollout.target
    restored = rollout.phase is Phase.RESTORING
    if same_target(entry.serving, target):
        looping = entry.looping if restored else None
        return replace(entry, serving=target, looping=looping, damaged=None)
    if rollout.back or restored:
        # What was left is no good to go back to.
        return SlotState(target, proven=restored, outcome=_taken_back(entry, rollout))
    # One that keeps dying is the last choice.
    good = entry.proven and not (entry.looping is not None and entry.previous is not None)
    previous = entry.serving if good else entry.previous
    if same_target(previous, target):
        previous = None
    return SlotState(target, previous=previous, outcome=entry.outcome)


def _taken_back(entry: SlotState, rollout: Rollout) -> Outcome:
    left = entry.outcome or Outcome("failed", rollout.target, failure=rollout.failure)
    return Outcome("rolled_back", left.target, rollout.deployment, left.failure)
