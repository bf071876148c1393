"""A candidate of a contest, run by the supervisor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.control.choice import BLOCKS_A_ROUND, Round
from agent.control.contest import Proven
from agent.daemon.supervisor import Probe
from agent.wire.worker import Measure

# One round of a candidate may take this long, however slow the model is.
ROUND_DEADLINE_S = 60.0
ROUND = Measure(blocks=BLOCKS_A_ROUND)


@dataclass(frozen=True)
class Conditions:
    """What the device was like at a moment."""

    throttled: bool = False
    clock_hz: float | None = None


@dataclass(frozen=True)
class ProbeRunner:
    """A probe, and what tells of heat meanwhile."""

    probe: Probe
    conditions: Callable[[], Conditions]

    @property
    def proven(self) -> Proven:
        probed = self.probe.probed
        return Proven(
            probed.ready.placement,
            probed.first_ms,
            probed.peak_memory_bytes,
            probed.max_deviation,
        )

    async def measure(self) -> Round:
        """Run the model for one round; see `agent.control.contest.Runner`."""
        before = self.conditions()
        measured = await self.probe.measure(ROUND, ROUND_DEADLINE_S)
        after = self.conditions()
        throttled = before.throttled or after.throttled
        return Round(measured.ms, measured.cpu_ms, throttled, after.clock_hz)

    def stop(self) -> None:
        self.probe.stop()
