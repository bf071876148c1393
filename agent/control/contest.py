"""A contest between the ways to run a pack: each candidate is proven in a process of its own, then
measured in turn with the others. Whoever holds it brings the processes."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec
from msgspec.structs import replace

from agent.control.choice import Decision, Figures, Round, Trial, decide, figures, next_round
from agent.documents.choice import Choice, Tried, Way
from agent.documents.manifest import Limits
from agent.documents.report import Placement
from agent.errors import AgentError, RuntimeUnavailable


class Proven(msgspec.Struct, frozen=True):
    """What is known of a candidate once it has passed its self-test."""

    placement: Placement
    first_ms: float
    peak_memory_bytes: int
    max_deviation: float
    # Of the self-test's messages the one that takes longest, from payload to answer.
    message_ms: float | None = None
    load_ms: float | None = None


class Runner(Protocol):
    """A candidate's process, which has proven itself."""

    @property
    def proven(self) -> Proven: ...

    async def measure(self) -> Round:
        """Run the model for one round.

        Raises:
            AgentError: It died, or took too long.
        """

    def stop(self) -> None:
        """End the process."""


class Rules(msgspec.Struct, frozen=True):
    """What a contest keeps to.

    Args:
        budget_s: Seconds for measuring, all together.
        memory_bytes: What the candidates' processes may take together; above it each is started
            anew for its turn.
        demands: Of the pack.
        deadline_ms: How long one message may take; a candidate whose runs take longer would be
            ended again and again.
    """

    budget_s: float
    memory_bytes: int
    demands: Limits = msgspec.field(default_factory=Limits)
    deadline_ms: float = math.inf


class Outcome(msgspec.Struct, frozen=True):
    """How a contest ended: the candidates that passed, the best first, then those that are out."""

    tried: tuple[Tried, ...]
    decision: Decision
    failures: tuple[AgentError, ...]

    @property
    def passed(self) -> tuple[Tried, ...]:
        return self.tried[: len(self.decision.order)]

    def choice(self, left_out: Sequence[str], key: str) -> Choice:
        """What to remember of a contest that somebody passed."""
        return Choice(self.passed[0].way, self.tried, self.because, tuple(left_out), key)

    @property
    def because(self) -> str:
        """Why the first of those that passed was chosen, in a sentence; nothing: none passed."""
        if not self.passed:
            return ""
        best = self.passed[0]
        assert best.median_ms is not None
        if len(self.passed) == 1:
            only = "the only way that works here" if len(self.tried) > 1 else "the only way"
            return f"{only}: {best.median_ms:.3g} ms a run"
        other = self.passed[1]
        assert other.median_ms is not None
        if self.decision.cheaper:
            return f"as fast as others, and cheaper: {best.median_ms:.3g} ms a run"
        gain = other.median_ms / max(best.median_ms, 1e-9)
        return f"{best.median_ms:.3g} ms a run, {gain:.2g} times as fast as {other.way}"


