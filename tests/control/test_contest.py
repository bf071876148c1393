"""A contest between ways of running a pack: each proven, then measured in turn with the others."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from agent.control.choice import BLOCKS_A_ROUND, Round
from agent.control.contest import Contest, Outcome, Proven, Rules
from agent.documents.choice import Way
from agent.documents.manifest import Limits
from agent.documents.report import Placement
from agent.errors import AgentError, LinkError, RuntimeUnavailable, SelfTestFailed, WorkerExited

MB = 1 << 20


A, B, C = Way("a", "onnx"), Way("b", "tflite"), Way("a", "onnx", threads=2)
WAYS = {str(way): way for way in (A, B, C)}


@dataclass
class Runner:
    """A candidate's process that is as fast, and as large, as the test says."""

    ms: float = 1.0
    memory_mb: int = 50
    # What it ends with: at its start, or at its n-th measurement.
    fails: AgentError | None = None
    dies_at: int = -1
    stopped: int = 0
    measured: int = 0

    # Share of operators on what they were to run on.
    share: float = 1.0

    @property
    def proven(self) -> Proven:
        placement = Placement("NPU", "NPU", self.share, why="no kernel for Sort")
        return Proven(placement, 2 * self.ms, self.memory_mb * MB, 0.0)

    async def measure(self) -> Round:
        self.measured += 1
        if self.measured == self.dies_at:
            raise WorkerExited("signal 11, SIGSEGV")
        return Round((self.ms,) * BLOCKS_A_ROUND, self.ms)

    def stop(self) -> None:
        self.stopped += 1


@dataclass
class Arena:
    runners: dict[str, Runner]
    rules: Rules = field(default_factory=lambda: Rules(10.0, 1024 * MB))
    begun: list[Way] = field(default_factory=list)

    async def begin(self, way: Way) -> Runner:
        self.begun.append(way)
        runner = self.runners[str(way)]
        if runner.fails is not None:
            raise runner.fails
        return runner

    def hold(self) -> Outcome:
        async def story() -> Outcome:
            ways = [WAYS[name] for name in self.runners]
            clock = asyncio.get_running_loop().time
            return await Contest(ways, self.begin, self.rules, clock).hold()

        return asyncio.run(story())


def test_the_fastest_is_chosen_and_every_process_is_ended() -> None:
    arena = Arena({str(A): Runner(3.0), str(B): Runner(1.0), str(C): Runner(2.0)})
    outcome = arena.hold()
    assert [tried.way for tried in outcome.passed] == [B, C, A]
    assert outcome.passed[0].median_ms == 1.0
    assert outcome.because == f"1 ms a run, 2 times as fast as {C}"
    assert all(runner.stopped for runner in arena.runners.values())


def test_one_that_fails_its_self_test_is_out_however_fast_it_is() -> None:
    arena = Arena({str(A): Runner(0.1, fails=SelfTestFailed("it answers 2")), str(B): Runner(1.0)})
    outcome = arena.hold()
    assert [tried.way for tried in outcome.passed] == [B]
    assert outcome.tried[1].excluded == "it answers 2"
    assert outcome.because == "the only way that works here: 1 ms a run"


def test_an_absent_runtime_is_looked_for_once() -> None:
    absent = Runner(fails=RuntimeUnavailable("no onnxruntime"))
    arena = Arena({str(A): absent, str(C): absent, str(B): Runner()})
    outcome = arena.hold()
    assert arena.begun == [A, B]
    assert [tried.excluded for tried in outcome.tried[1:]] == ["no onnxruntime"] * 2


def test_one_that_dies_while_it_is_measured_is_out() -> None:
    arena = Arena({str(A): Runner(0.5, dies_at=2), str(B): Runner(1.0)})
    outcome = arena.hold()
    assert [tried.way for tried in outcome.passed] == [B]
    assert "SIGSEGV" in outcome.tried[1].excluded
    assert outcome.tried[1].code == "worker_exited"


def test_where_memory_is_short_each_is_started_anew_for_its_turn() -> None:
    arena = Arena({str(A): Runner(1.0, 600), str(B): Runner(1.1, 600)})
    outcome = arena.hold()
    assert len(outcome.passed) == 2
    assert len(arena.begun) > 2
    assert all(runner.stopped for runner in arena.runners.values())


def test_what_the_pack_demands_speaks_against_a_candidate() -> None:
    demands = Rules(10.0, 1024 * MB, Limits(min_coverage=0.9))
    outcome = Arena({str(A): Runner(0.5, share=0.5), str(B): Runner(1.0)}, demands).hold()
    assert [tried.way for tried in outcome.passed] == [B]
    assert outcome.tried[1].excluded == (
        "50% of its operators run on NPU, the pack demands 90%: no kernel for Sort"
    )
    demands = Rules(10.0, 1024 * MB, Limits(max_p95_ms=2.0))
    slow = Arena({str(A): Runner(5.0), str(B): Runner(1.0)}, demands).hold()
    assert slow.tried[1].excluded == "p95 is 5 ms, the pack demands 2 ms"


def test_one_that_could_never_meet_the_deadline_of_a_message_is_out() -> None:
    rules = Rules(10.0, 1024 * MB, deadline_ms=4.0)
    outcome = Arena({str(A): Runner(5.0), str(B): Runner(1.0)}, rules).hold()
    assert outcome.tried[1].excluded == "a run takes 5 ms, a message may take 4 ms"


def test_a_machine_that_cannot_start_a_process_says_nothing_about_candidates() -> None:
    arena = Arena({str(A): Runner(), str(B): Runner(fails=LinkError("too many processes"))})
    with pytest.raises(LinkError):
        arena.hold()
    assert arena.runners[str(A)].stopped


def test_nobody_passing_leaves_the_reasons() -> None:
    outcome = Arena({str(A): Runner(fails=SelfTestFailed("wrong"))}).hold()
    assert outcome.passed == ()
    assert [str(failure) for failure in outcome.failures] == ["wrong"]
