"""What the agent tells: its report when something changed, telemetry on the clock, events."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from agent import __version__
from agent.control import events as e
from agent.control.heat import Easing
from agent.control.reporting import Facts, build_report
from agent.control.state import DeviceState, choice_for
from agent.daemon.climate import Climate
from agent.daemon.lane import DeadLetter
from agent.daemon.outbox import DEAD_LETTER, EVENTS, TELEMETRY, Outbox, rfc3339
from agent.daemon.reconciler import failure_of
from agent.daemon.serving import SlotServer
from agent.device import vitals
from agent.documents import codec
from agent.documents.choice import Choice, Way
from agent.documents.report import Failure, Placement, Progress, Report
from agent.documents.settings import Settings
from agent.documents.telemetry import (
    DeadLetterDocument,
    Event,
    Number,
    SlotTelemetry,
    Stamp,
    Telemetry,
)
from agent.errors import AgentError, LinkError, QueueFull
from agent.links.api import Link, Standing

# Progress changes many times a second; a console needs it once.
REPORT_EVERY_S = 0.5
REPORT_AGAIN_S = 5.0
MAX_DEAD_LETTER_BYTES = 64 * 1024
# Dead letters that are kept whole: so many at once, and so many a second; the rest is counted.
DEAD_LETTERS_AT_ONCE = 100
DEAD_LETTERS_PER_S = 10.0
TELL_COUNT_AFTER_S = 60.0
# Which trouble the report names where there are several.
TROUBLES = ("state", "lost state", "link", "spool", "evidence", "report")
MAX_CLASSES = 32
MAX_WHY = 500
# Counters that are not of messages.
METRICS = {
    "worker_restarts": "edgeward.worker.restarts",
    "state_lost": "edgeward.worker.states_lost",
}
QUANTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}


class Reporter(msgspec.Struct):
    """Gathers from the slots what there is to tell, and hands it to the link and the outbox."""

    settings: Settings
    link: Link
    outbox: Outbox
    state: Callable[[], DeviceState]
    servers: Mapping[str, SlotServer]
    progress: Mapping[str, Progress]
    wall: Callable[[], float]
    spool_bytes: Callable[[], int]
    profile: Callable[[], str] = lambda: ""
    climate: Climate | None = None
    connects: int = 0
    _troubles: dict[str, Failure] = msgspec.field(default_factory=dict)
    _closed: bool = False
    _due: asyncio.TimerHandle | None = None
    # The report that the other end has.
    _last: bytes = b""
    _letters: float = DEAD_LETTERS_AT_ONCE
    _letters_at: float = 0.0
    _not_kept: Counter[str] = msgspec.field(default_factory=Counter)
    _count_due: asyncio.TimerHandle | None = None
    _windows: asyncio.Event = msgspec.field(default_factory=asyncio.Event)

    # -- the report -----------------------------------------------------------------------------

    def report(self) -> Report:
        return build_report(
            self.state(),
            agent=__version__,
            device=self.settings.device_id,
            facts={name: self._facts(name) for name in self.state().slots},
            profile=self.profile(),
            signed_only=self.settings.trust.unsigned == "refuse",
            trouble=next((self._troubles[t] for t in TROUBLES if t in self._troubles), None),
        )

    def in_trouble(self, what: str, failure: Failure | None) -> None:
        """Something keeps the agent as a whole from acting; None: no longer.

        Args:
            what: One of `TROUBLES`.
            failure: Why.
        """
        if failure == self._troubles.get(what):
            return
        if failure is not None:
            self._troubles[what] = failure
        else:
            del self._troubles[what]
        self.changed()

    def changed(self, *, within_s: float = REPORT_EVERY_S) -> None:
        """Something in the report changed: publish it soon, once for many changes."""
        if self._due is None and not self._closed:
            self._due = asyncio.get_running_loop().call_later(within_s, self.publish)

    def publish(self, *, again: bool = False) -> None:
        """Publish the report, unless the other end has just this one; without a link, once it is
        there."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        document = codec.encode(self.report())
        if self.link.state.phase != "connected" or (document == self._last and not again):
            return
        try:
            self.link.report(document, lambda ok, reason: self._sent(document, ok, reason))
        except QueueFull:
            self.changed(within_s=REPORT_AGAIN_S)
        except LinkError as error:
            self._sent(document, False, str(error))

    def _sent(self, document: bytes, ok: bool, reason: str) -> None:
        if ok:
            self._last = document
            self.in_trouble("report", None)
        else:
            failure = LinkError(f"report not sent: {reason}")
            self.in_trouble("report", failure_of(failure))

    def close(self) -> None:
        """Tell what was only counted so far, and publish nothing more."""
        self._tell_count()
        self._closed = True
        if self._due is not None:
            self._due.cancel()

    def _facts(self, name: str) -> Facts:
        server = self.servers.get(name)
        if server is None or server.plan is None:
            return Facts(progress=self.progress.get(name))
        ready = server.worker.ready if server.worker is not None else None
        manifest = server.plan.manifest
        choice = choice_for(self.state(), server.plan.spec)
        running = server.running or server.plan
        best = choice.of(running.way) if choice is not None else None
        facts = Facts(
            name=manifest.name,
            version=manifest.version,
            p50_ms=best.median_ms if best is not None else None,
            p95_ms=best.p95_ms if best is not None else None,
            progress=self.progress.get(name),
        )
        if ready is None:
            death = server.last_death
            return replace(facts, trouble=failure_of(death) if death is not None else None)
        deaf = server.bus.trouble
        return replace(
            facts,
            trouble=failure_of(deaf) if deaf is not None else None,
            variant=ready.variant,
            runtime=ready.runtime,
            runtime_version=ready.runtime_version,
            provider=ready.placement.got,
            placement=_placement(server, choice, ready.placement),
            threads=ready.threads,
            isolation=ready.isolation,
            owner=ready.owner,
        )

    # -- status, for a person on the device -----------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The report with the counters of now, as `edgeward status --json` prints it."""
        report: dict[str, Any] = msgspec.to_builtins(self.report())
        report["link"] = _standing(self.link.state)
        if self.climate is not None:
            report.update(self.climate.status())
        for name, entry in report.get("slots", {}).items():
            server = self.servers.get(name)
            if server is not None:
                entry.update(_live(server))
        return report

    # -- telemetry ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send one telemetry document per interval, for ever."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        while True:
            interval = self.state().telemetry.interval_s
            self._windows.clear()
            try:
                await asyncio.wait_for(self._windows.wait(), interval)
                continue  # the interval changed: start the window anew
            except asyncio.TimeoutError:
                pass
            now = loop.time()
            self.telemetry(now - started)
            started = now

    def interval_changed(self) -> None:
        self._windows.set()

    def telemetry(self, window_s: float) -> None:
        """Put one telemetry document into the outbox and begin the next window."""
        climate = self.climate
        worst = climate.take_window() if climate is not None else ""
        slots = {name: _slot_telemetry(server, worst) for name, server in self.servers.items()}
        metrics: dict[str, Number] = {
            **vitals.device_metrics(Path(self.settings.state_dir)),
            **vitals.process_metrics(),
            **(climate.metrics() if climate is not None else {}),
            "edgeward.link.connects": self.connects,
            "edgeward.spool.usage": self.spool_bytes(),
        }

        def make(stamp: Stamp) -> bytes:
            return codec.encode(
                Telemetry(
                    schema=1,
                    kind="telemetry",
                    stamp=stamp,
                    window_s=round(window_s, 3),
                    slots=slots,
                    metrics=metrics,
                    condition=climate.condition if climate is not None else "",
                    power_mode=climate.power_mode if climate is not None else "",
                )
            )

        self.outbox.put(TELEMETRY, make)
        for server in self.servers.values():
            server.lane.meters.new_window()

    # -- events ---------------------------------------------------------------------------------

    def event(self, kind: str, **fields: Any) -> None:
        def make(stamp: Stamp) -> bytes:
            return codec.encode(Event(schema=1, kind="event", stamp=stamp, event=kind, **fields))

        self.outbox.put(EVENTS, make)

    def moved(self, before: DeviceState, after: DeviceState, event: e.Event) -> None:
        """Tell how a rollout ended, and publish the report of what is now."""
        if after.telemetry != before.telemetry:
            self.interval_changed()
        if isinstance(event, e.DesiredRefused):
            self.event(
                "deployment_refused",
                code=event.failure.code,
                message=event.failure.message,
                hint=event.failure.hint,
            )
        for name, entry in after.slots.items():
            old = before.slots.get(name)
            if entry.outcome is None or (old is not None and old.outcome == entry.outcome):
                continue
            failure = entry.outcome.failure
            self.event(
                f"rollout_{entry.outcome.state}",
                slot=name,
                deployment=entry.outcome.deployment,
                pack=entry.outcome.target.pack,
                code=failure.code if failure is not None else "",
                message=failure.message if failure is not None else "",
                hint=failure.hint if failure is not None else "",
            )
        self.changed()

    def failed(self, kind: str, why: AgentError, **fields: Any) -> None:
        """Tell an event of which an error says why."""
        told = failure_of(why)
        self.event(kind, code=told.code, message=told.message, hint=told.hint, **fields)

    def worker_died(self, slot: str, why: AgentError, pid: int) -> None:
        told = failure_of(why)
        message = f"{told.message} (pid {pid})"
        server = self.servers.get(slot)
        self.event(
            "worker_died",
            slot=slot,
            pack=server.plan.spec.pack if server is not None and server.plan is not None else "",
            code=told.code,
            message=message,
            hint=told.hint,
        )
        self.changed()

    def stepped(self, slot: str, way: Way, why: AgentError | None) -> None:
        """A slot is run in another way than was chosen, and why; None: in the chosen one again."""
        if why is None:
            self.event("way_restored", slot=slot, message=f"it runs {way} again")
        else:
            self.failed("way_failed", why, slot=slot)
        self.changed()

    def eased(self, slot: str, easing: Easing | None) -> None:
        """Tell what a slot's policy does from now on."""
        if easing is None:
            self.event("policy_lifted", slot=slot, message="the slot serves as always again")
        else:
            message = f"{easing}, since the device is {easing.because}"
            self.event("policy_applied", slot=slot, message=message)
        self.changed()

    def dead_letter(self, letter: DeadLetter) -> None:
        """Set a message aside where a person can look at it, with the reason.

        A sensor that sends nothing else must not fill the disk: above a rate they are counted.
        """
        if not self._may_keep():
            self._count(letter.slot)
            return
        document = DeadLetterDocument(
            schema=1,
            slot=letter.slot,
            topic=letter.topic,
            code=letter.code,
            reason=letter.reason,
            ts=rfc3339(self.wall()),
            payload_bytes=len(letter.payload) if letter.size_bytes is None else letter.size_bytes,
            payload=letter.payload[:MAX_DEAD_LETTER_BYTES],
            detail=_detail(letter.detail),
        )
        self.outbox.put(DEAD_LETTER, lambda stamp: codec.encode(document))

    def _may_keep(self) -> bool:
        now = asyncio.get_running_loop().time()
        earned = (now - self._letters_at) * DEAD_LETTERS_PER_S
        self._letters = min(DEAD_LETTERS_AT_ONCE, self._letters + earned)
        self._letters_at = now
        if self._letters < 1:
            return False
        self._letters -= 1
        return True

    def _count(self, slot: str) -> None:
        self._not_kept[slot] += 1
        if self._count_due is None:
            loop = asyncio.get_running_loop()
            self._count_due = loop.call_later(TELL_COUNT_AFTER_S, self._tell_count)

    def _tell_count(self) -> None:
        if self._count_due is not None:
            self._count_due.cancel()
            self._count_due = None
        counted, self._not_kept = self._not_kept, Counter()
        for slot, count in counted.items():
            self.event("dead_letters", slot=slot, count=count)


