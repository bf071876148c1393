"""Finds the best way to run a pack on this device: each candidate in a process of its own, proven,
then measured in turn with the others."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from agent.control.choice import BLOCKS_A_ROUND, Decision, Round, Trial, decide, figures, next_round
from agent.daemon.supervisor import NoWorkerNow, Probe
from agent.documents.choice import Tried, Way
from agent.errors import AgentError, RuntimeUnavailable
from agent.wire.worker import Measure, Measured, Probed

log = logging.getLogger(__name__)

# One round of a candidate may take this long, however slow the model is.
ROUND_DEADLINE_S = 60.0
ROUND = Measure(blocks=BLOCKS_A_ROUND)


@dataclass(frozen=True)
class Conditions:
    """What the device was like during a round."""

    throttled: bool = False
    clock_hz: float | None = None


@dataclass(frozen=True)
class Rules:
    """What a contest keeps to.

    Args:
        budget_s: Seconds for measuring, all together.
        memory_bytes: What the candidates' processes may take together; above it each is started
            anew for its turn.
        objection: Says what speaks against a candidate that passed its self-test, or nothing.
        max_p95_ms: A candidate of which more than 5 runs of 100 take longer is out.
    """

    budget_s: float
    memory_bytes: int
    objection: Callable[[Way, Probed], str] = lambda way, probed: ""
    max_p95_ms: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a contest ended: the candidates that passed, the best first, then those that are out."""

    tried: tuple[Tried, ...]
    decision: Decision
    failures: tuple[AgentError, ...]

    @property
    def passed(self) -> tuple[Tried, ...]:
        return self.tried[: len(self.decision.order)]


class Contest:
    """One contest. `begin` starts a candidate's process and returns when it has proven itself."""

    def __init__(
        self,
        ways: Sequence[Way],
        begin: Callable[[Way], Awaitable[Probe]],
        rules: Rules,
        *,
        clock: Callable[[], float],
        watch: Callable[[], Conditions],
    ) -> None:
        self._ways = ways
        self._begin = begin
        self._rules = rules
        self._clock = clock
        self._watch = watch
        self._trials = [Trial(threads=way.threads) for way in ways]
        self._probed: list[Probed | None] = [None for _ in ways]
        self._alive: dict[int, Probe] = {}
        self._failures: list[AgentError] = []

    async def hold(self) -> Outcome:
        """Prove and measure all candidates.

        Raises:
            NoWorkerNow: The machine cannot start a process at this moment.
        """
        try:
            for place in range(len(self._ways)):
                await self._prove(place)
            ends = self._clock() + self._rules.budget_s
            while turn := next_round(self._trials, ends - self._clock()):
                for place in turn:
                    await self._measure(place)
        finally:
            for probe in self._alive.values():
                probe.stop()
        self._hold_to_p95()
        decision = decide(self._trials)
        out = [place for place in range(len(self._ways)) if place not in decision.order]
        return Outcome(
            tuple(self._row(place, decision) for place in (*decision.order, *out)),
            decision,
            tuple(self._failures),
        )

    async def _prove(self, place: int) -> None:
        way = self._ways[place]
        for other, trial in zip(self._ways[:place], self._trials, strict=False):
            if other.runtime == way.runtime and isinstance(trial, _Absent):
                self._trials[place] = trial
                return
        try:
            probe = await self._begin(way)
        except NoWorkerNow:
            raise  # it says nothing about the candidate, which may be the best one
        except AgentError as error:
            self._failures.append(error)
            kind = _Absent if isinstance(error, RuntimeUnavailable) else Trial
            self._trials[place] = kind(way.threads, excluded=str(error))
            log.info("%s: out: %s", way, error)
            return
        probed = self._probed[place] = probe.probed
        objection = self._rules.objection(way, probed)
        trial = Trial(way.threads, objection, probed.first_ms, probed.peak_memory_bytes)
        self._trials[place] = trial
        if objection:
            probe.stop()
            log.info("%s: out: %s", way, objection)
        else:
            self._alive[place] = probe
            self._stop_what_is_too_much()

    def _stop_what_is_too_much(self) -> None:
        taken = sum(self._trials[place].peak_memory_bytes for place in self._alive)
        if taken > self._rules.memory_bytes:
            for probe in self._alive.values():
                probe.stop()
            self._alive.clear()

    async def _measure(self, place: int) -> None:
        try:
            probe = self._alive.pop(place, None) or await self._begin(self._ways[place])
            before = self._watch()
            measured = await probe.measure(ROUND, ROUND_DEADLINE_S)
        except NoWorkerNow:
            raise
        except AgentError as error:
            self._failures.append(error)
            self._trials[place] = self._trials[place].out(str(error))
            return
        self._alive[place] = probe
        self._stop_what_is_too_much()
        self._trials[place] = self._trials[place].after(_round(measured, before, self._watch()))

    def _hold_to_p95(self) -> None:
        limit_ms = self._rules.max_p95_ms
        if limit_ms is None:
            return
        for place, trial in enumerate(self._trials):
            if trial.rounds and not trial.excluded and figures(trial).p95_ms > limit_ms:
                why = f"p95 is {figures(trial).p95_ms:.3g} ms, the pack demands {limit_ms:g} ms"
                self._trials[place] = trial.out(why)

    def _row(self, place: int, decision: Decision) -> Tried:
        way, trial, probed = self._ways[place], self._trials[place], self._probed[place]
        found = decision.figures[place]
        if found is None or probed is None:
            return Tried(way, excluded=trial.excluded or "it was not measured")
        return Tried(
            way,
            median_ms=round(found.median_ms, 4),
            best_ms=round(found.best_ms, 4),
            p95_ms=round(found.p95_ms, 4),
            cpu_ms=round(found.cpu_ms, 4),
            first_ms=round(trial.first_ms, 4),
            peak_memory_bytes=trial.peak_memory_bytes,
            max_deviation=probed.max_deviation,
            placement=probed.ready.placement,
            limited_by_heat=found.limited_by_heat,
        )


class _Absent(Trial):
    """A candidate whose runtime is not there: all others on it are out for the same reason."""


def _round(measured: Measured, before: Conditions, after: Conditions) -> Round:
    return Round(
        measured.ms,
        measured.cpu_ms,
        throttled=before.throttled or after.throttled,
        clock_hz=after.clock_hz,
    )


def because(outcome: Outcome) -> str:
    """Say in a sentence why the first of those that passed was chosen."""
    passed = outcome.passed
    best = passed[0]
    if len(passed) == 1:
        return "it is the only way that works here" if len(outcome.tried) > 1 else "the only way"
    other = passed[1]
    assert best.median_ms is not None
    assert other.median_ms is not None
    if outcome.decision.cheaper:
        return f"as fast as others, and cheaper: {best.median_ms:.3g} ms a run"
    gain = other.median_ms / best.median_ms
    return f"{best.median_ms:.3g} ms a run, {gain:.2g} times as fast as {other.way}"
