"""Which way of running a model is the fastest here: a contest of trials, decided by measurement.

Every candidate is proven first and then measured in rounds, all of them in turn, so that heat and
other load hit all alike. Times are milliseconds of wall clock for one call unless a name says else.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec
from msgspec.structs import replace

ENOUGH_BLOCKS = 15
BLOCKS_A_ROUND = 5
# So long that a slow clock and a tick of CPU time do not matter; one call where that takes longer.
BLOCK_MS = 4.0
# A candidate this many times slower than the best one is measured no further.
HOPELESS = 3.0
# Within this share of the best median the cheaper candidate wins.
ALIKE = 0.05
# A round in which the clock was this much lower than in the fastest one says nothing.
CLOCK_FELL = 0.05
# The last third against the first: slower than this is heat, and heat is what service will be.
GOT_SLOWER = 1.10


class Round(msgspec.Struct, frozen=True):
    """What one candidate did in one round.

    Args:
        ms: Of one call, for each block of calls.
        cpu_ms: CPU time of one call, over all threads.
        throttled: The device slowed itself down meanwhile.
        clock_hz: Of the CPU; None where it cannot be read.
    """

    ms: tuple[float, ...]
    cpu_ms: float = 0.0
    throttled: bool = False
    clock_hz: float | None = None


class Trial(msgspec.Struct, frozen=True):
    """One candidate so far.

    Args:
        threads: That it may use.
        excluded: Why it is out: it failed its self-test, died, or needs too much memory.
        code: Of the error that put it out; nothing: none did.
        first_ms: Of the very first call.
        peak_memory_bytes: Of its process.
        rounds: In order.
        last_resort: It is chosen only where no other passes, however fast it is.
    """

    threads: int = 1
    excluded: str = ""
    code: str = ""
    first_ms: float = 0.0
    peak_memory_bytes: int = 0
    rounds: tuple[Round, ...] = ()
    last_resort: bool = False

    def after(self, measured: Round) -> Trial:
        return replace(self, rounds=(*self.rounds, measured))

    def out(self, why: str, code: str = "") -> Trial:
        return replace(self, excluded=why, code=code)

    @property
    def blocks(self) -> tuple[float, ...]:
        """Of every round, for better or worse."""
        return tuple(ms for each in self.rounds for ms in each.ms)


class Figures(msgspec.Struct, frozen=True):
    """A trial in numbers that people compare."""

    median_ms: float
    best_ms: float
    p95_ms: float
    cpu_ms: float
    # It slowed down while it was measured: the median is that of the last third.
    limited_by_heat: bool = False


class Decision(msgspec.Struct, frozen=True):
    """Places of the candidates, the chosen one first; and each one's figures, None where it has
    none."""

    order: tuple[int, ...]
    figures: tuple[Figures | None, ...]
    # Whether it was alike with a faster one, and cheaper.
    cheaper: bool = False


def next_round(trials: Sequence[Trial], seconds_left: float) -> tuple[int, ...]:
    """Return whom to measure next, by place; nobody: it is enough, or time is up.

    A contest of one needs one round only, to be able to say how fast it is.
    """
    running = [place for place, trial in enumerate(trials) if not trial.excluded]
    unmeasured = tuple(place for place in running if not trials[place].rounds)
    if unmeasured:
        # Whatever the clock says: what is not measured cannot be compared.
        return unmeasured
    best = min((figures(trials[place]).median_ms for place in running), default=0.0)
    hopeful = tuple(
        place
        for place in running
        if min(trials[place].blocks) <= HOPELESS * best
        and len(trials[place].blocks) < ENOUGH_BLOCKS
    )
    return hopeful if seconds_left > 0 and len(running) > 1 else ()


def figures(trial: Trial) -> Figures:
    """Summarise a trial that has been measured."""
    kept = _meaningful(trial.rounds)
    ms = [each for measured in kept for each in measured.ms]
    third = len(ms) // 3
    limited = third > 0 and median(ms[-third:]) > GOT_SLOWER * median(ms[:third])
    cpu = [measured.cpu_ms for measured in kept]
    return Figures(
        median_ms=median(ms[-third:] if limited else ms),
        best_ms=min(ms),
        p95_ms=sorted(ms)[min(len(ms) - 1, int(0.95 * len(ms)))],
        cpu_ms=median(cpu),
        limited_by_heat=limited,
    )


def decide(trials: Sequence[Trial]) -> Decision:
    """Order the candidates: the fastest first, the cheaper one where they are alike."""
    summaries = tuple(
        figures(trial) if trial.rounds and not trial.excluded else None for trial in trials
    )
    ranked = sorted(
        (found.median_ms, place) for place, found in enumerate(summaries) if found is not None
    )
    if not ranked:
        return Decision((), summaries)
    last = [place for _, place in ranked if trials[place].last_resort]
    ranked = [(ms, place) for ms, place in ranked if place not in last]
    if not ranked:
        return Decision(tuple(last), summaries)
    limit = ranked[0][0] * (1 + ALIKE)

    def cost(place: int) -> tuple[int, float, int, int]:
        found = summaries[place]
        assert found is not None
        return (trials[place].threads, found.cpu_ms, trials[place].peak_memory_bytes, place)

    alike = sorted((place for ms, place in ranked if ms <= limit), key=cost)
    slower = [place for ms, place in ranked if ms > limit]
    return Decision((*alike, *slower, *last), summaries, cheaper=alike[0] != ranked[0][1])


def _meaningful(rounds: Sequence[Round]) -> Sequence[Round]:
    """Leave out rounds in which the device was slowed down, unless that was all of them."""
    clocks = [measured.clock_hz for measured in rounds if measured.clock_hz]
    floor = (1 - CLOCK_FELL) * max(clocks, default=0.0)
    undisturbed = [
        measured
        for measured in rounds
        if not measured.throttled and (measured.clock_hz or floor) >= floor
    ]
    return undisturbed or rounds
