"""What became of one file, and what would have been wrong with that."""

from __future__ import annotations

import msgspec

from agent import errors
from agent.errors import AgentError

# How a file ends on its way to a device: read in a child, proven in a probe, served.
INSPECT = "refused by inspect"
LOAD = "refused by load"
SELF_TEST = "self-test failed"
DIED = "worker died"
MEMORY = "memory limit"
DEADLINE = "deadline"
RIGHT = "served, right answer"
OTHER = "served, other answer"
REFUSED_ANSWER = "served, answer refused"
ENDS = (INSPECT, LOAD, SELF_TEST, DIED, MEMORY, DEADLINE, RIGHT, OTHER, REFUSED_ANSWER)

MAX_REASON, MAX_HINT = 600, 300
_BY_CODE = {
    errors.SelfTestFailed.code: SELF_TEST,
    errors.WorkerExited.code: DIED,
    errors.MemoryLimit.code: MEMORY,
    errors.WorkerTimedOut.code: DEADLINE,
}


class Stage(msgspec.Struct, frozen=True):
    """One step of a file's way: `code` and `reason` where it ended there."""

    end: str
    code: str = ""
    reason: str = ""
    took_s: float = 0.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one file of a campaign.

    `end` is that of the way to a device; `forced` is what the runtime did with a file that would
    not have come so far ("" where it was not tried); `offences` should never be.
    """

    id: str
    source: str
    format: str
    mutation: str
    bytes: int
    digest: str
    end: str
    code: str = ""
    reason: str = ""
    forced: str = ""
    forced_reason: str = ""
    seconds: dict[str, float] = {}
    offences: tuple[str, ...] = ()


def end_of(error: AgentError) -> str:
    """Return how a worker's way ended with this error."""
    return _BY_CODE.get(error.code, LOAD)


def offences_of(code: str, message: str, hint: str, stage: str) -> list[str]:
    """Return what is wrong with an error itself: a reason must be one that a person can read."""
    wrong = [f"an empty reason ({hint!r})"] if not message.strip() else []
    wrong += [*_unreadable(message, MAX_REASON), *_unreadable(hint, MAX_HINT)]
    if code not in _known_codes():
        wrong.append(f"the code {code!r} is not in the error tree")
    if "Traceback" in message + hint:
        wrong.append("a traceback as a reason")
    if code == errors.WorkerExited.code and "exit status" in message:
        wrong.append(f"an exception that nobody handled: {message} {hint}")
    if code in (errors.WorkerError.code, AgentError.code):
        wrong.append(f"an error of no particular kind: {message}")
    return [f"{stage}: {what}" for what in wrong]


def _unreadable(text: str, most: int) -> list[str]:
    found = []
    if not text.isprintable():
        found.append(f"an unprintable reason: {text[:MAX_REASON]!r}")
    if len(text) > most:
        found.append(f"a reason of {len(text)} characters: {text[:200]!r}")
    return found


def _known_codes() -> frozenset[str]:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return frozenset(kind.code for kind in kinds if issubclass(kind, AgentError))
