"""The life of a deployment as tables and one pure function.

The caller saves the new state, then performs the actions; each action ends in exactly one event.
After a restart it loads the state and performs `resume(state)`: what is to be done follows from the
phase alone, so there is no second list to keep in step, and every action must be safe to repeat.

A switch that is left half-way may have happened, so SWITCHING and RESTORING end only in a fact, or
by restoring what the state says serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from agent.control import events as e
from agent.control.desired import desired
from agent.control.rollouts import (
    Step,
    abandon,
    begin,
    blamed,
    entry_action,
    go_back,
    put_right,
    repair,
    same_target,
    start,
    taken_over,
    with_rollout,
    with_slot,
)
from agent.control.state import (
    Aim,
    DeviceState,
    Outcome,
    Phase,
    Rollout,
    SlotState,
    choice_for,
    choice_key,
    packs_needed,
    settled,
)
from agent.documents.choice import Choice
from agent.documents.deployment import Slot
from agent.documents.report import Failure, SlotTrust
from agent.errors import ImpossibleEvent, StoreCorrupt

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
    (Phase.PROBATION, e.StepFailed): None,
    (Phase.RESTORING, e.StepFailed): None,
}

# Attempts of one phase. A source may be away for ever; what fails on the device itself gets a few.
MAX_ATTEMPTS: Mapping[Phase, int] = {
    Phase.VERIFYING: 3,
    Phase.QUALIFYING: 3,
    Phase.SWITCHING: 3,
    Phase.RESTORING: 3,
}
# Phases that need the pack on disk: where it proves missing or altered, it is fetched again.
ON_DISK = frozenset((Phase.VERIFYING, Phase.QUALIFYING, Phase.SWITCHING, Phase.RESTORING))
MAX_REFETCHES = 2
MAX_TEXT = 1000


def step(state: DeviceState, event: e.Event) -> Step:
    """Advance the device by one fact.

    Args:
        state: Where the device stands. Never modified.
        event: What happened.

    Returns:
        The new state and what to do once it is saved. A fact about a rollout that was left, or
        one that is no news, returns the very state that was given.

    Raises:
        ImpossibleEvent: No row of the table fits. No document or device can cause it: a bug.
    """
    decide = DECISIONS.get(type(event), _advance)
    return decide(state, event)


def resume(state: DeviceState) -> tuple[e.Action, ...]:
    """The actions that a restart must perform again: the entry action of each running rollout, and
    the end of each slot that was being left."""
    running = (
        entry_action(name, entry.rollout)
        for name, entry in state.slots.items()
        if entry.rollout is not None
    )
    return (*running, *(e.StopSlot(name) for name in state.leaving))


def _refused(state: DeviceState, event: e.DesiredRefused) -> Step:
    if event.digest == state.desired_digest:
        return Step(state)
    return Step(replace(state, desired_digest=event.digest, refused=event.failure))


# -- the steps of a rollout -----------------------------------------------------------------------


def _advance(state: DeviceState, event: e.RolloutEvent) -> Step:
    entry = state.slots.get(event.slot)
    rollout = entry.rollout if entry is not None else None
    if entry is None or rollout is None or rollout.id != event.rollout:
        return Step(state)  # a late answer to a rollout that was left
    if isinstance(event, e.RetryDue):
        return _retry(state, event.slot, entry, rollout)
    if (rollout.phase, type(event)) not in TRANSITIONS:
        raise ImpossibleEvent(f"{type(event).__name__} arrived in {rollout.phase.value}")
    if isinstance(event, e.StepFailed):
        return _step_failed(state, event, entry, rollout)
    if isinstance(event, e.Verified):
        state = _trust(state, rollout.target, event.trust)
    if isinstance(event, e.Qualified):
        state = _remember(state, rollout.target, event.choice)
    if isinstance(event, (e.Switched, e.Restored)):
        entry = taken_over(entry, rollout)
    phase = TRANSITIONS[rollout.phase, type(event)]
    if phase is None:
        return _ended(state, event.slot, entry, rollout)
    moved = replace(rollout, phase=phase, attempts=0, failure=None)
    return with_rollout(state, event.slot, entry, moved)


def _remember(state: DeviceState, target: Slot, choice: Choice) -> DeviceState:
    needed = packs_needed(state)
    kept = {
        known: old for known, old in state.qualified.items() if known.partition("|")[0] in needed
    }
    return replace(state, qualified={**kept, choice_key(target): choice})


def _trust(state: DeviceState, target: Slot, trust: SlotTrust) -> DeviceState:
    needed = packs_needed(state)
    kept = {pack: old for pack, old in state.trusted.items() if pack in needed}
    return replace(state, trusted={**kept, target.pack: trust})


def _ended(state: DeviceState, name: str, entry: SlotState, rollout: Rollout) -> Step:
    """The rollout's target serves, and has passed what it had to pass."""
    entry = replace(entry, rollout=None)
    if rollout.then is not None:
        return begin(state, name, entry, rollout.then)
    if rollout.phase is Phase.PROBATION:
        entry = replace(entry, proven=True)
    elsewhere = entry.outcome is not None and not same_target(entry.outcome.target, rollout.target)
    if not (rollout.back and elsewhere):
        active = Outcome("active", rollout.target, rollout.deployment)
        entry = replace(entry, outcome=active)
    return Step(with_slot(state, name, entry))


