"""What the daemon remembers of its deployments: values that are saved before anything is done."""

from __future__ import annotations

from enum import Enum
from typing import Literal

import msgspec

from agent.documents.choice import Choice
from agent.documents.deployment import Slot, TelemetrySettings
from agent.documents.report import Failure, SlotTrust


class Phase(str, Enum):
    """Where one rollout stands. What is to be done follows from the phase alone."""

    FETCHING = "fetching"
    VERIFYING = "verifying"
    QUALIFYING = "qualifying"
    SWITCHING = "switching"
    PROBATION = "probation"
    RESTORING = "restoring"
    WAITING = "waiting"


class Aim(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a slot shall come to serve, and the deployment that says so."""

    target: Slot
    deployment: str
    # The target is the previous pack, which a person asked for.
    back: bool = False


class Rollout(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt to bring a slot to a target. Facts name it by `id`: late ones are dropped."""

    id: int
    target: Slot
    phase: Phase
    deployment: str = ""
    # Consecutive failed attempts of the phase, or of the one to come back to: `resume` names it.
    attempts: int = 0
    resume: Phase | None = None
    failure: Failure | None = None
    # How often the pack was fetched again because it proved missing or altered on disk.
    refetched: int = 0
    # It brings back what served before; the deployment asks for something else, or for no change.
    back: bool = False
    # What comes after it. Only a rollout that restores has this.
    then: Aim | None = None

    @property
    def heading(self) -> Phase:
        """The phase, or while it waits the one that it comes back to."""
        return self.resume or self.phase

    @property
    def aim(self) -> Aim:
        """Where it leads in the end."""
        return self.then or Aim(self.target, self.deployment, self.back)


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
    # Why what serves keeps dying; nothing once it has recovered.
    looping: Failure | None = None
    # Why no worker can be started for what serves: its pack on disk is missing or altered.
    damaged: Failure | None = None

    @property
    def wanted(self) -> Slot | None:
        """What the last accepted deployment says of this slot."""
        if self.rollout is not None and not self.rollout.aim.back:
            return self.rollout.aim.target
        return self.outcome.target if self.outcome is not None else self.serving


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
    # Slots that are gone, and whose sessions at the broker may not be; the oldest first.
    leaving: tuple[str, ...] = ()
    # How this device runs what it has proven, by `choice_key`.
    qualified: dict[str, Choice] = {}
    # Who vouches for what was verified here, by pack.
    trusted: dict[str, SlotTrust] = {}
    next_rollout: int = 1
    # What was saved is damaged, and no deployment has come since: nobody knows what on disk is
    # still needed, so nothing may be removed.
    lost: bool = False


def choice_key(slot: Slot) -> str:
    """What a choice is remembered under: the pack, and what the deployment pinned of it."""
    if slot.pin is None:
        return slot.pack
    pin = slot.pin
    return "|".join((slot.pack, pin.variant, pin.runtime, pin.provider, str(pin.threads or "")))


def choice_for(state: DeviceState, slot: Slot) -> Choice | None:
    """How this device runs what a slot asks for; None where it has not proven it."""
    return state.qualified.get(choice_key(slot))


def settled(entry: SlotState) -> bool:
    """Whether a slot serves, and well, and nothing is on its way."""
    troubled = entry.looping is not None or entry.damaged is not None
    return entry.serving is not None and entry.rollout is None and not troubled


def targets_of(state: DeviceState) -> tuple[Slot, ...]:
    """Everything that a slot serves, can go back to, or is on its way to."""
    return tuple(
        slot
        for entry in state.slots.values()
        for slot in (entry.serving, entry.previous, *_coming(entry.rollout))
        if slot is not None
    )


def packs_needed(state: DeviceState) -> set[str]:
    """The packs that must stay on disk: what serves, what it can go back to, what is coming.

    Of a state that is `lost` this is not all: the caller must not remove any pack then.
    """
    return {slot.pack for slot in targets_of(state)}


def _coming(rollout: Rollout | None) -> tuple[Slot, ...]:
    if rollout is None:
        return ()
    return (rollout.target, rollout.then.target) if rollout.then else (rollout.target,)
