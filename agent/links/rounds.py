"""How a probe takes part in a contest: what its process has proven, and one round of it."""

from __future__ import annotations

from agent.control.choice import BLOCK_MS, BLOCKS_A_ROUND
from agent.control.contest import Proven
from agent.wire.worker import Measure, Probed

ROUND = Measure(blocks=BLOCKS_A_ROUND, block_ms=BLOCK_MS)
# One round of a candidate may take this long, however slow the model is.
ROUND_DEADLINE_S = 60.0


def proven(probed: Probed) -> Proven:
    """What a contest reads of a probe that has passed its self-test."""
    return Proven(
        probed.ready.placement,
        probed.first_ms,
        probed.peak_memory_bytes,
        probed.max_deviation,
        probed.message_ms,
        load_ms=probed.ready.load_ms,
    )