def _step_failed(
    state: DeviceState, event: e.StepFailed, entry: SlotState, rollout: Rollout
) -> Step:
    waiting = _to_retry(rollout, event)
    if waiting is not None:
        return with_rollout(state, event.slot, entry, waiting)
    return _given_up(state, event, entry, rollout)


def _to_retry(rollout: Rollout, event: e.StepFailed) -> Rollout | None:
    """The rollout as it waits to try again, where another attempt may help."""
    phase, failure = rollout.phase, event.failure
    waiting = replace(rollout, phase=Phase.WAITING, failure=failure)
    if failure.code == StoreCorrupt.code and phase in ON_DISK:
        if rollout.refetched >= MAX_REFETCHES or rollout.then is not None:
            return None
        refetched = rollout.refetched + 1
        return replace(waiting, resume=Phase.FETCHING, attempts=refetched, refetched=refetched)
    attempts = 1 if event.progressed else rollout.attempts + 1
    # What served before is not given up because the device was busy for a moment.
    if not (failure.retryable or phase is Phase.RESTORING):
        return None
    if phase in MAX_ATTEMPTS and attempts >= MAX_ATTEMPTS[phase]:
        return None
    return replace(waiting, resume=phase, attempts=attempts)


def _given_up(state: DeviceState, event: e.StepFailed, entry: SlotState, rollout: Rollout) -> Step:
    """End a rollout that cannot come to its target; what serves keeps the slot."""
    entry, failure = replace(entry, rollout=None), event.failure
    if rollout.back:
        left = entry.outcome or Outcome("failed", rollout.target)
        failed = Outcome("failed", left.target, rollout.deployment, _both(left.failure, failure))
        # Nothing else to go back to.
        previous = None if same_target(entry.previous, rollout.target) else entry.previous
        entry = replace(entry, outcome=failed, previous=previous)
    elif rollout.phase is Phase.RESTORING:
        entry = replace(entry, damaged=failure)  # what should serve by the state does not start
    else:
        failed = Outcome("failed", rollout.target, rollout.deployment, failure)
        entry = replace(entry, outcome=failed)
    if rollout.then is not None:
        return begin(state, event.slot, entry, rollout.then)
    if entry.damaged is not None and not same_target(entry.serving, rollout.target):
        return repair(state, event.slot, entry, entry.damaged)
    return Step(with_slot(state, event.slot, entry))


def _both(first: Failure | None, second: Failure) -> Failure:
    """Why a pack was left, and why what was there before does not serve in its place."""
    if first is None:
        return second
    text = f"{first.message}; and the pack before it does not serve: {second.message}"
    return Failure(first.code, text[:MAX_TEXT], second.hint or first.hint)


def _retry(state: DeviceState, name: str, entry: SlotState, rollout: Rollout) -> Step:
    if rollout.phase is not Phase.WAITING or rollout.resume is None:
        raise ImpossibleEvent(f"RetryDue arrived in {rollout.phase.value}")
    again = replace(rollout, phase=rollout.resume, resume=None)
    return with_rollout(state, name, entry, again)


# -- what happens to what serves ------------------------------------------------------------------


def _crash_looped(state: DeviceState, event: e.CrashLooped) -> Step:
    """Go back to the previous pack; without one, keep the slot and say that it fails.

    A newer pack that is being fetched comes after the way back: its source may be away for long.
    One that is here already is let through; it is the better cure.
    """
    entry = state.slots.get(event.slot)
    if entry is None or entry.serving is None or entry.serving.pack != event.pack:
        return Step(state)
    running = entry.rollout
    looping = replace(entry, looping=event.failure)
    if running is not None and running.phase is not Phase.PROBATION:
        if running.back or running.heading is Phase.RESTORING:
            return Step(state)
        if entry.previous is None or running.heading is not Phase.FETCHING:
            looping = replace(looping, outcome=_failed(state, entry, event.failure))
            return _changed(state, event.slot, entry, looping)
        failed = Outcome("failed", entry.serving, state.deployment, event.failure)
        then = Aim(running.target, running.deployment)
        return go_back(state, event.slot, looping, failed, then)
    failed = _failed(state, entry, event.failure)
    if entry.previous is not None:
        failed = replace(failed, state="failed", failure=event.failure)
        return go_back(state, event.slot, looping, failed)
    looping = replace(looping, outcome=failed, rollout=None)
    step = _changed(state, event.slot, entry, looping)
    return step.after(*abandon(event.slot, entry))


