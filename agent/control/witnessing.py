"""Which lines of evidence a change of the device's state is worth."""

from __future__ import annotations

from collections.abc import Iterator

from agent.control import events as e
from agent.control.evidence import TEXT_MAX, Entry, Kind
from agent.control.state import DeviceState, SlotState
from agent.documents.report import Failure


def evidence_of(before: DeviceState, after: DeviceState, event: e.Event) -> list[Entry]:
    """What happened between two states, in the order in which it should be read."""
    found = list(_of_document(before, after, event))
    for pack, trust in after.trusted.items():
        if before.trusted.get(pack) != trust:
            slot = getattr(event, "slot", "")
            found.append(
                Entry("trust", slot, pack, state=trust.state, key=trust.key, subject=trust.subject)
            )
    for name in sorted({*before.slots, *after.slots}):
        old, new = before.slots.get(name, SlotState()), after.slots.get(name)
        if new is None:
            found.append(Entry("removed", name, before=_pack(old), deployment=after.deployment))
        elif new != old:
            found.extend(_of_slot(name, old, new, after, event))
    return found


def _of_document(before: DeviceState, after: DeviceState, event: e.Event) -> Iterator[Entry]:
    if isinstance(event, e.DesiredArrived):
        yield Entry("deployment", deployment=after.deployment, document=event.digest)
    elif isinstance(event, e.DesiredRefused):
        yield _failed("refused", event.failure, document=event.digest)


def _of_slot(
    name: str, old: SlotState, new: SlotState, state: DeviceState, event: e.Event
) -> Iterator[Entry]:
    if isinstance(event, e.RollbackRequested):
        to = new.rollout.aim.target.pack if new.rollout is not None else ""
        yield Entry("override", name, to, _pack(old), code="rolled_back", why="a person asked")
    yield from _of_failures(name, old, new, state, event)
    if new.serving != old.serving and new.serving is not None:
        # The rollout whose step this was.
        back = old.rollout is not None and (old.rollout.back or isinstance(event, e.Restored))
        kind: Kind = "returned" if back else "activated"
        yield Entry(kind, name, _pack(new), _pack(old), state.deployment)
    if new.proven and not old.proven and isinstance(event, e.ProbationPassed):
        yield Entry("proven", name, _pack(new), deployment=state.deployment)


def _of_failures(
    name: str, old: SlotState, new: SlotState, state: DeviceState, event: e.Event
) -> Iterator[Entry]:
    outcome = new.outcome
    # What the outcome says of a person's word, `override` has told.
    told = _why(old) == _why(new) or isinstance(event, e.RollbackRequested)
    if outcome is not None and outcome.failure is not None and not told:
        kind: Kind = "failed" if _pack(old) == outcome.target.pack else "refused"
        yield _failed(kind, outcome.failure, name, outcome.target.pack, outcome.deployment)
    if new.damaged is not None and new.damaged != old.damaged:
        yield _failed("damaged", new.damaged, name, _pack(new), state.deployment)


def _failed(
    kind: Kind,
    failure: Failure,
    slot: str = "",
    pack: str = "",
    deployment: str = "",
    document: str = "",
) -> Entry:
    return Entry(
        kind,
        slot,
        pack,
        deployment=deployment,
        document=document,
        code=failure.code,
        why=failure.message[:TEXT_MAX],
    )


def _why(entry: SlotState) -> tuple[str, Failure | None]:
    outcome = entry.outcome
    return (outcome.target.pack, outcome.failure) if outcome is not None else ("", None)


def _pack(entry: SlotState) -> str:
    return entry.serving.pack if entry.serving is not None else ""
