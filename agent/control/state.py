"""What the daemon remembers of its deployments: values that are saved before anything is done."""

from __future__ import annotations

from enum import Enum
from typing import Literal

import msgspec

from agent.documents.deployment import Slot, TelemetrySettings
from agent.documents.report import Failure


class Phase(str, Enum):
    """Where one rollout stands. What is to be done follows from the phase alone."""

    FETCHING = "fetching"
    VERIFYING = "verifying"
    QUALIFYING = "qualifying"
    SWITCHING = "switching"
    PROBATION = "probation"
    RESTORING = "restoring"
    WAITING = "waiting"


class Rollout(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt to bring a slot to a target. Facts name it by `id`: late ones are dropped."""

    id: int
    target: Slot
    phase: Phase
    deployment: str = ""
    # Consecutive failed attempts of the phase to come back to, which `resume` names.
    attempts: int = 0
    resume: Phase | None = None
    failure: Failure | None = None


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the last rollout of a slot ended."""

    state: Literal["active", "failed", "rolled_back"]
    target: Slot
    deployment: str = ""
    failure: Failure | None = None


class SlotState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One slot: what serves, what served before it, what is on its way, how the last way ended."""

    serving: Slot | None = None
    # Whether what serves has passed its probation; until then `previous` is the last good one.
    proven: bool = False
    previous: Slot | None = None
    rollout: Rollout | None = None
    outcome: Outcome | None = None


class Qualification(msgspec.Struct, frozen=True, omit_defaults=True):
    """What this device proved of a pack: the variant and runtime that passed its self-test."""

    variant: str
    runtime: str
    p50_ms: float = 0.0
    peak_memory_bytes: int = 0
    max_deviation: float = 0.0


class DeviceState(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything that survives a restart."""

    schema: Literal[1] = 1
    deployment: str = ""
    # SHA-256 of the last desired document, accepted or refused: an equal one is no news.
    desired_digest: str = ""
    refused: Failure | None = None
    unknown_fields: int = 0
    telemetry: TelemetrySettings = TelemetrySettings()
    slots: dict[str, SlotState] = {}
    # By pack id.
    qualified: dict[str, Qualification] = {}
    next_rollout: int = 1


def packs_needed(state: DeviceState) -> set[str]:
    """The packs that must stay on disk: what serves, what it can go back to, what is coming."""
    needed: set[str] = set()
    for entry in state.slots.values():
        target = entry.rollout.target if entry.rollout is not None else None
        needed |= {s.pack for s in (entry.serving, entry.previous, target) if s is not None}
    return needed