def _detail(data: bytes) -> Any:
    """The worker's error document, as far as it is one; a worker is not trusted to send JSON.

    It is flat. What is nested can be read here and written, but not read again where the stack is
    deeper: it would stay in the spool for ever.
    """
    if len(data) > MAX_DEAD_LETTER_BYTES:
        return None
    try:
        return msgspec.json.decode(data, type=dict[str, str | int | float | bool | None])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _placement(server: SlotServer, choice: Choice | None, real: Placement) -> Placement:
    """Where operators run, with the reason where that is not where they were to run."""
    plan, why = server.plan, server.stepped_down
    lost = choice.lost if choice is not None else None
    if lost is not None and why is None and not server.light:
        again = " and is tried again" if choice is not None and choice.again is not None else ""
        reason = f"{lost.way} is out{again}: {lost.excluded}"
        return Placement(lost.way.provider, real.got, real.operators, real.time, reason[:MAX_WHY])
    if plan is None or (why is None and not server.light):
        return real
    wanted = plan.way.provider or plan.way.runtime
    if why is not None:
        reason = f"{plan.way} failed and is tried again: {why.message}"
    else:
        reason = f"{plan.way} waits until the device is well again"
        reason += f": it is {server.easing.because}" if server.easing is not None else ""
    return Placement(wanted, real.got, real.operators, real.time, reason[:MAX_WHY])


