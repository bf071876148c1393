"""What a desired document means for each slot.

- A slot that is absent is stopped.
- What serves well and proven is `active`; anything else takes a rollout with its probation.
- A target that failed or was taken back is left alone for as long as the document says the same of
  its slot. It is tried again when the document has a new deployment name and changes nothing else:
  no slot and no telemetry. So an unrelated change never starts a bad pack anew, and an operator who
  wants it again sends the same under another name.
- A rollout that runs to the same target goes on, with the new source, name and settings; only a
  fetch begins again where its source changed.
- A switch that is left may have happened all the same. What should serve is restored first, and
  while anything is being restored the document waits for that.
"""

from __future__ import annotations

from msgspec.structs import replace

from agent.control import events as e
from agent.control.rollouts import Step, abandon, begin, put_right, same_target, start, with_slot
from agent.control.state import Aim, DeviceState, Phase, Rollout, SlotState
from agent.documents.deployment import Deployment

# Whose sessions are still to be ended, where the broker is away for long.
MAX_LEAVING = 256


def desired(state: DeviceState, event: e.DesiredArrived) -> Step:
    """Aim every slot at what an accepted document says of it."""
    if event.digest == state.desired_digest:
        return Step(state)
    document = event.deployment
    again = _only_renamed(state, document)
    actions: list[e.Action] = []
    left = {name: entry for name, entry in state.slots.items() if name not in document.slots}
    for name, entry in left.items():
        actions += [*abandon(name, entry), e.StopSlot(name)]
    leaving = [name for name in (*state.leaving, *left) if name not in document.slots]
    moved = replace(
        state,
        deployment=document.deployment,
        desired_digest=event.digest,
        refused=None,
        unknown_fields=event.unknown_fields,
        telemetry=document.telemetry,
        slots={name: state.slots.get(name, SlotState()) for name in document.slots},
        leaving=tuple(dict.fromkeys(leaving))[-MAX_LEAVING:],
        lost=False,
    )
    for name, target in document.slots.items():
        aim = Aim(target, document.deployment)
        moved, needed = _aim(moved, name, moved.slots[name], aim, again=again)
        actions += needed
    return Step(moved, tuple(actions))


def _only_renamed(state: DeviceState, document: Deployment) -> bool:
    return (
        document.deployment != state.deployment
        and document.telemetry == state.telemetry
        and document.slots == {name: entry.wanted for name, entry in state.slots.items()}
    )


def _aim(state: DeviceState, name: str, entry: SlotState, aim: Aim, *, again: bool) -> Step:
    """Point one slot at its target: keep what already does, else begin a rollout."""
    running = entry.rollout
    if not again and _has_failed(entry, aim):
        return Step(state)
    if running is None:
        return begin(state, name, entry, aim)
    if running.heading is Phase.RESTORING:
        waits = replace(entry, rollout=replace(running, then=aim))
        return Step(with_slot(state, name, waits))
    if same_target(running.target, aim.target):
        return _take_up(state, name, entry, running, aim, again=again)
    if running.phase is Phase.SWITCHING:
        return put_right(state, name, entry, aim)
    return begin(state, name, entry, aim)


def _has_failed(entry: SlotState, aim: Aim) -> bool:
    """Whether this very target failed or was taken back, and nothing else is under way."""
    running, outcome = entry.rollout, entry.outcome
    if running is not None and not running.aim.back:
        return False
    return outcome is not None and outcome.state != "active" and outcome.target == aim.target


def _take_up(
    state: DeviceState, name: str, entry: SlotState, running: Rollout, aim: Aim, *, again: bool
) -> Step:
    """Go on with a rollout to the same target under a newer document."""
    other_source = running.target.source != aim.target.source
    waits = running.phase is Phase.WAITING
    if running.heading is Phase.FETCHING and (other_source or (again and waits)):
        fresh = Rollout(0, aim.target, Phase.FETCHING, aim.deployment)
        return start(state, name, entry, fresh)
    if same_target(entry.serving, aim.target):
        entry = replace(entry, serving=aim.target)
    taken = replace(running, target=aim.target, deployment=aim.deployment, back=False)
    return Step(with_slot(state, name, replace(entry, rollout=taken)))
