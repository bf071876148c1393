"""Measures the ways to run a pack on this machine, as a device does before it serves one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from agent.author.folder import OpenedPack
from agent.author.trials import MEMORY_MB
from agent.control.choice import Round
from agent.control.contest import Contest, Outcome, Proven, Rules
from agent.documents.choice import Way
from agent.errors import AgentError
from agent.links.rounds import ROUND, ROUND_DEADLINE_S, proven
from agent.links.worker import BlockingWorker
from agent.wire.worker import Load, Probed

PROBE_DEADLINE_S = 60.0

# Told what happens: a way, and whether it is being proven or measured.
OnStep = Callable[[Way, str], None]


def bench(
    opened: OpenedPack,
    ways: Sequence[Way],
    *,
    budget_s: float,
    memory_bytes: int,
    on_step: OnStep = lambda way, what: None,
) -> Outcome:
    """Prove and measure every way, each in processes of its own.

    Args:
        opened: The pack, which is whole.
        ways: What could run it here.
        budget_s: Seconds for measuring, all together.
        memory_bytes: What the candidates may take together.
        on_step: Called before each step.

    Raises:
        AgentError: The machine cannot try them at this moment.
    """

    async def begin(way: Way) -> _Runner:
        on_step(way, "proving")
        return _begin(opened, way, on_step)

    rules = Rules(budget_s, memory_bytes, opened.manifest.limits)
    return asyncio.run(Contest(ways, begin, rules, time.monotonic).hold())


class _Runner(msgspec.Struct, frozen=True):
    """A candidate's process; a `Runner` of a contest that blocks, since nothing else goes on."""

    way: Way
    worker: BlockingWorker
    probed: Probed
    on_step: OnStep

    @property
    def proven(self) -> Proven:
        return proven(self.probed)

    async def measure(self) -> Round:
        self.on_step(self.way, "measuring")
        measured = self.worker.measure(ROUND, ROUND_DEADLINE_S)
        return Round(measured.ms, measured.cpu_ms)

    def stop(self) -> None:
        self.worker.close()


def _begin(opened: OpenedPack, way: Way, on_step: OnStep) -> _Runner:
    load = Load(
        directory=str(opened.directory.absolute()),
        pack=opened.pack,
        variant=way.variant,
        provider=way.provider,
        options=way.options,
        threads=way.threads,
        memory_mb=opened.manifest.limits.memory_mb or MEMORY_MB,
    )
    worker = BlockingWorker(way.runtime, load, load_deadline_s=PROBE_DEADLINE_S)
    try:
        return _Runner(way, worker, worker.probe(), on_step)
    except AgentError:
        worker.close()
        raise