def _failed(state: DeviceState, entry: SlotState, failure: Failure) -> Outcome:
    """What a crash loop makes of the outcome: that of another target, which is what the deployment
    wants, stays."""
    assert entry.serving is not None
    running, outcome = entry.rollout, entry.outcome
    if running is not None and running.phase is Phase.PROBATION and not running.back:
        return Outcome("failed", entry.serving, running.deployment, failure)
    if outcome is None or same_target(outcome.target, entry.serving):
        return Outcome("failed", entry.serving, state.deployment, failure)
    return outcome


def _changed(state: DeviceState, name: str, old: SlotState, new: SlotState) -> Step:
    """A new state only where there is something new: it is written to a memory card."""
    return Step(state if new == old else with_slot(state, name, new))


def _recovered(state: DeviceState, event: e.Recovered) -> Step:
    """What kept dying answers again: it is `active`, once it has passed a probation."""
    entry = state.slots.get(event.slot)
    if entry is None or entry.serving is None or entry.serving.pack != event.pack:
        return Step(state)
    running = entry.rollout
    if entry.looping is None or (running is not None and running.heading is Phase.RESTORING):
        return Step(state)
    well = replace(entry, looping=None)
    if running is not None or not blamed(entry, entry.serving):
        return Step(with_slot(state, event.slot, well))
    aim = Aim(entry.serving, state.deployment)
    return begin(state, event.slot, replace(well, outcome=None), aim)


def _unservable(state: DeviceState, event: e.Unservable) -> Step:
    """Fetch again what cannot be started, unless something newer is on its way already."""
    entry = state.slots.get(event.slot)
    if entry is None or entry.serving is None:
        return Step(state)
    damaged = replace(entry, damaged=event.failure)
    running = entry.rollout
    if running is None or running.phase is Phase.PROBATION:
        return repair(state, event.slot, damaged, event.failure)
    return _changed(state, event.slot, entry, damaged)


def _outdated(state: DeviceState, event: e.Outdated) -> Step:
    """Prove again what serves well, and choose anew how to run it; meanwhile it serves on."""
    entry = state.slots.get(event.slot)
    if entry is None or entry.serving is None or entry.serving.pack != event.pack:
        return Step(state)
    if not settled(entry):
        return Step(state)
    again = Rollout(0, entry.serving, Phase.QUALIFYING, state.deployment, back=True)
    return start(state, event.slot, entry, again)


def _compiled(state: DeviceState, event: e.Compiled) -> Step:
    """Remember what came of it; where another way is better now, switch to it like to anything
    else. A choice that was made meanwhile knows better."""
    entry = state.slots.get(event.slot)
    if entry is None or entry.serving is None or entry.serving.pack != event.pack:
        return Step(state)
    if choice_for(state, entry.serving) != event.before or not settled(entry):
        return Step(state)
    state = _remember(state, entry.serving, event.choice)
    if event.choice.way.plain == event.before.way.plain:
        return Step(state)
    over = Rollout(0, entry.serving, Phase.SWITCHING, state.deployment, back=True)
    return start(state, event.slot, entry, over)


def _rollback(state: DeviceState, event: e.RollbackRequested) -> Step:
    entry = state.slots.get(event.slot)
    if entry is None or entry.previous is None or entry.serving is None:
        return Step(state)
    running = entry.rollout
    aim = Aim(entry.previous, state.deployment, back=True)
    if running is not None and running.aim.back and same_target(running.aim.target, aim.target):
        return Step(state)  # on its way already
    asked = Failure(code="rolled_back", message="a person asked for the previous pack")
    left = Outcome("rolled_back", entry.wanted or entry.serving, state.deployment, asked)
    if running is None or not _uncertain(running):
        return go_back(state, event.slot, entry, left)
    entry = replace(entry, outcome=left)
    if running.back and same_target(running.target, entry.previous):
        only_back = replace(entry, rollout=replace(running, then=None))
        return Step(with_slot(state, event.slot, only_back))
    return put_right(state, event.slot, entry, aim)


def _uncertain(running: Rollout) -> bool:
    """Whether something else than the state says may serve, were the rollout left now."""
    return running.phase is Phase.SWITCHING or running.heading is Phase.RESTORING


def _stopped(state: DeviceState, event: e.SlotStopped) -> Step:
    if event.slot not in state.leaving:
        return Step(state)  # it has come back meanwhile
    return Step(replace(state, leaving=tuple(n for n in state.leaving if n != event.slot)))


DECISIONS: Mapping[type, Callable[[DeviceState, Any], Step]] = {
    e.DesiredArrived: desired,
    e.DesiredRefused: _refused,
    e.CrashLooped: _crash_looped,
    e.Recovered: _recovered,
    e.Unservable: _unservable,
    e.Outdated: _outdated,
    e.Compiled: _compiled,
    e.RollbackRequested: _rollback,
    e.SlotStopped: _stopped,
}
