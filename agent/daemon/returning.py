"""Tries again, with patience, an accelerator that could not be had when a way was chosen.

The chosen way serves meanwhile. Once the accelerator works the choice is made anew, by measurement,
and what is better then takes over between two messages. What is lost while it serves comes back by
itself (`agent.daemon.serving`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agent.control import events as e
from agent.control.state import DeviceState, SlotState, choice_for, choice_key, settled
from agent.daemon.serving import RETURN_LAST_S
from agent.documents.choice import Choice, Way
from agent.documents.deployment import Slot
from agent.errors import AgentError

log = logging.getLogger(__name__)

# What a slot waits for; the same after the choice was made anew in vain.
_Awaited = tuple[str, Way | None, tuple[str, ...]]


class Returning:
    """Slots whose choice left an accelerator out that may be had later.

    Args:
        state: Of the device.
        works: Whether what a choice left out can be had now.
        feed: Takes what follows.
        first_s: How long after the choice it is tried; twice as long each time.
    """

    def __init__(
        self,
        state: Callable[[], DeviceState],
        works: Callable[[str, Slot, Choice], Awaitable[bool]],
        feed: Callable[[e.Outdated], None],
        first_s: float,
    ) -> None:
        self._state = state
        self._works = works
        self._feed = feed
        self._first_s = first_s
        self._waiting: dict[str, tuple[_Awaited, asyncio.Task[None]]] = {}

    def look(self) -> None:
        """Begin to wait where a choice left something out, and end it where none does any more."""
        state = self._state()
        awaited = {name: _awaited(state, entry) for name, entry in state.slots.items()}
        for name, (known, task) in list(self._waiting.items()):
            if awaited.get(name) != known:
                task.cancel()
                del self._waiting[name]
        for name, wanted in awaited.items():
            if wanted is not None and name not in self._waiting:
                task = asyncio.get_running_loop().create_task(self._try_again(name))
                self._waiting[name] = (wanted, task)

    def close(self) -> None:
        """Wait for nothing more."""
        for _, task in self._waiting.values():
            task.cancel()
        self._waiting.clear()

    async def _try_again(self, name: str) -> None:
        after_s = self._first_s
        while True:
            await asyncio.sleep(after_s)
            after_s = min(RETURN_LAST_S, 2 * after_s)
            entry = self._state().slots.get(name)
            if entry is None or entry.serving is None or not settled(entry):
                continue
            choice = choice_for(self._state(), entry.serving)
            if choice is None:
                continue
            try:
                works = await self._works(name, entry.serving, choice)
            except AgentError as error:
                log.info("slot=%s what its way left out cannot be tried: %s", name, error)
                continue
            if works:
                log.info("slot=%s an accelerator that was left out works; chosen anew", name)
                self._feed(e.Outdated(name, entry.serving.pack))


def _awaited(state: DeviceState, entry: SlotState) -> _Awaited | None:
    if entry.serving is None:
        return None
    choice = choice_for(state, entry.serving)
    if choice is None or not choice.waits:
        return None
    again = choice.again.way if choice.again is not None else None
    return choice_key(entry.serving), again, choice.absent
