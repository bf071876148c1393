"""What can happen to a deployment (facts), and what can be asked for in answer (actions).

Facts about a rollout carry its id, so that an answer to a rollout that was left is recognised.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.documents.choice import Choice
from agent.documents.deployment import Deployment, Slot
from agent.documents.report import Failure


@dataclass(frozen=True)
class DesiredArrived:
    """A desired document came and fits its schema."""

    deployment: Deployment
    digest: str
    unknown_fields: int = 0


@dataclass(frozen=True)
class DesiredRefused:
    """A desired document came and was refused whole."""

    failure: Failure
    digest: str


@dataclass(frozen=True)
class Fetched:
    slot: str
    rollout: int


@dataclass(frozen=True)
class Verified:
    slot: str
    rollout: int


@dataclass(frozen=True)
class Qualified:
    slot: str
    rollout: int
    choice: Choice


@dataclass(frozen=True)
class Switched:
    slot: str
    rollout: int


@dataclass(frozen=True)
class ProbationPassed:
    slot: str
    rollout: int


@dataclass(frozen=True)
class Restored:
    slot: str
    rollout: int


@dataclass(frozen=True)
class RetryDue:
    slot: str
    rollout: int


@dataclass(frozen=True)
class StepFailed:
    """The action of the rollout's phase failed."""

    slot: str
    rollout: int
    failure: Failure


@dataclass(frozen=True)
class CrashLooped:
    """The pack that serves keeps dying."""

    slot: str
    pack: str
    failure: Failure


@dataclass(frozen=True)
class Recovered:
    """The pack that kept dying answers again: `health.RECOVERED_AFTER` good answers in a row."""

    slot: str
    pack: str


@dataclass(frozen=True)
class Unservable:
    """No worker can be started for what serves: its pack on disk is missing or altered."""

    slot: str
    failure: Failure


@dataclass(frozen=True)
class RollbackRequested:
    """A person wants the previous pack of a slot back."""

    slot: str


@dataclass(frozen=True)
class Outdated:
    """What a slot's way was chosen by is another now: device, driver, kernel or runtime."""

    slot: str
    pack: str


@dataclass(frozen=True)
class Compiled:
    """What a slot's choice had pending was compiled, proven and measured, or was no good."""

    slot: str
    pack: str
    # What it was when that began, and what it is now.
    before: Choice
    choice: Choice


@dataclass(frozen=True)
class SlotStopped:
    """A slot that is gone has left nothing behind."""

    slot: str


RolloutEvent = (
    Fetched | Verified | Qualified | Switched | ProbationPassed | Restored | RetryDue | StepFailed
)
SlotEvent = (
    CrashLooped | Recovered | Unservable | Outdated | Compiled | RollbackRequested | SlotStopped
)
Event = DesiredArrived | DesiredRefused | SlotEvent | RolloutEvent


@dataclass(frozen=True)
class Fetch:
    slot: str
    rollout: int
    target: Slot


@dataclass(frozen=True)
class Verify:
    slot: str
    rollout: int
    target: Slot


@dataclass(frozen=True)
class Qualify:
    slot: str
    rollout: int
    target: Slot


@dataclass(frozen=True)
class Switch:
    """Start a worker for the target beside the one that serves, and switch between two messages."""

    slot: str
    rollout: int
    target: Slot


@dataclass(frozen=True)
class Watch:
    """Tell when the target has served for its probation."""

    slot: str
    rollout: int
    target: Slot


@dataclass(frozen=True)
class Restore:
    """Let the target, which served before or should serve now, serve for certain."""

    slot: str
    rollout: int
    target: Slot


@dataclass(frozen=True)
class Wait:
    slot: str
    rollout: int
    target: Slot
    seconds: float


@dataclass(frozen=True)
class Abandon:
    """Stop working on a rollout; what it has on disk may stay for the next."""

    slot: str
    rollout: int


@dataclass(frozen=True)
class StopSlot:
    """Stop serving a slot: finish what is in flight, end its worker and its session."""

    slot: str


Action = Fetch | Verify | Qualify | Switch | Watch | Restore | Wait | Abandon | StopSlot
