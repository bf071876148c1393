"""What can happen to a deployment (facts), and what can be asked for in answer (actions).

Facts about a rollout carry its id, so that an answer to a rollout that was left is recognised.
"""

from __future__ import annotations

import msgspec

from agent.documents.choice import Choice
from agent.documents.deployment import Deployment, Slot
from agent.documents.report import Failure, SlotTrust


class DesiredArrived(msgspec.Struct, frozen=True):
    """A desired document came and fits its schema."""

    deployment: Deployment
    digest: str
    unknown_fields: int = 0


class DesiredRefused(msgspec.Struct, frozen=True):
    """A desired document came and was refused whole."""

    failure: Failure
    digest: str


class Fetched(msgspec.Struct, frozen=True):
    slot: str
    rollout: int


class Verified(msgspec.Struct, frozen=True):
    slot: str
    rollout: int
    trust: SlotTrust = SlotTrust("unsigned")


class Qualified(msgspec.Struct, frozen=True):
    slot: str
    rollout: int
    choice: Choice


class Switched(msgspec.Struct, frozen=True):
    slot: str
    rollout: int


class ProbationPassed(msgspec.Struct, frozen=True):
    slot: str
    rollout: int


class Restored(msgspec.Struct, frozen=True):
    slot: str
    rollout: int


class RetryDue(msgspec.Struct, frozen=True):
    slot: str
    rollout: int


class StepFailed(msgspec.Struct, frozen=True):
    """The action of the rollout's phase failed."""

    slot: str
    rollout: int
    failure: Failure
    # It has come further than the attempts before it: the pauses begin anew.
    progressed: bool = False


class CrashLooped(msgspec.Struct, frozen=True):
    """The pack that serves keeps dying."""

    slot: str
    pack: str
    failure: Failure


class Recovered(msgspec.Struct, frozen=True):
    """The pack that kept dying answers again: `health.RECOVERED_AFTER` good answers in a row."""

    slot: str
    pack: str


class Unservable(msgspec.Struct, frozen=True):
    """No worker can be started for what serves: its pack on disk is missing or altered."""

    slot: str
    failure: Failure


class RollbackRequested(msgspec.Struct, frozen=True):
    """A person wants the previous pack of a slot back."""

    slot: str


class Outdated(msgspec.Struct, frozen=True):
    """What a slot's way was chosen by is another now: device, driver, kernel or runtime."""

    slot: str
    pack: str


class Compiled(msgspec.Struct, frozen=True):
    """What a slot's choice had pending was compiled, proven and measured, or was no good."""

    slot: str
    pack: str
    # What it was when that began, and what it is now.
    before: Choice
    choice: Choice


class SlotStopped(msgspec.Struct, frozen=True):
    """A slot that is gone has left nothing behind."""

    slot: str


RolloutEvent = (
    Fetched | Verified | Qualified | Switched | ProbationPassed | Restored | RetryDue | StepFailed
)
SlotEvent = (
    CrashLooped | Recovered | Unservable | Outdated | Compiled | RollbackRequested | SlotStopped
)
Event = DesiredArrived | DesiredRefused | SlotEvent | RolloutEvent


class Fetch(msgspec.Struct, frozen=True):
    slot: str
    rollout: int
    target: Slot


class Verify(msgspec.Struct, frozen=True):
    slot: str
    rollout: int
    target: Slot


class Qualify(msgspec.Struct, frozen=True):
    slot: str
    rollout: int
    target: Slot


class Switch(msgspec.Struct, frozen=True):
    """Start a worker for the target beside the one that serves, and switch between two messages."""

    slot: str
    rollout: int
    target: Slot


class Watch(msgspec.Struct, frozen=True):
    """Tell when the target has served for its probation."""

    slot: str
    rollout: int
    target: Slot


class Restore(msgspec.Struct, frozen=True):
    """Let the target, which served before or should serve now, serve for certain."""

    slot: str
    rollout: int
    target: Slot


class Wait(msgspec.Struct, frozen=True):
    slot: str
    rollout: int
    target: Slot
    seconds: float


class Abandon(msgspec.Struct, frozen=True):
    """Stop working on a rollout; what it has on disk may stay for the next."""

    slot: str
    rollout: int


class StopSlot(msgspec.Struct, frozen=True):
    """Stop serving a slot: finish what is in flight, end its worker and its session."""

    slot: str


Action = Fetch | Verify | Qualify | Switch | Watch | Restore | Wait | Abandon | StopSlot
