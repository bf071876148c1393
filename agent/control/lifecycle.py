"""The life of a deployment as two tables and one pure function.

The caller saves the new state, then performs the actions; each action ends in exactly one event.
After a restart it loads the state and performs `resume(state)`: what is to be done follows from the
phase alone, so there is no second list to keep in step, and every action must be safe to repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec.structs import replace

from agent.control import events as e
from agent.control.state import (
    DeviceState,
    Outcome,
    Phase,
    Qualification,
    Rollout,
    SlotState,
    packs_needed,
)
from agent.documents.deployment import Slot
from agent.documents.report import Failure
from agent.errors import ImpossibleEvent

TRANSITIONS: Mapping[tuple[Phase, type], Phase | None] = {
    (Phase.FETCHING, e.Fetched): Phase.VERIFYING,
    (Phase.VERIFYING, e.Verified): Phase.QUALIFYING,
    (Phase.QUALIFYING, e.Qualified): Phase.SWITCHING,
    (Phase.SWITCHING, e.Switched): Phase.PROBATION,
    (Phase.PROBATION, e.ProbationPassed): None,
    (Phase.RESTORING, e.Restored): None,
    # A failed step ends the rollout, or waits and comes back when its failure is worth a retry.
    (Phase.FETCHING, e.StepFailed): None,
    (Phase.VERIFYING, e.StepFailed): None,
    (Phase.QUALIFYING, e.StepFailed): None,
    (Phase.SWITCHING, e.StepFailed): None,
    (Phase.RESTORING, e.StepFailed): None,
}

# Performed on entering a phase, and again after a restart in it.
ON_ENTRY: Mapping[Phase, type] = {
    Phase.FETCHING: e.Fetch,
    Phase.VERIFYING: e.Verify,
    Phase.QUALIFYING: e.Qualify,
    Phase.SWITCHING: e.Switch,
    Phase.PROBATION: e.Watch,
    Phase.RESTORING: e.Restore,
}

# Where a failed step may send the rollout: a pack found altered is fetched again, once per attempt.
RETRY_FROM: Mapping[Phase, Phase] = {
    Phase.FETCHING: Phase.FETCHING,
    Phase.VERIFYING: Phase.FETCHING,
    Phase.QUALIFYING: Phase.QUALIFYING,
    Phase.SWITCHING: Phase.SWITCHING,
    Phase.RESTORING: Phase.RESTORING,
}
# A source may be away for ever; what fails on the device itself gets a few tries.
MAX_ATTEMPTS: Mapping[Phase, int] = {
    Phase.VERIFYING: 2,
    Phase.QUALIFYING: 3,
    Phase.SWITCHING: 3,
}
BACKOFF_FIRST_S = 1.0
BACKOFF_LAST_S = 300.0


class Step(NamedTuple):
    """The state to save, and then the actions to perform, in order."""

    state: DeviceState
    actions: tuple[e.Action, ...]


def step(state: DeviceState, event: e.Event) -> Step:
    """Advance the device by one fact.

    Args:
        state: Where the device stands. Never modified.
        event: What happened.

    Returns:
        The new state and what to do once it is saved. A fact about a rollout that was left, or a
        desired document that is no news, changes nothing.

    Raises:
        ImpossibleEvent: No row of the table fits. No document or device can cause it: a bug.
    """
    if isinstance(event, e.DesiredArrived):
        return _desired(state, event)
    if isinstance(event, e.DesiredRefused):
        if event.digest == state.desired_digest:
            return Step(state, ())
        refused = replace(state, desired_digest=event.digest, refused=event.failure)
        return Step(refused, ())
    if isinstance(event, e.CrashLooped):
        return _crash_looped(state, event)
    if isinstance(event, e.RollbackRequested):
        return _rollback(state, event)
    return _advance(state, event)


def resume(state: DeviceState) -> tuple[e.Action, ...]:
    """The actions that a restart must perform again: the entry action of each running rollout."""
    return tuple(
        _entry(name, entry.rollout)
        for name, entry in state.slots.items()
        if entry.rollout is not None
    )


def backoff_s(attempts: int) -> float:
    """Seconds to wait before attempt number `attempts` + 1; the caller adds jitter."""
    return min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2.0 ** min(attempts, 10))


def _desired(state: DeviceState, event: e.DesiredArrived) -> Step:
    if event.digest == state.desired_digest:
        return Step(state, ())
    wanted = event.deployment
    slots: dict[str, SlotState] = {}
    actions: list[e.Action] = []
    number = state.next_rollout
    for name, entry in state.slots.items():
        if name not in wanted.slots:
            actions += _abandon(name, entry)
            actions.append(e.StopSlot(name))
    for name, target in wanted.slots.items():
        entry = state.slots.get(name, SlotState())
        decided, needed = _aim(name, entry, target, wanted.deployment, number)
        slots[name] = decided
        actions += needed
        number += 1
    new = replace(
        state,
        deployment=wanted.deployment,
        desired_digest=event.digest,
        refused=None,
        unknown_fields=event.unknown_fields,
        telemetry=wanted.telemetry,
        slots=slots,
        next_rollout=number,
    )
    return Step(new, tuple(actions))


def _aim(
    name: str, entry: SlotState, target: Slot, deployment: str, number: int
) -> tuple[SlotState, list[e.Action]]:
    """Point one slot at its target: keep what already does, else begin a rollout."""
    if entry.rollout is not None and same_target(entry.rollout.target, target):
        if entry.rollout.phase is not Phase.RESTORING:
            return entry, []
    elif entry.serving is not None and same_target(entry.serving, target):
        outcome = Outcome("active", target, deployment)
        return replace(entry, rollout=None, outcome=outcome), _abandon(name, entry)
    rollout = Rollout(number, target, Phase.FETCHING, deployment)
    actions = [*_abandon(name, entry), _entry(name, rollout)]
    return replace(entry, rollout=rollout), actions


def same_target(one: Slot, other: Slot) -> bool:
    """Whether two slots ask for the same thing; where a pack comes from does not matter."""
    return one == replace(other, source=one.source, rollout=one.rollout)


def _advance(state: DeviceState, event: e.RolloutEvent) -> Step:
    entry = state.slots.get(event.slot)
    rollout = entry.rollout if entry is not None else None
    if entry is None or rollout is None or rollout.id != event.rollout:
        return Step(state, ())  # a late answer to a rollout that was left
    if isinstance(event, e.RetryDue):
        return _retry(state, event.slot, entry, rollout)
    if (rollout.phase, type(event)) not in TRANSITIONS:
        raise ImpossibleEvent(f"{type(event).__name__} arrived in {rollout.phase.value}")
    if isinstance(event, e.StepFailed):
        return _step_failed(state, event, entry, rollout)
    phase = TRANSITIONS[rollout.phase, type(event)]
    if isinstance(event, e.Qualified):
        state = _remember(state, rollout.target.pack, event.qualification)
    if isinstance(event, e.Switched):
        entry = _served_by(rollout.target, entry)
    if phase is None:
        return _finished(state, event.slot, entry, rollout)
    # A pack that is fetched again because it proved altered must not be fetched for ever.
    attempts = rollout.attempts if phase is Phase.VERIFYING else 0
    moved = replace(rollout, phase=phase, attempts=attempts, resume=None, failure=None)
    return _with_rollout(state, event.slot, entry, moved)


def _remember(state: DeviceState, pack: str, qualification: Qualification) -> DeviceState:
    needed = packs_needed(state)
    kept = {known: old for known, old in state.qualified.items() if known in needed}
    return replace(state, qualified={**kept, pack: qualification})


def _served_by(target: Slot, entry: SlotState) -> SlotState:
    """Let the target serve; what it can go back to is the last one that passed its probation."""
    previous = entry.serving if entry.proven else entry.previous
    return replace(entry, serving=target, previous=previous, proven=False)


def _finished(state: DeviceState, name: str, entry: SlotState, rollout: Rollout) -> Step:
    if rollout.phase is Phase.RESTORING:
        failed = entry.outcome.target if entry.outcome is not None else rollout.target
        outcome = Outcome("rolled_back", failed, rollout.deployment, rollout.failure)
        done = SlotState(rollout.target, proven=True, outcome=outcome)
    else:
        outcome = Outcome("active", rollout.target, rollout.deployment)
        done = replace(entry, proven=True, rollout=None, outcome=outcome)
    return Step(_with_slot(state, name, done), ())


def _step_failed(
    state: DeviceState, event: e.StepFailed, entry: SlotState, rollout: Rollout
) -> Step:
    attempts = rollout.attempts + 1
    allowed = MAX_ATTEMPTS.get(rollout.phase)
    if event.failure.retryable and (allowed is None or attempts < allowed):
        waiting = replace(
            rollout,
            phase=Phase.WAITING,
            attempts=attempts,
            resume=RETRY_FROM[rollout.phase],
            failure=event.failure,
        )
        return _with_rollout(state, event.slot, entry, waiting)
    if rollout.phase is Phase.RESTORING:
        # Nothing else to go back to: what served keeps the slot, and the report says both.
        entry = replace(entry, previous=None)
    failed = Outcome("failed", rollout.target, rollout.deployment, event.failure)
    done = replace(entry, rollout=None, outcome=failed)
    return Step(_with_slot(state, event.slot, done), ())


def _retry(state: DeviceState, name: str, entry: SlotState, rollout: Rollout) -> Step:
    if rollout.phase is not Phase.WAITING or rollout.resume is None:
        raise ImpossibleEvent(f"RetryDue arrived in {rollout.phase.value}")
    again = replace(rollout, phase=rollout.resume, resume=None)
    return _with_rollout(state, name, entry, again)


def _crash_looped(state: DeviceState, event: e.CrashLooped) -> Step:
    """Go back to the previous pack; without one, keep the slot and say that it fails."""
    entry = state.slots.get(event.slot)
    if entry is None or entry.serving is None or entry.serving.pack != event.pack:
        return Step(state, ())
    running = entry.rollout
    if running is not None and running.phase is Phase.RESTORING:
        return Step(state, ())
    deployment = running.deployment if running is not None else state.deployment
    failed = Outcome("failed", entry.serving, deployment, event.failure)
    in_probation = running is not None and running.phase is Phase.PROBATION
    if entry.previous is None:
        new = replace(entry, rollout=None if in_probation else running, outcome=failed)
        actions = _abandon(event.slot, entry) if in_probation else []
        return Step(_with_slot(state, event.slot, new), tuple(actions))
    if running is not None and not in_probation:
        # A newer pack is already on its way; it is the better cure.
        return Step(state, ())
    return _restore(state, event.slot, entry, failed, event.failure)


def _rollback(state: DeviceState, event: e.RollbackRequested) -> Step:
    entry = state.slots.get(event.slot)
    if entry is None or entry.previous is None or entry.serving is None:
        return Step(state, ())
    asked = Failure(code="rolled_back", message="a person asked for the previous pack")
    left = Outcome("rolled_back", entry.serving, state.deployment, asked)
    return _restore(state, event.slot, entry, left, asked)


def _restore(state: DeviceState, name: str, entry: SlotState, left: Outcome, why: Failure) -> Step:
    """Begin the way back to the previous pack."""
    assert entry.previous is not None
    restoring = Rollout(
        state.next_rollout, entry.previous, Phase.RESTORING, left.deployment, failure=why
    )
    moved = replace(state, next_rollout=state.next_rollout + 1)
    begun = _with_rollout(moved, name, replace(entry, outcome=left), restoring)
    return Step(begun.state, (*_abandon(name, entry), *begun.actions))


def _entry(name: str, rollout: Rollout) -> e.Action:
    if rollout.phase is Phase.WAITING:
        return e.Wait(name, rollout.id, rollout.target, backoff_s(rollout.attempts - 1))
    action: e.Action = ON_ENTRY[rollout.phase](name, rollout.id, rollout.target)
    return action


def _abandon(name: str, entry: SlotState) -> list[e.Action]:
    return [e.Abandon(name, entry.rollout.id)] if entry.rollout is not None else []


def _with_rollout(state: DeviceState, name: str, entry: SlotState, rollout: Rollout) -> Step:
    moved = replace(entry, rollout=rollout)
    return Step(_with_slot(state, name, moved), (_entry(name, rollout),))


def _with_slot(state: DeviceState, name: str, entry: SlotState) -> DeviceState:
    return replace(state, slots={**state.slots, name: entry})
