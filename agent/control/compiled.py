"""Models that libraries compile on the device: which ways wait for it, and what becomes of each.

A way whose library compiles takes part in a contest only by what was compiled and proven before, so
that nothing waits for a compiler: another way serves meanwhile. What was compiled then has to pass
the pack's self-test and to be measured beside the way that serves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from agent.control.contest import Outcome
from agent.documents.choice import CPU_PROVIDERS, MAX_LEFT_OUT, MAX_TRIED, Choice, Tried, Way
from agent.documents.device import Device

# What was compiled may take this much longer for a run than what the library compiles at the load:
# it is the same code, and two measurements of the same differ.
NOISE = 1.10


def compiler_of(way: Way, device: Device) -> str | None:
    """The version of what compiles a way's model; None: nothing does.

    Args:
        way: With or without what was compiled.
        device: Its runtimes say what they compile for.
    """
    facts = device.runtime(way.runtime)
    if facts is None:
        return None
    names = CPU_PROVIDERS if way.provider in CPU_PROVIDERS else {way.provider}
    found = [version for name, version in facts.compiles.items() if name in names]
    return found[0] if found else None


class Sorted(msgspec.Struct, frozen=True):
    """The ways of a contest.

    Args:
        now: Those that take part.
        pending: Those that are to be compiled, and do not take part before.
        later: Those that take part, compiled at the load, where of the others none passes.
        left_out: Why others take no part, a sentence each.
    """

    now: tuple[Way, ...]
    pending: tuple[Way, ...] = ()
    later: tuple[Way, ...] = ()
    left_out: tuple[str, ...] = ()


def sort_out(
    ways: Sequence[Way],
    compiling: Collection[Way],
    ready: Collection[Way],
    refused: Mapping[Way, str],
) -> Sorted:
    """Say which ways take part in a contest now.

    Args:
        ways: All that are worth measuring.
        compiling: Those whose library compiles.
        ready: Of these, those of which there is something that was compiled and proven.
        refused: Of these, those of which what was compiled was no good, with the reason.
    """
    now = tuple(
        replace(way, compiled=True) if way in ready else way
        for way in ways
        if way not in compiling or way in ready
    )
    waiting = tuple(way for way in ways if way in compiling and way not in ready)
    pending = tuple(way for way in waiting if way not in refused)
    if not now:
        # Something must serve; only the compiled form of it comes later.
        return Sorted(waiting, pending)
    told = (f"{way}: {refused.get(way) or 'it is being compiled'}" for way in waiting)
    return Sorted(now, pending, waiting, tuple(told))


def still_pending(pending: Sequence[Way], outcome: Outcome) -> tuple[Way, ...]:
    """Leave out of what is to be compiled whatever was measured all the same, and lost."""
    lost = {tried.way for tried in outcome.tried} - {tried.way for tried in outcome.passed[:1]}
    return tuple(way for way in pending if way not in lost)


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of something that was compiled.

    Args:
        choice: What to remember of it.
        refused: Why it is not kept; nothing: it is.
    """

    choice: Choice
    refused: str = ""


def judge(choice: Choice, newcomer: Way, outcome: Outcome) -> Verdict:
    """Decide whether what was compiled is used: it answers correctly, and is not slower.

    Args:
        choice: How the pack is run.
        newcomer: A pending way of it, as `compiled`.
        outcome: Of a contest between the two.
    """
    found = next(tried for tried in outcome.tried if tried.way == newcomer)
    if found.excluded:
        return kept_out(choice, newcomer, found.excluded)
    best = outcome.passed[0]
    other = next((tried for tried in outcome.passed if tried.way != newcomer), None)
    if newcomer.plain == choice.way.plain:
        slower = _slower(found, other)
        if slower:
            return kept_out(choice, newcomer, slower)
        return Verdict(_taken(choice, newcomer, outcome, choice.because))
    if best.way == newcomer:
        return Verdict(_taken(choice, newcomer, outcome, outcome.because))
    assert best.median_ms is not None
    assert found.median_ms is not None
    return kept_out(
        choice, newcomer, f"{found.median_ms:.3g} ms a run, {best.way} takes {best.median_ms:.3g}"
    )


def kept_out(choice: Choice, newcomer: Way, why: str) -> Verdict:
    """What to remember of something that was compiled, or could not be, and is not used."""
    row = Tried(newcomer, excluded=why[:1000])
    return Verdict(
        replace(
            choice,
            tried=(*_without(choice.tried, newcomer), row)[:MAX_TRIED],
            pending=_settled(choice, newcomer),
            left_out=_unsaid(choice, newcomer),
        ),
        refused=why,
    )


def _taken(choice: Choice, newcomer: Way, outcome: Outcome, because: str) -> Choice:
    rows = sorted(outcome.tried, key=lambda tried: (bool(tried.excluded), tried.way != newcomer))
    # Measured together, so these rows say more than older ones of the same ways.
    others = [tried for tried in choice.tried if all(tried.way != row.way for row in rows)]
    passed = [tried for tried in (*rows, *others) if not tried.excluded]
    out = [tried for tried in (*rows, *others) if tried.excluded]
    return replace(
        choice,
        way=newcomer,
        tried=(*passed, *out)[:MAX_TRIED],
        because=because,
        pending=_settled(choice, newcomer),
        left_out=_unsaid(choice, newcomer),
    )


def _slower(found: Tried, other: Tried | None) -> str:
    """Why what was compiled is too slow: by its median, and also by its best run, which tells
    little of what else the machine did."""
    if other is None or found.median_ms is None or other.median_ms is None:
        return ""
    best, other_best = found.best_ms or found.median_ms, other.best_ms or other.median_ms
    if found.median_ms <= NOISE * other.median_ms or best <= NOISE * other_best:
        return ""
    return f"{found.median_ms:.3g} ms a run, compiled at the load it takes {other.median_ms:.3g}"


def _without(tried: Sequence[Tried], way: Way) -> tuple[Tried, ...]:
    return tuple(each for each in tried if each.way != way)[: MAX_TRIED - 1]


def _settled(choice: Choice, newcomer: Way) -> tuple[Way, ...]:
    return tuple(way for way in choice.pending if way != newcomer.plain)


def _unsaid(choice: Choice, newcomer: Way) -> tuple[str, ...]:
    """What is left out for another reason than that this is not compiled yet."""
    begins = f"{newcomer.plain}: "
    return tuple(said for said in choice.left_out if not said.startswith(begins))[:MAX_LEFT_OUT]
