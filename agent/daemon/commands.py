"""Commands from afar: what the local API answers, answered over the link."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from agent.clouds.dialect import Command
from agent.control import events as e
from agent.daemon.reconciler import Reconciler
from agent.errors import StoreError, UsageError

log = logging.getLogger(__name__)

MAX_COMMANDS = 16
SAVED_WITHIN_S = 5.0


class Commands:
    """Obeys commands, a few at a time.

    Args:
        answer: Answers a request in JSON, as the local API does.
        reply: Sends an answer over the link.
        spawn: Runs something beside the rest.
    """

    def __init__(
        self,
        answer: Callable[[bytes], Awaitable[Mapping[str, Any]]],
        reply: Callable[[Command, bytes], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._answer = answer
        self._reply = reply
        self._spawn = spawn
        self._at_work = 0

    def obey(self, command: Command) -> None:
        """Begin to answer a command, unless too many others are being answered."""
        if self._at_work >= MAX_COMMANDS:
            log.warning("command %s dropped: %d others are at work", command.name, self._at_work)
            return
        self._at_work += 1
        self._spawn(self._obey(command))

    async def _obey(self, command: Command) -> None:
        try:
            await self._do(command)
        finally:
            self._at_work -= 1

    async def _do(self, command: Command) -> None:
        request: dict[str, Any] = {}
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            request = msgspec.json.decode(command.payload or b"{}", type=dict[str, Any])
        asked = msgspec.json.encode({**request, "command": command.name})
        answer = dict(await self._answer(asked))
        if "id" in request:
            answer["id"] = request["id"]
        self._reply(command, msgspec.json.encode(answer))


async def roll_back(reconciler: Reconciler, request: dict[str, Any]) -> dict[str, Any]:
    """Let a slot serve its previous pack again.

    Raises:
        UsageError: There is no such slot, or nothing to go back to.
        StoreError: It is not saved yet, and done as soon as it is.
    """
    slot = request.get("slot")
    slots = reconciler.state.slots
    entry = slots.get(slot) if isinstance(slot, str) else None
    if entry is None:
        raise UsageError(f"no slot {slot!r}", hint=f"slots: {', '.join(slots)}")
    if entry.previous is None:
        raise UsageError(f"slot {slot!r} has no previous pack to go back to")
    saved = reconciler.settle(e.RollbackRequested(str(slot)))
    await asyncio.wait((saved,), timeout=SAVED_WITHIN_S)
    if not saved.done():
        raise StoreError("the rollback is not saved yet", hint="it is done as soon as it is")
    saved.result()
    return {"slot": slot, "to": entry.previous.pack}
