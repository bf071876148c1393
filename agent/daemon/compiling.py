"""Compiles models at low priority while another way serves, and says where a proven one is.

One at a time, in a process that may write into one folder and nowhere else. It compiles, passes the
pack's self-test, and ends; then its files are sealed, and read-only they are proven and measured
beside the way that serves (`agent.control.compiled` decides). Only then they get their name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from agent.control import events as e
from agent.control.state import DeviceState, choice_for, settled
from agent.daemon.supervisor import Supervisor
from agent.documents.choice import Choice, Way
from agent.documents.deployment import Slot
from agent.documents.manifest import Manifest
from agent.documents.settings import LimitSettings
from agent.errors import AgentError, NoSpace, StoreError, WorkerExited
from agent.store.compiled import CompiledStore
from agent.wire.worker import COMPILES_AS, Load

if TYPE_CHECKING:
    from agent.control.compiled import Verdict
    from agent.daemon.choosing import Chooser

log = logging.getLogger(__name__)

# How often a folder that is being filled is looked at.
LOOK_EVERY_S = 0.5
# After what may be better at another time, such as a full disk; twice as long each time.
AGAIN_FIRST_S, AGAIN_LAST_S = 300.0, 86_400.0
# For a process that was ended to be gone.
GONE_WITHIN_S = 5.0


class Wanted(msgspec.Struct, frozen=True):
    """A pack that waits for something to be compiled, and how a worker of it would be started."""

    slot: str
    pack: str
    manifest: Manifest
    choice: Choice
    load: Callable[[Way], Load]
    deadline_s: float


class Compiling:
    """Compiles what choices have pending.

    Args:
        store: For what is compiled.
        state_dir: Whose file system matters.
        supervisor: Starts the processes.
        limits: Of size and time.
        chooser: Holds contests; made when it is first needed.
        state: Of the device.
        prepare: How a slot's pack is run.
        feed: Takes what came of it.
    """

    def __init__(
        self,
        store: CompiledStore,
        state_dir: Path,
        supervisor: Supervisor,
        limits: LimitSettings,
        chooser: Callable[[], Chooser],
        state: Callable[[], DeviceState],
        prepare: Callable[[str, Slot, Choice], Wanted],
        feed: Callable[[e.Compiled], asyncio.Future[None]],
    ) -> None:
        self._store = store
        self._state_dir = state_dir
        self._supervisor = supervisor
        self._limits = limits
        self._chooser = chooser
        self._state = state
        self._prepare = prepare
        self._feed = feed
        self._wake = asyncio.Event()
        self._put_off: set[tuple[str, Way]] = set()
        self._again_s = AGAIN_FIRST_S

    def look(self) -> None:
        """Something may be pending now."""
        self._wake.set()

    async def run(self) -> None:
        """Compile what is pending, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (found := self._next()) is not None:
                wanted, way = found
                try:
                    await self._feed(await self._compile(wanted, way))
                    self._again_s = AGAIN_FIRST_S
                except AgentError as error:
                    log.warning("slot=%s %s is not compiled now: %s", wanted.slot, way, error)
                    self._put_off.add((wanted.pack, way))
                    asyncio.get_running_loop().call_later(self._again_s, self._try_again)
                    self._again_s = min(AGAIN_LAST_S, 2 * self._again_s)

    def _try_again(self) -> None:
        self._put_off.clear()
        self._wake.set()

    async def folder(self, manifest: Manifest, way: Way) -> str:
        """Where what was compiled for a way is, whole and for this device as it is now; nothing:
        nowhere."""
        # Imported here: it reads the device, which only a pack that was compiled needs.
        from agent.daemon.choosing import key_of
        from agent.daemon.here import device_with

        try:
            facts = await self._supervisor.facts(way.runtime)
            device = await asyncio.to_thread(device_with, self._state_dir, facts)
            found = await asyncio.to_thread(self._store.use, key_of(manifest, way, device))
        except AgentError as error:
            log.warning("%s is compiled anew: %s", way, error)
            return ""
        if found is None:
            log.warning("%s is compiled anew: what was compiled is gone or damaged", way)
        return str(found or "")

    def _next(self) -> tuple[Wanted, Way] | None:
        state = self._state()
        for name, entry in state.slots.items():
            # On probation it may be taken back yet.
            if entry.serving is None or not (settled(entry) and entry.proven):
                continue
            choice = choice_for(state, entry.serving)
            for way in choice.pending if choice is not None else ():
                if choice is not None and (entry.serving.pack, way) not in self._put_off:
                    return self._prepare(name, entry.serving, choice), way
        return None

    def _in_use(self) -> set[str]:
        """The keys of what may be needed at any moment."""
        return {choice.key for choice in self._state().qualified.values() if choice.way.compiled}

    async def _compile(self, wanted: Wanted, way: Way) -> e.Compiled:
        """Compile one way and decide what becomes of it.

        Raises:
            AgentError: A retryable one: not at this moment.
        """
        newcomer = replace(way, compiled=True)
        key = await self._chooser().key(wanted.manifest, way)
        log.info("slot=%s compiles %s", wanted.slot, way)
        folder = await asyncio.to_thread(self._store.begin, key)
        try:
            verdict = await self._proven(wanted, newcomer, key, folder)
            if verdict.refused:
                await asyncio.to_thread(self._store.refuse, key, verdict.refused)
        finally:
            self._store.give_up(folder)
        log.info(
            "slot=%s %s: %s",
            wanted.slot,
            newcomer,
            f"not used: {verdict.refused}" if verdict.refused else "proven",
        )
        return e.Compiled(wanted.slot, wanted.pack, wanted.choice, verdict.choice)

    async def _proven(self, wanted: Wanted, newcomer: Way, key: str, folder: Path) -> Verdict:
        """Fill a folder, prove what is in it, and put it under its key where it is good."""
        from agent.control.compiled import judge, kept_out

        choice = wanted.choice
        try:
            await self._fill(wanted.load(newcomer), newcomer.runtime, folder)
            sealed = await asyncio.to_thread(self._store.close, folder)
        except AgentError as error:
            if error.retryable:
                raise
            return kept_out(choice, newcomer, f"it cannot be compiled here: {error}")

        folders = {newcomer: str(folder)}
        if choice.way.compiled:
            folders[choice.way] = await self.folder(wanted.manifest, choice.way)
        outcome = await self._chooser().hold(
            wanted.manifest,
            [choice.way, newcomer],
            lambda way: replace(wanted.load(way), cache=folders.get(way, "")),
            wanted.deadline_s,
        )
        verdict = judge(choice, newcomer, outcome)
        if not verdict.refused:
            await asyncio.to_thread(self._store.keep, key, folder, sealed, self._in_use())
        return verdict

    async def _fill(self, load: Load, runtime: str, folder: Path) -> None:
        """Let a process compile into a folder, and end it where that takes too much."""
        load = replace(load, cache=str(folder), policy=COMPILES_AS[load.policy])
        room = await asyncio.to_thread(self._store.room, self._in_use())
        probing = asyncio.ensure_future(
            self._supervisor.probe(runtime, load, self._limits.compile_deadline_s)
        )
        try:
            while not probing.done():
                await asyncio.wait((probing,), timeout=LOOK_EVERY_S)
                if self._store.size(folder) > room:
                    raise NoSpace(
                        f"what is compiled takes more than the {room} bytes that there is room for",
                        hint="raise limits.compiled_mb, or free some space",
                    )
            probe = await probing
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
        probe.stop()
        # Nobody may write there any more.
        await asyncio.wait((probe.worker.gone,), timeout=GONE_WITHIN_S)
        if not probe.worker.gone.done():
            probe.worker.kill(WorkerExited("it did not end"))
            raise StoreError("the process that compiled does not end")
