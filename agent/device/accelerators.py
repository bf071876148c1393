"""What computes beside the CPU: one function for each vendor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from agent.device import edgetpu, gpus, npus
from agent.device.surroundings import Surroundings
from agent.documents.device import Accelerator

MAX_ACCELERATORS = 64
PROBES: tuple[Callable[[Surroundings], Iterator[Accelerator]], ...] = (
    edgetpu.probe,
    gpus.nvidia,
    gpus.intel,
    npus.accel_nodes,
    npus.hailo,
    npus.rockchip,
    npus.nxp,
)


def probe(around: Surroundings) -> tuple[Accelerator, ...]:
    """Find all accelerators, ready or not."""
    return tuple(islice((found for look in PROBES for found in look(around)), MAX_ACCELERATORS))
