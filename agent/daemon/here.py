"""What this device is, for the decisions of the daemon: read when one is due, in a thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.control.heat import Caps
from agent.control.profiles import Recognised
from agent.device import profiles
from agent.device.condition import look
from agent.device.detect import detect
from agent.device.machine import from_here
from agent.device.tree import Folder, Source, Tree
from agent.documents.device import Device, RuntimeFacts
from agent.links.runtime_probe import probe_runtimes

log = logging.getLogger(__name__)

# Asking a runtime means importing it; one that is installed meanwhile is found after this.
RUNTIMES_HOLD_S = 600.0


class Conditions(msgspec.Struct, frozen=True):
    """What the device is like at a moment."""

    throttled: bool = False
    clock_hz: float | None = None


class Known(msgspec.Struct, frozen=True):
    """A device's facts, and what it was recognised as."""

    device: Device
    recognised: Recognised


def device_with(state_dir: Path, facts: RuntimeFacts) -> Device:
    """Read what the device is now, with one runtime that has been asked already; takes
    milliseconds."""
    return detect(Tree(Folder()), from_here(state_dir), (facts,))


class Here:
    """This device.

    Args:
        state_dir: Whose file system matters.
        own_profiles: The user's folder of profiles.
        probe: Asks all runtimes what they can do, each in a process of its own. Blocks.
        clock: Monotonic seconds.
        source: The files that tell of heat; None: those of this machine.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        own_profiles: Path = profiles.OWN,
        probe: Callable[[], tuple[RuntimeFacts, ...]] = probe_runtimes,
        clock: Callable[[], float] = time.monotonic,
        source: Source | None = None,
    ) -> None:
        self._state_dir = state_dir
        self._own_profiles = own_profiles
        self._probe = probe
        self._clock = clock
        self._source = source
        self._caps = Caps()
        self._profiles: profiles.Profiles | None = None
        self._runtimes: tuple[RuntimeFacts, ...] = ()
        self._asked_at: float | None = None
        self._looking = asyncio.Lock()
        self.known: Known | None = None

    async def look(self) -> Known:
        """Read all facts, and ask the runtimes where that is long ago or one of them did not work.

        Raises:
            RuntimeUnavailable: The installation is damaged.
        """
        async with self._looking:
            self.known = await asyncio.to_thread(self._look)
            return self.known

    def _look(self) -> Known:
        if self._profiles is None:
            self._profiles = profiles.load(self._own_profiles)
            for trouble in self._profiles.troubles:
                log.warning("profile left out: %s", trouble)
        if self._asked_at is None or self._clock() - self._asked_at > RUNTIMES_HOLD_S:
            self._runtimes = self._probe()
            self._asked_at = self._clock()
        device = detect(Tree(Folder()), from_here(self._state_dir), self._runtimes)
        return Known(device, self._profiles.recognise(device))

    def conditions(self) -> Conditions:
        """How hot and how fast the device is at this moment."""
        seen = look(self._source)
        self._caps = self._caps.after(seen)
        return Conditions(self._caps.impaired(seen), seen.speed_hz)