def _standing(connection: Standing) -> dict[str, str]:
    return {"state": connection.phase, "error": connection.last_error or ""}


def _counters(server: SlotServer) -> dict[str, int]:
    lane, meters = server.lane, server.lane.meters
    return {
        "received": meters.received,
        "unrouted": meters.unrouted,
        "predictions": meters.predictions,
        "absorbed": meters.absorbed,
        "rejected": meters.rejected,
        "sent": meters.sent,
        "unsent": meters.unsent,
        "dropped": meters.dropped,
        "skipped": meters.skipped,
        "redelivered": meters.redelivered,
        "retried": meters.retried,
        "dead_letters": meters.dead_letters,
        "bad_outputs": meters.bad_outputs,
        "acknowledged_early": meters.acknowledged_early,
        "worker_restarts": meters.worker_restarts,
        "state_lost": meters.state_lost,
        "waiting": len(lane.waiting),
        "in_flight": len(lane.in_flight) + lane.handing_over,
        "held": len(lane.held),
    }


def _metric(counter: str) -> str:
    return METRICS.get(counter, f"edgeward.messages.{counter}")


def _live(server: SlotServer) -> dict[str, Any]:
    meters, worker = server.lane.meters, server.worker
    owner = worker.owner_pid if worker is not None else 0
    shared = {"owner_pid": owner, "owner_memory_bytes": vitals.memory_of(owner)} if owner else {}
    return {
        **shared,
        **_counters(server),
        "bus": _standing(server.bus.state),
        "worker_pid": worker.pid if worker is not None else None,
        "latency_ms": {
            name.removesuffix("_ms"): meters.total.quantile_ms(q) for name, q in QUANTILES.items()
        },
        "policy": str(server.easing or ""),
    }


