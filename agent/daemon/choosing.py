"""How a pack is to be run on this device: what can run, and of that what is measured to be best.

Imported when a deployment needs it: what serves already does not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from agent.control.choice import Round
from agent.control.compiled import Sorted, compiler_of, sort_out, still_pending
from agent.control.contest import Contest, Outcome, Proven, Rules
from agent.control.fingerprint import Ran, cache_key, fingerprint
from agent.control.objections import PlanLimits, files_for
from agent.control.plan import Plan, plan
from agent.daemon.here import Conditions, Here, Known
from agent.daemon.supervisor import Probe, Supervisor
from agent.documents.choice import Choice, Way
from agent.documents.deployment import Pin
from agent.documents.device import Device
from agent.documents.manifest import Manifest
from agent.documents.settings import LimitSettings
from agent.errors import AgentError, ModelRejected
from agent.links.rounds import ROUND, ROUND_DEADLINE_S, proven
from agent.store.compiled import CompiledStore
from agent.wire.worker import Load

log = logging.getLogger(__name__)


class Chooser:
    """Chooses ways to run packs."""

    def __init__(
        self,
        here: Here,
        limits: LimitSettings,
        supervisor: Supervisor,
        compiled: CompiledStore,
    ) -> None:
        self._here = here
        self._limits = limits
        self._supervisor = supervisor
        self._compiled = compiled

    @property
    def hot_c(self) -> float | None:
        """From this temperature on the device is hot; None before the first look."""
        known = self._here.known
        return known.recognised.limits.hot_c if known is not None else None

    @property
    def profile(self) -> str:
        """What this device was recognised as; nothing before it was looked at."""
        known = self._here.known
        return known.recognised.name if known is not None else ""

    async def files_needed(self, manifest: Manifest, pins: Sequence[Pin | None]) -> set[str]:
        """The files of a pack that this device needs, from its manifest alone.

        Args:
            manifest: Of the pack.
            pins: What the slots that want it insist on; one that insists on nothing is None.

        Raises:
            ModelRejected: No variant can run here.
        """
        known = await self._here.look()
        plans = [self._plan(manifest, known, pin) for pin in pins]
        if not any(planned.runs for planned in plans):
            raise _none_runs((), plans[0].refused)
        return {name for planned in plans for name in planned.files}

    async def choose(
        self,
        manifest: Manifest,
        pin: Pin | None,
        load: Callable[[Way], Load],
        deadline_s: float,
        threads_taken: int = 0,
    ) -> Choice:
        """Prove and measure a pack in throw-away processes.

        Args:
            manifest: Of a pack that is on disk.
            pin: What the slot insists on.
            load: What a worker would be told to load.
            deadline_s: How long one message may take.
            threads_taken: By other slots; what the device has is for all of them.

        Raises:
            AgentError: Nothing can run it, or nothing passed; says why.
        """
        known = await self._here.look()
        planned = self._plan(manifest, known, pin)
        limits = known.recognised.limits
        ways, left_out = _within_budget(
            [candidate.way for candidate in planned.candidates],
            (limits.threads or int(known.device.cpu.usable)) - threads_taken,
        )
        folders, sorted_out = await asyncio.to_thread(self._sort_out, manifest, known, ways)
        left_out = (*planned.refused, *left_out)

        def load_for(way: Way) -> Load:
            return replace(load(way), cache=folders.get(way, ""))

        outcome = await self.hold(manifest, sorted_out.now, load_for, deadline_s)
        if outcome.passed:
            left_out = (*left_out, *sorted_out.left_out)
        elif sorted_out.later:
            outcome = await self.hold(manifest, sorted_out.later, load_for, deadline_s)
        if not outcome.passed:
            # Fewer threads would not have helped, so what other slots take is no reason.
            reasons = [*planned.refused, *(f"{t.way}: {t.excluded}" for t in outcome.tried)]
            if len(outcome.failures) == len(reasons) == 1:
                raise outcome.failures[0]
            raise _none_runs(outcome.failures, reasons)
        choice = outcome.choice(left_out, key_of(manifest, outcome.passed[0].way, known.device))
        absent = planned.absent if pin is None else ()
        return replace(choice, pending=still_pending(sorted_out.pending, outcome), absent=absent)

    async def hold(
        self,
        manifest: Manifest,
        ways: Sequence[Way],
        load: Callable[[Way], Load],
        deadline_s: float,
    ) -> Outcome:
        """Prove some ways to run a pack, and measure them in turn.

        Args:
            manifest: Of a pack that is on disk.
            ways: What is tried.
            load: What a worker would be told to load.
            deadline_s: How long one message may take.

        Raises:
            AgentError: A retryable one: they cannot be tried at this moment.
        """
        known = self._here.known or await self._here.look()

        async def begin(way: Way) -> ProbeRunner:
            probe = await self._supervisor.probe(
                way.runtime, load(way), self._limits.probe_deadline_s
            )
            return ProbeRunner(probe, self._here.conditions)

        rules = Rules(
            known.recognised.limits.measure_s,
            known.device.memory.available_bytes // 2,
            manifest.limits,
            1000 * deadline_s,
        )
        return await Contest(ways, begin, rules, asyncio.get_running_loop().time).hold()

    async def key(self, manifest: Manifest, way: Way) -> str:
        """What a way rests on now; what is compiled for it is kept under this name."""
        return key_of(manifest, way, (await self._here.look()).device)

    async def still_holds(self, manifest: Manifest, choice: Choice) -> bool:
        """Whether what a choice rests on is as it was: device, driver, kernel, runtime, and what
        was compiled for it."""
        key = await self.key(manifest, choice.way)
        return key == choice.key and (not choice.way.compiled or self._compiled.has(key))

    async def has_come(self, manifest: Manifest, choice: Choice) -> bool:
        """Whether an accelerator is there for a variant that needs it, and was not when this
        choice was made."""
        planned = self._plan(manifest, await self._here.look(), None)
        return not set(choice.absent) <= set(planned.absent)

    def _sort_out(
        self, manifest: Manifest, known: Known, ways: Sequence[Way]
    ) -> tuple[dict[Way, str], Sorted]:
        """Say which ways take part in a contest, and where what was compiled for them is. Reads it
        all."""
        compiling, folders, refused = [], {}, {}
        for way in ways if self._limits.compiled_mb else ():
            if compiler_of(way, known.device) is None:
                continue
            compiling.append(way)
            key = key_of(manifest, way, known.device)
            folder, why = self._compiled.use(key), self._compiled.refused(key)
            if folder is not None:
                folders[replace(way, compiled=True)] = str(folder)
            elif why:
                refused[way] = why
        ready = [way for way in compiling if replace(way, compiled=True) in folders]
        return folders, sort_out(ways, compiling, ready, refused)

    def _plan(self, manifest: Manifest, known: Known, pin: Pin | None) -> Plan:
        limits = PlanLimits(worker_memory_bytes=self._limits.worker_memory_mb << 20)
        return plan(manifest, known.device, known.recognised, limits, pin)


class ProbeRunner(msgspec.Struct, frozen=True):
    """A candidate's process, and what tells of heat meanwhile; a `Runner` of a contest."""

    probe: Probe
    conditions: Callable[[], Conditions]

    @property
    def proven(self) -> Proven:
        return proven(self.probe.probed)

    async def measure(self) -> Round:
        """Run the model for one round; see `agent.control.contest.Runner`."""
        before = self.conditions()
        measured = await self.probe.measure(ROUND, ROUND_DEADLINE_S)
        after = self.conditions()
        throttled = before.throttled or after.throttled
        return Round(measured.ms, measured.cpu_ms, throttled, after.clock_hz)

    def stop(self) -> None:
        self.probe.stop()