class Contest:
    """One contest. `begin` starts a candidate's process and returns when it has proven itself."""

    def __init__(
        self,
        ways: Sequence[Way],
        begin: Callable[[Way], Awaitable[Runner]],
        rules: Rules,
        clock: Callable[[], float],
    ) -> None:
        self._ways = ways
        self._begin = begin
        self._rules = rules
        self._clock = clock
        self._trials = [Trial(way.threads, last_resort=way.last_resort) for way in ways]
        self._proven: list[Proven | None] = [None for _ in ways]
        self._alive: dict[int, Runner] = {}
        self._absent: dict[str, str] = {}
        self._failures: list[AgentError] = []

    async def hold(self) -> Outcome:
        """Prove and measure all candidates.

        Raises:
            AgentError: A retryable one: the machine cannot try them at this moment.
        """
        try:
            for place in range(len(self._ways)):
                await self._prove(place)
            ends = self._clock() + self._rules.budget_s
            while turn := next_round(self._trials, ends - self._clock()):
                for place in turn:
                    await self._measure(place)
        finally:
            self._stop_all()
        self._hold_to_limits()
        decision = decide(self._trials)
        out = [place for place in range(len(self._ways)) if place not in decision.order]
        return Outcome(
            tuple(self._row(place, decision) for place in (*decision.order, *out)),
            decision,
            tuple(self._failures),
        )

    async def _prove(self, place: int) -> None:
        way = self._ways[place]
        if way.runtime in self._absent:
            self._trials[place] = self._trials[place].out(self._absent[way.runtime])
            return
        try:
            runner = await self._begin(way)
        except AgentError as error:
            self._fail(place, error)
            if isinstance(error, RuntimeUnavailable):
                self._absent[way.runtime] = str(error)
            return
        proven = self._proven[place] = runner.proven
        objection = _objection(self._rules.demands, proven)
        self._trials[place] = replace(
            self._trials[place],
            excluded=objection,
            first_ms=proven.first_ms,
            peak_memory_bytes=proven.peak_memory_bytes,
        )
        if objection:
            runner.stop()
        else:
            self._keep(place, runner)

    async def _measure(self, place: int) -> None:
        runner = self._alive.pop(place, None)
        try:
            runner = runner or await self._begin(self._ways[place])
            measured = await runner.measure()
        except AgentError as error:
            if runner is not None:
                runner.stop()
            self._fail(place, error)
            return
        self._trials[place] = self._trials[place].after(measured)
        self._keep(place, runner)

    def _fail(self, place: int, error: AgentError) -> None:
        if error.retryable:
            raise error  # it says nothing about the candidate, which may be the best one
        self._failures.append(error)
        self._trials[place] = self._trials[place].out(str(error), error.code)

    def _keep(self, place: int, runner: Runner) -> None:
        self._alive[place] = runner
        taken = sum(self._trials[place].peak_memory_bytes for place in self._alive)
        if taken > self._rules.memory_bytes:
            self._stop_all()

    def _stop_all(self) -> None:
        for runner in self._alive.values():
            runner.stop()
        self._alive.clear()

    def _hold_to_limits(self) -> None:
        for place, trial in enumerate(self._trials):
            if trial.rounds and not trial.excluded:
                self._trials[place] = trial.out(self._too_slow(figures(trial)))

    def _too_slow(self, found: Figures) -> str:
        limit_ms, deadline_ms = self._rules.demands.max_p95_ms, self._rules.deadline_ms
        if limit_ms is not None and found.p95_ms > limit_ms:
            return f"p95 is {found.p95_ms:.3g} ms, the pack demands {limit_ms:g} ms"
        if found.median_ms > deadline_ms:
            return f"a run takes {found.median_ms:.3g} ms, a message may take {deadline_ms:g} ms"
        return ""

    def _row(self, place: int, decision: Decision) -> Tried:
        way, trial, proven = self._ways[place], self._trials[place], self._proven[place]
        found = decision.figures[place]
        if found is None or proven is None:
            return Tried(way, trial.excluded or "it was not measured", trial.code)
        return Tried(
            way,
            median_ms=round(found.median_ms, 4),
            best_ms=round(found.best_ms, 4),
            p95_ms=round(found.p95_ms, 4),
            cpu_ms=round(found.cpu_ms, 4),
            first_ms=round(trial.first_ms, 4),
            message_ms=proven.message_ms,
            load_ms=proven.load_ms,
            peak_memory_bytes=trial.peak_memory_bytes,
            max_deviation=proven.max_deviation,
            placement=proven.placement,
            limited_by_heat=found.limited_by_heat,
        )


def _objection(demands: Limits, proven: Proven) -> str:
    """What the pack's own demands have against a candidate that works; nothing: they are met."""
    share, placement = proven.placement.operators, proven.placement
    if demands.min_coverage is None or share is None or share >= demands.min_coverage:
        return ""
    why = f": {placement.why}" if placement.why else ""
    return (
        f"{share:.0%} of its operators run on {placement.wanted}, the pack demands "
        f"{demands.min_coverage:.0%}{why}"
    )