def _slot_telemetry(server: SlotServer, condition: str) -> SlotTelemetry:
    meters = server.lane.meters
    plan, worker = server.plan, server.worker
    ready = worker.ready if worker is not None else None
    parts = {
        "total": meters.total,
        "queue": meters.queue,
        "decode": meters.decode,
        "run": meters.run,
        "encode": meters.encode,
    }
    latency = {
        f"{part}.{name}": value
        for part, sketch in parts.items()
        for name, q in QUANTILES.items()
        if (value := sketch.quantile_ms(q)) is not None
    }
    return SlotTelemetry(
        pack=plan.spec.pack if plan is not None else "",
        version=plan.manifest.version if plan is not None else "",
        runtime=ready.runtime if ready is not None else "",
        provider=ready.placement.got if ready is not None else "",
        metrics={_metric(name): count for name, count in _counters(server).items()},
        latency=latency,
        classes=_classes(server),
        worker_memory=vitals.memory_of(worker.pid) if worker is not None else None,
        condition=condition,
        policy=str(server.easing or ""),
    )


def _classes(server: SlotServer) -> dict[str, int]:
    labels = server.plan.manifest.labels if server.plan is not None else ()
    counted = server.lane.meters.classes
    top = counted.most_common(MAX_CLASSES)
    named: Counter[str] = Counter()
    for index, count in top:  # two classes may have the same label
        named[labels[index] if index < len(labels) else str(index)] += count
    other = sum(counted.values()) - sum(count for _, count in top)
    if other:
        named["other"] += other
    return dict(named)
