"""From the device's state to its report: a pure function, so that the report is never a memory of
its own."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.control.state import DeviceState, Phase, Rollout, SlotState
from agent.documents.report import (
    Failure,
    Isolation,
    Placement,
    Progress,
    Report,
    SlotPhase,
    SlotReport,
    SlotTrust,
)

# Waiting shows as the phase that it comes back to; the error beside it says why it waits.
_SHOWN: Mapping[Phase, SlotPhase] = {
    Phase.FETCHING: "fetching",
    Phase.VERIFYING: "verifying",
    Phase.QUALIFYING: "qualifying",
    Phase.SWITCHING: "qualifying",
    Phase.PROBATION: "probation",
    Phase.RESTORING: "failed",
}
_COMES_NEXT: SlotPhase = "fetching"


class Facts(msgspec.Struct, frozen=True):
    """What is known of a slot's running worker and of its pack, beside the state."""

    name: str = ""
    version: str = ""
    variant: str = ""
    runtime: str = ""
    runtime_version: str = ""
    provider: str = ""
    isolation: Isolation | None = None
    owner: Isolation | None = None
    placement: Placement | None = None
    threads: int | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    progress: Progress | None = None
    # Why a slot that should serve does not: its worker is not there, or its bus.
    trouble: Failure | None = None


def build_report(
    state: DeviceState,
    *,
    agent: str,
    device: str,
    facts: Mapping[str, Facts],
    profile: str = "",
    signed_only: bool = False,
    trouble: Failure | None = None,
) -> Report:
    """Return the whole reported document.

    Args:
        state: What is saved.
        agent: The agent's version.
        device: The device's id.
        facts: By slot.
        profile: What the device was recognised as.
        signed_only: Whether packs that nobody has signed are refused.
        trouble: What keeps the agent as a whole from acting, such as a full disk.
    """

    def slot(name: str, entry: SlotState) -> SlotReport:
        trust = state.trusted.get(entry.serving.pack) if entry.serving is not None else None
        return _slot(entry, facts.get(name, Facts()), trust)

    return Report(
        schema=1,
        agent=agent,
        device=device,
        deployment=state.deployment,
        trust="signed" if signed_only else "unsigned",
        profile=profile,
        slots={name: slot(name, entry) for name, entry in state.slots.items()},
        refused=state.refused,
        unknown_fields=state.unknown_fields,
        trouble=trouble,
    )


def _slot(entry: SlotState, facts: Facts, trust: SlotTrust | None) -> SlotReport:
    shown, wanted, error = _verdict(entry)
    serving = entry.serving
    return SlotReport(
        state=shown,
        wanted=wanted,
        pack=serving.pack if serving is not None else "",
        name=facts.name,
        version=facts.version,
        trust=trust,
        variant=facts.variant,
        runtime=facts.runtime,
        runtime_version=facts.runtime_version,
        provider=facts.provider,
        isolation=facts.isolation,
        owner=facts.owner,
        placement=facts.placement,
        threads=facts.threads,
        p50_ms=facts.p50_ms,
        p95_ms=facts.p95_ms,
        previous=entry.previous.pack if entry.previous is not None else "",
        progress=facts.progress if shown == "fetching" else None,
        error=error or facts.trouble,
    )


def _verdict(entry: SlotState) -> tuple[SlotPhase, str, Failure | None]:
    rollout, outcome = entry.rollout, entry.outcome
    trouble = entry.damaged or entry.looping
    if rollout is not None:
        target = rollout.then.target if rollout.then is not None else rollout.target
        return _phase_shown(rollout), target.pack, rollout.failure or trouble
    if outcome is not None:
        return outcome.state, outcome.target.pack, trouble or outcome.failure
    return "active", entry.serving.pack if entry.serving is not None else "", trouble


def _phase_shown(rollout: Rollout) -> SlotPhase:
    if rollout.then is not None and not rollout.back:
        return _COMES_NEXT
    return _SHOWN[rollout.heading]
