"""What a deployment's actions do: fetch, verify, qualify, switch, watch, restore, stop."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from agent.control import events as e
from agent.control.hangs import patience
from agent.control.heat import lighter
from agent.control.rollouts import same_target
from agent.control.state import DeviceState, SlotState, choice_for, targets_of
from agent.daemon.bus import Bus
from agent.daemon.compiling import Wanted
from agent.daemon.fetch import Fetcher
from agent.daemon.lane import DeadLetter, Effects, Lane
from agent.daemon.meters import SlotMeters
from agent.daemon.reconciler import failure_of
from agent.daemon.serving import Hooks, Plan, SlotServer
from agent.daemon.supervisor import Supervisor
from agent.daemon.vouching import Vouching
from agent.documents import codec
from agent.documents.choice import Choice, Way
from agent.documents.deployment import Slot
from agent.documents.manifest import MAX_MANIFEST_BYTES, Manifest
from agent.documents.report import Failure, Progress
from agent.documents.settings import Settings, shared_prefix_of
from agent.errors import (
    AgentError,
    FetchError,
    ModelRejected,
    PackError,
    StoreCorrupt,
)
from agent.store.packs import PackStore
from agent.wire.worker import Load

if TYPE_CHECKING:
    from agent.daemon.choosing import Chooser

log = logging.getLogger(__name__)

# How long a switch waits for the broker to answer the subscription; a broker that is away is not
# the pack's fault.
LISTENING_WITHIN_S = 5.0
# How long an accelerator may be silent: this, or so many times what it usually takes.
ACCELERATED_DEADLINE_S, ACCELERATED_PATIENCE = 0.5, 20.0


class Acts(msgspec.Struct):
    """The performers of the reconciler, and the slots that serve.

    Every act may be repeated: after a restart the same one is asked for again.
    """

    settings: Settings
    store: PackStore
    fetcher: Fetcher
    vouching: Vouching
    supervisor: Supervisor
    # Made when it is first needed: what serves already needs none.
    chooser: Callable[[], Chooser]
    # Makes the bus of a lane; ends what a slot that is gone left with the broker.
    bus: Callable[[Lane], Bus]
    end_session: Callable[[str], Awaitable[None]]
    hooks: Hooks
    dead_letter: Callable[[DeadLetter], None]
    state: Callable[[], DeviceState]
    progressed: Callable[[], None]
    # A slot's pack cannot be started from what is on disk.
    unservable: Callable[[str, Failure], None]
    # Where what was compiled for a way is; nothing: it is compiled at the load.
    compiled: Callable[[Manifest, Way], Awaitable[str]]
    servers: dict[str, SlotServer] = msgspec.field(default_factory=dict)
    progress: dict[str, Progress] = msgspec.field(default_factory=dict)
    _stopping: dict[str, asyncio.Task[None]] = msgspec.field(default_factory=dict)
    _ending: dict[str, asyncio.Task[None]] = msgspec.field(default_factory=dict)

    # -- performers -----------------------------------------------------------------------------

    async def fetch(self, action: e.Fetch) -> e.Fetched:
        target, name = action.target, action.slot
        here_before: int | None = None

        def progress(done: int, total: int) -> None:
            nonlocal here_before
            here_before = done if here_before is None else here_before
            self.progress[name] = Progress(done, total)
            self.progressed()

        self.progress.pop(name, None)
        entry = self.state().slots.get(name)
        urgent = entry is None or entry.serving is None
        try:
            await self.fetcher.fetch(target.pack, target.source, progress, urgent=urgent)
        except FetchError as error:
            # What is here stays in the report while the slot waits for another attempt.
            here = self.progress.get(name)
            error.progressed = here is not None and here.done_bytes > (here_before or 0)
            raise
        self.progress.pop(name, None)
        return e.Fetched(name, action.rollout)

    async def verify(self, action: e.Verify) -> e.Verified:
        pack = action.target.pack
        await self._check_stored(pack)
        # Once more, by the bytes that will be loaded: time may have passed since they came.
        signature = await asyncio.to_thread(self.store.signature, pack)
        vouched = await self.vouching.judge(pack, self._manifest_bytes(pack), signature)
        self._manifest(pack)
        return e.Verified(action.slot, action.rollout, vouched.trust)

    async def _check_stored(self, pack: str) -> None:
        bad = await asyncio.to_thread(self.store.repair, pack)
        if bad:
            names = ", ".join(file.name for file in bad)
            raise StoreCorrupt(
                f"pack {pack}: {names} on disk is not what the manifest says",
                hint="it is fetched again; if this repeats, check the storage medium",
            )

    async def qualify(self, action: e.Qualify) -> e.Qualified:
        """Prove and measure the pack in throw-away processes: the best way to run it is chosen."""
        name, target = action.slot, action.target
        manifest = self._manifest(target.pack)

        await self._check_complete(manifest, target)
        choice = await self.chooser().choose(
            manifest,
            target.pin,
            partial(self._load_to_probe, name, target, manifest),
            self._deadline_s(manifest),
            self._threads_taken(name),
        )
        log.info("slot=%s runs %s: %s", name, choice.way, choice.because)
        for tried in choice.tried:
            if tried.excluded:
                log.info("slot=%s not %s: %s", name, tried.way, tried.excluded)
        return e.Qualified(name, action.rollout, choice)

    async def _check_complete(self, manifest: Manifest, target: Slot) -> None:
        """See that all is on disk that this device needs: it may need more than when the pack came.

        Raises:
            StoreCorrupt: It is not; the rest is fetched.
        """
        with suppress(ModelRejected):
            needed = await self.chooser().files_needed(manifest, [target.pin])
            folder = self.store.directory(target.pack)
            missing = sorted(name for name in needed if not (folder / name).exists())
            if missing:
                raise StoreCorrupt(
                    f"pack {target.pack}: {', '.join(missing)} is needed here now, and is not here",
                    hint="it is fetched",
                )

    def _threads_taken(self, name: str) -> int:
        """How many threads the other slots run with."""
        others = (entry.serving for other, entry in self.state().slots.items() if other != name)
        choices = (choice_for(self.state(), serving) for serving in others if serving is not None)
        return sum(choice.way.threads for choice in choices if choice is not None)

    async def leaves_out(self, pack: str, manifest: Manifest) -> set[str]:
        """The files of a pack that no slot needs on this device, from its manifest alone.

        Raises:
            ModelRejected: No variant can run here.
        """
        pins = [slot.pin for slot in targets_of(self.state()) if slot.pack == pack] or [None]
        return set(manifest.files) - await self.chooser().files_needed(manifest, pins)

    async def outdated(self) -> list[tuple[str, str]]:
        """The slots, with their packs, whose way was chosen by what is another now."""
        found = []
        for name, entry in self.state().slots.items():
            choice = choice_for(self.state(), entry.serving) if entry.serving is not None else None
            if entry.serving is None or choice is None:
                continue
            with suppress(AgentError):
                manifest = self._manifest(entry.serving.pack)
                if not await self.chooser().still_holds(manifest, choice):
                    found.append((name, entry.serving.pack))
        return found

    async def works_again(self, name: str, target: Slot, choice: Choice) -> bool:
        """Whether an accelerator that a choice left out can be had now.

        Raises:
            AgentError: This cannot be found out.
        """
        manifest = self._manifest(target.pack)
        if choice.again is None:
            return await self.chooser().has_come(manifest, choice)
        way = choice.again.way
        plan = self._plan_of(name, target, manifest, way, probe=True)
        try:
            probe = await self.supervisor.probe(way.runtime, plan.load, plan.load_deadline_s)
        except AgentError as error:
            log.info("slot=%s %s does not work yet: %s", name, way, error)
            return False
        probe.stop()
        return True

    async def switch(self, action: e.Switch) -> e.Switched:
        await self._take_over(action.slot, action.target, on_probation=True)
        return e.Switched(action.slot, action.rollout)

    async def restore(self, action: e.Restore) -> e.Restored:
        # Where the switch that was left did not happen, a new worker would only lose open windows.
        if not self._serves(action.slot, action.target):
            await self._take_over(action.slot, action.target, on_probation=False)
        return e.Restored(action.slot, action.rollout)

    def _serves(self, name: str, target: Slot) -> bool:
        server = self.servers.get(name)
        if server is None or server.plan is None or server.worker is None:
            return False
        return same_target(server.plan.spec, target)

    async def _take_over(self, name: str, target: Slot, *, on_probation: bool) -> None:
        await self._gone(name)
        plan = await self._with_compiled(self._plan(name, target))
        server = self.servers.get(name) or self._new_server(name, target)
        try:
            await server.switch(plan, on_probation=on_probation)
        except BaseException:
            if self.servers.get(name) is not server:
                await server.stop(for_good=True)
            raise
        self.servers[name] = server
        # Only now: what came before could not be answered.
        server.bus.listen()
        await server.bus.listening(LISTENING_WITHIN_S)

    async def _gone(self, name: str) -> None:
        """Return when an earlier slot of this name has finished and lets go of the session."""
        stopping = self._stopping.get(name)
        if stopping is not None:
            await asyncio.wait((stopping,))
        ending = self._ending.get(name)
        if ending is not None:
            ending.cancel()
            await asyncio.wait((ending,))

    async def watch(self, action: e.Watch) -> e.ProbationPassed:
        server = self.servers.get(action.slot)
        if server is not None:
            server.on_probation = True
        await asyncio.sleep(action.target.rollout.probation_s)
        if server is not None:
            server.on_probation = False
        return e.ProbationPassed(action.slot, action.rollout)

    async def wait(self, action: e.Wait) -> e.RetryDue:
        # Jitter, so that a fleet that lost its server does not come back at once.
        await asyncio.sleep(action.seconds * random.uniform(0.5, 1.0))  # noqa: S311
        return e.RetryDue(action.slot, action.rollout)

    async def stop_slot(self, action: e.StopSlot) -> e.SlotStopped:
        name = action.slot
        self.progress.pop(name, None)
        server = self.servers.pop(name, None)
        if server is not None:
            stopping = self._stopping[name] = asyncio.ensure_future(self._remove(server))
            stopping.add_done_callback(lambda _: self._stopping.pop(name, None))
            await asyncio.shield(stopping)
        # Where the broker is away this takes until it is back, or until the slot is.
        ending = self._ending[name] = asyncio.ensure_future(self.end_session(name))
        ending.add_done_callback(lambda _: self._ending.pop(name, None))
        await asyncio.wait((ending,))
        return e.SlotStopped(name)

    async def _remove(self, server: SlotServer) -> None:
        server.bus.leave()
        await server.stop(for_good=True)
        await server.bus.stop()

    def is_spare(self, runtime: str) -> bool:
        """Whether a slot would be run on this runtime at once, were its accelerator to fail."""
        plans = (server.plan for server in self.servers.values())
        return any(
            plan is not None
            and plan.way.accelerated
            and plan.spare is not None
            and plan.spare.way.runtime == runtime
            for plan in plans
        )

    # -- serving --------------------------------------------------------------------------------

    async def serve_what_served(self) -> None:
        """At boot: every slot that had a proven pack serves it, whatever its rollout does.

        Each pack is verified once more before it is loaded: the disk may have lost or altered it
        since. A slot whose pack is damaged listens all the same, so that no message is taken for
        unwanted while the pack is repaired.
        """
        packs: dict[str, list[SlotServer]] = {}
        for name, entry in self.state().slots.items():
            if entry.serving is None:
                continue
            server = self._new_server(name, entry.serving)
            server.on_probation = not entry.proven
            server.looping = entry.looping is not None
            self.servers[name] = server
            server.bus.listen(former=_filters(entry))
            packs.setdefault(entry.serving.pack, []).append(server)
        await asyncio.gather(*(self._serve_whole(pack, slots) for pack, slots in packs.items()))

    async def _serve_whole(self, pack: str, slots: list[SlotServer]) -> None:
        damage: AgentError | None = None
        try:
            await self._check_stored(pack)
        except AgentError as error:
            damage = error
        for server in slots:
            name = server.lane.name
            if self.servers.get(name) is not server or server.plan is not None:
                continue  # meanwhile a rollout went on and took over, or the slot was stopped
            try:
                if damage is not None:
                    raise damage
                plan = await self._with_compiled(self._plan(name, server.lane.spec))
                if self.servers.get(name) is server and server.plan is None:
                    server.serve(plan)
            except AgentError as error:
                log.error("slot=%s cannot serve: %s", name, error)
                self.unservable(name, failure_of(error))

    def _new_server(self, name: str, spec: Slot) -> SlotServer:
        lane = Lane(
            name,
            self.settings.device_id,
            spec,
            Effects(self.dead_letter),
            SlotMeters(),
            reserved=shared_prefix_of(self.settings),
        )
        return SlotServer(
            self.bus(lane),
            self.supervisor,
            self.hooks,
            return_first_s=self.settings.limits.accelerator_retry_s,
        )

    def _deadline_s(self, manifest: Manifest) -> float:
        """How long one message may take."""
        own_ms = manifest.limits.deadline_ms
        most_s = self.settings.limits.worker_deadline_s
        return most_s if own_ms is None else min(most_s, own_ms / 1000)

    def _manifest(self, pack: str) -> Manifest:
        data = self._manifest_bytes(pack)
        return codec.decode(data, Manifest, name="manifest", max_bytes=MAX_MANIFEST_BYTES).value

    def _manifest_bytes(self, pack: str) -> bytes:
        data = self.store.manifest(pack)
        if data is None:
            raise StoreCorrupt(f"pack {pack}: its manifest is missing or altered on disk")
        return data

    def _plan(self, name: str, target: Slot) -> Plan:
        """How to start a worker for a pack that qualified here."""
        manifest = self._manifest(target.pack)
        choice = choice_for(self.state(), target)
        if choice is None:
            raise PackError(f"pack {target.pack} did not qualify on this device")

        def plan_of(way: Way) -> Plan:
            plan = self._plan_of(name, target, manifest, way)
            return replace(plan, patience=patience(manifest, choice.of(way)))

        spare = plan_of(choice.runner_up) if choice.runner_up is not None else None
        plan = replace(plan_of(choice.way), spare=spare)
        light = lighter(choice) if target.policy.action == "lighter_variant" else None
        if light is not None:
            plan = replace(plan, lighter=plan_of(light))
        best = choice.best
        if choice.way.accelerated and best is not None and best.p95_ms is not None:
            # One that hangs must not keep messages waiting for as long as a slow CPU might.
            patience_s = max(ACCELERATED_DEADLINE_S, ACCELERATED_PATIENCE * best.p95_ms / 1000)
            plan = replace(plan, message_deadline_s=min(plan.message_deadline_s, patience_s))
        return plan

    async def _with_compiled(self, plan: Plan) -> Plan:
        """Point a plan, and what may take its place, to what was compiled for it.

        Where that is gone and something else can serve, it does, until the choice is made anew: to
        compile at the load may take minutes.
        """
        if plan.spare is not None:
            plan = replace(plan, spare=await self._with_compiled(plan.spare))
        if plan.lighter is not None:
            plan = replace(plan, lighter=await self._with_compiled(plan.lighter))
        if not plan.way.compiled:
            return plan
        folder = await self.compiled(plan.manifest, plan.way)
        if not folder and plan.spare is not None:
            return plan.spare
        return replace(plan, load=replace(plan.load, cache=folder))

    def to_compile(self, name: str, target: Slot, choice: Choice) -> Wanted:
        """What compiling for a slot takes."""
        manifest = self._manifest(target.pack)

        load = partial(self._load_to_probe, name, target, manifest)
        return Wanted(name, target.pack, manifest, choice, load, self._deadline_s(manifest))

    def _load_to_probe(self, name: str, target: Slot, manifest: Manifest, way: Way) -> Load:
        return self._plan_of(name, target, manifest, way, probe=True).load

    def _plan_of(
        self,
        name: str,
        target: Slot,
        manifest: Manifest,
        way: Way,
        *,
        probe: bool = False,
    ) -> Plan:
        limits = self.settings.limits
        memory_mb = min(limits.worker_memory_mb, manifest.limits.memory_mb or 1 << 30)
        deadline_s = self._deadline_s(manifest)
        load = Load(
            directory=str(self.store.directory(target.pack)),
            pack=target.pack,
            variant=way.variant,
            slot=name,
            provider=way.provider,
            options=way.options,
            threads=way.threads,
            memory_mb=memory_mb,
            probe=probe,
            share=target.share,
            settings=dict(target.settings),
            reply_to=target.output.reply_to,
            require_isolation=self.settings.isolation.require,
            uid=self.settings.isolation.uid,
        )
        return Plan(target, manifest, way, load, limits.probe_deadline_s, deadline_s)


def _filters(entry: SlotState) -> set[str]:
    """What the slot may have asked the broker for, whatever became of it."""
    rollout, outcome = entry.rollout, entry.outcome
    known = [entry.serving, entry.previous]
    known += [rollout.target] if rollout is not None else []
    known += [outcome.target] if outcome is not None else []
    return {slot.input.topic for slot in known if slot is not None}