def _within_budget(ways: Sequence[Way], threads: int) -> tuple[list[Way], tuple[str, ...]]:
    """Leave out ways that take more threads than other slots leave; one thread is always had."""
    most = max(1, threads)
    kept = [way for way in ways if way.threads <= most]
    if not kept:  # a pin may ask for more
        return list(ways), ()
    out = (f"{way}: other slots leave {most}" for way in ways if way.threads > most)
    return kept, tuple(out)


def key_of(manifest: Manifest, way: Way, device: Device) -> str:
    """What the choice of a way rests on: where it is another, the choice is made again, and what
    was compiled for it is of no use."""
    variant = next((one for one in manifest.variants if one.name == way.variant), None)
    file = manifest.files.get(variant.file) if variant is not None else None
    facts = device.runtime(way.runtime)
    # What the model may read of the pack, and what it was proven by.
    others = [name for name in files_for(manifest, [way.variant]) if manifest.files[name] != file]
    versions = [compiler_of(way, device) or "", facts.driver if facts is not None else ""]
    ran = Ran(
        file.digest if file is not None else "",
        external=tuple(manifest.files[name].digest for name in others),
        runtime=way.runtime,
        version=facts.version if facts is not None else "",
        package=facts.package if facts is not None else "",
        provider=way.provider,
        provider_version=" ".join(filter(None, versions)),
        threads=way.threads,
        options=way.options,
    )
    return cache_key(ran, fingerprint(device), device.cpu.usable)


def _none_runs(failures: Sequence[AgentError], reasons: Sequence[str]) -> AgentError:
    """One error for all ways to run a pack: of the kind of the likeliest one's."""
    kind = type(failures[0]) if failures else ModelRejected
    error = kind.__new__(kind)
    # Only the base class takes a ready sentence; some kinds build theirs from parts.
    AgentError.__init__(
        error,
        "no variant of this pack runs here: " + "; ".join(reasons),
        hint=(failures[0].hint if failures else "") or "`edgeward plan` on the device tells more",
    )
    return error
