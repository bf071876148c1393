"""One slot at work: its bus and lane, its worker, and what happens when the worker dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from agent import errors
from agent.control.hangs import DEADLINE_ONLY, Patience
from agent.control.health import RECOVERED_AFTER, Health
from agent.control.heat import Easing
from agent.daemon.bus import Bus
from agent.daemon.reconciler import failure_of
from agent.daemon.supervisor import Supervisor
from agent.daemon.watching import Watcher
from agent.daemon.workers import Worker
from agent.documents.choice import Way
from agent.documents.deployment import Slot
from agent.documents.manifest import Manifest
from agent.documents.report import Failure
from agent.links.worker import error_of
from agent.wire import frames
from agent.wire.worker import Failed, Load, read

log = logging.getLogger(__name__)

DRAIN_S = 30.0
# How long after an accelerator failed it is tried again; twice as long each time it fails anew.
RETURN_FIRST_S, RETURN_LAST_S = 5.0, 600.0
# At least between two looks at a worker.
LOOK_AFTER_S = 0.001


class Plan(msgspec.Struct, frozen=True):
    """Everything that starting a worker for a slot takes."""

    spec: Slot
    manifest: Manifest
    way: Way
    load: Load
    # How long a LOAD and one message may take, in seconds.
    load_deadline_s: float
    message_deadline_s: float
    # How to run it where this way fails, and where the slot's policy asks for less CPU time.
    spare: Plan | None = None
    lighter: Plan | None = None
    # What tells before the deadline that a worker hangs.
    patience: Patience = DEADLINE_ONLY


class Hooks(msgspec.Struct):
    """What a slot tells the rest of the daemon."""

    crash_looped: Callable[[str, str, Failure], None]
    worker_died: Callable[[str, errors.AgentError, int], None]
    worker_ready: Callable[[str], None]
    # A pack that kept dying has served for a while.
    recovered: Callable[[str, str], None]
    # A slot is run in another way than was chosen, and why; None: it is back.
    stepped: Callable[[str, Way, errors.AgentError | None], None] = lambda slot, way, why: None
    # What a slot's policy does from now on; None: nothing.
    eased: Callable[[str, Easing | None], None] = lambda slot, easing: None


class SlotServer:
    """Keeps one slot serving.

    `switch` is the only way a new pack takes over; a death in between restarts what served.
    """

    def __init__(
        self,
        bus: Bus,
        supervisor: Supervisor,
        hooks: Hooks,
        *,
        return_first_s: float = RETURN_FIRST_S,
    ) -> None:
        self.bus = bus
        self.lane = lane = bus.lane
        self.plan: Plan | None = None
        self.worker: Worker | None = None
        self.on_probation = False
        self.health = Health()
        self.last_death: errors.AgentError | None = None
        # Why the pack is not run in the chosen way but in the spare one.
        self.stepped_down: errors.AgentError | None = None
        self._return: asyncio.Task[None] | None = None
        self._return_first_s = self._return_after_s = return_first_s
        # When the chosen way last took over.
        self._chosen_at = 0.0
        # What the slot's policy does at present, and whether the lighter way runs for that.
        self.easing: Easing | None = None
        self.light = False
        self._light_failed = False
        self._weighing: asyncio.Task[None] | None = None
        self._may_weigh = True
        self._supervisor = supervisor
        self._hooks = hooks
        self._loop = asyncio.get_running_loop()
        self._restart: asyncio.Task[None] | None = None
        # The next look at a worker that owes an answer.
        self._overdue: asyncio.TimerHandle | None = None
        self._watcher: Watcher | None = None
        # How much its slot had answered when this worker came.
        self._answers_before = 0
        self._first_look_s = 0.0
        self._answered_since_death = False
        # Whether its pack is known to keep dying, and how much it has answered since.
        self.looping = False
        self._good_answers = 0
        self._drained: asyncio.Event = asyncio.Event()
        self._switching = False
        self._flush_due = False
        self._flush_at: asyncio.TimerHandle | None = None
        lane.effects.send = self._send
        lane.effects.replace_worker = self._replace_worker
        lane.effects.flush_soon = self._flush_soon
        lane.effects.flush_after = self._flush_after

    # -- starting and switching ---------------------------------------------------------------

    def serve(self, plan: Plan) -> None:
        """Serve a plan that was proven before (at boot): start its worker, for as long as it
        takes."""
        self.plan = plan
        self.lane.retarget(plan.spec)
        self._schedule_restart(0.0)

    async def switch(self, plan: Plan, *, on_probation: bool) -> None:
        """Let another plan take over between two messages.

        The new worker loads beside the old one, which goes on serving. Then nothing more is sent to
        the old one, its last answers are handed over, and the new one takes what waited meanwhile.

        Raises:
            AgentError: The new worker did not get ready; the old one serves on.
        """
        await self._stop_weighing()
        try:
            worker = await self._start(plan)
            await self._take_over(worker)
            self._serve_by(plan, worker, on_probation=on_probation)
        finally:
            self._may_weigh = True
            self._weigh()

    def _serve_by(self, plan: Plan, worker: Worker, *, on_probation: bool) -> None:
        self._cancel_return()
        self.light = self._light_failed = False
        self._return_after_s = self._return_first_s
        self.plan = plan
        self.on_probation = on_probation
        self.health = Health()
        self.lane.retarget(plan.spec)
        self._attach(worker)

    async def _start(self, plan: Plan) -> Worker:
        return await self._supervisor.start(plan.way.runtime, plan.load, plan.load_deadline_s)

    async def _take_over(self, worker: Worker) -> None:
        """End the old worker between two messages; the new one is not heard before `_attach`."""
        self._switching = True
        try:
            await self._drain()
        except BaseException:
            worker.stop()
            self._switching = False
            self._resume_old()
            raise
        self._switching = False
        old, self.worker = self.worker, None
        if old is not None:
            old.stop()
        self._cancel_restart()
        self.stepped_down = None

    async def _drain(self) -> None:
        self.lane.close()
        self._drained.clear()
        if self.lane.in_flight and self.worker is not None:
            # A worker that hangs here meets its deadline as always, and what it had goes back.
            try:
                await asyncio.wait_for(self._drained.wait(), DRAIN_S)
            except asyncio.TimeoutError:
                self._replace_worker(errors.WorkerTimedOut(f"no answer within {DRAIN_S:g} s"))

    def _resume_old(self) -> None:
        if self.worker is not None:
            self.lane.open = True
            self.lane.flush(self._loop.time())
        elif self.plan is not None:
            self._schedule_restart(0.0)

    async def stop(self, *, for_good: bool) -> None:
        """Finish what is in flight, then end the worker.

        Args:
            for_good: The slot is gone; else the agent stops, and what waits stays with the broker.
        """
        # A worker that dies of its last messages is not replaced.
        await self._stop_weighing()
        self._switching = True
        self._cancel_restart()
        self._cancel_return()
        self._cancel_flush()
        try:
            await self._drain()
        finally:
            # Also where nobody waits any longer: the end of a worker that we end is no death.
            self._stop_looking()
            worker, self.worker = self.worker, None
            if worker is not None:
                worker.stop()
            self.lane.give_up(for_good=for_good)

    # -- the worker -----------------------------------------------------------------------------

    def _attach(self, worker: Worker) -> None:
        self.worker = worker
        self._answers_before = self.lane.meters.answers
        # Of the way before this one, which may have had much more time.
        self._stop_looking()
        if self.running is not None:
            self._watcher = Watcher(worker, self.running.patience)
            self._first_look_s = self._watcher.first_look_s(self.running.message_deadline_s)
        worker.on_results = self._results
        worker.on_gone = self._gone
        if worker.gone.done():
            self._gone(worker, worker.gone.result())
            return
        if worker.ready is not None and not worker.ready.replayable:
            self.lane.meters.state_lost += 1
        log.info("slot=%s pack=%s worker=%s serving", self.lane.name, self._pack()[:19], worker.pid)
        if self.plan is not None and self.plan.way.accelerated and self.plan.spare is not None:
            self._supervisor.prepare(self.plan.spare.way.runtime)
        self.lane.worker_ready(self._loop.time())
        self._hooks.worker_ready(self.lane.name)
        self._weigh()

    def _send(self, data: bytes) -> None:
        if self.worker is None:
            return
        self.worker.send(data)
        if self._overdue is None:
            self._overdue = self._loop.call_later(self._first_look_s, self._check)

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush_after(self, seconds: float) -> None:
        self._cancel_flush()
        self._flush_at = self._loop.call_later(seconds, self._flush)

    def _cancel_flush(self) -> None:
        if self._flush_at is not None:
            self._flush_at.cancel()
            self._flush_at = None

    def _flush(self) -> None:
        self._flush_due = False
        self.lane.flush(self._loop.time())

    def _results(self, results: list[frames.Frame]) -> None:
        effects = self.lane.effects
        effects.hold()
        try:
            self._take(results)
        finally:
            effects.release()
        if not self.lane.in_flight:
            # A timer that fires for nothing costs twenty times what ending it does.
            self._stop_looking()

    def _take(self, results: list[frames.Frame]) -> None:
        now = self._loop.time()
        lane = self.lane
        worker = self.worker
        good = False
        try:
            for frame in results:
                if frame.kind == frames.RESULT:
                    good = lane.answered(frame, now) or good
                elif frame.kind == frames.FAILED:
                    # It knows why it ends, which its exit status does not tell.
                    self._replace_worker(error_of(read(frame.payload, Failed)))
                else:
                    raise errors.WorkerError(f"a serving worker sent a frame of kind {frame.kind}")
                if self.worker is not worker:
                    return  # it was replaced because of what it answered
        except errors.WorkerError as error:
            self._replace_worker(error)
            return
        if good:
            self._count_answer()
        if lane.waiting:
            lane.flush(now)
        if not lane.in_flight:
            self._drained.set()

    def _count_answer(self) -> None:
        if not self._answered_since_death:
            self._answered_since_death = True
            self.health = self.health.answered()
        if self.looping:
            self._good_answers += 1
            if self._good_answers >= RECOVERED_AFTER:
                self.looping = False
                self._hooks.recovered(self.lane.name, self._pack())

    def _replace_worker(self, why: errors.AgentError) -> None:
        worker = self.worker
        if worker is not None:
            self.worker = None
            worker.on_results = worker.on_gone = None
            worker.kill(why)
            self._died(worker, why)

    def _gone(self, worker: Worker, why: errors.AgentError) -> None:
        if self.worker is worker:
            self.worker = None
            self._died(worker, why)

    def _died(self, worker: Worker, why: errors.AgentError) -> None:
        now = self._loop.time()
        log.warning("slot=%s worker=%s died: %s", self.lane.name, worker.pid, why)
        self.lane.worker_gone(why)
        self.lane.meters.worker_restarts += 1
        self._drained.set()
        self._hooks.worker_died(self.lane.name, why, worker.pid)
        self._count_death(why, now)
        if not self._switching:
            self._schedule_restart(self.health.restart_after_s())

    def _count_death(self, why: errors.AgentError, now: float) -> None:
        self.health = self.health.died(now)
        self._answered_since_death = False
        self.last_death = why
        self._good_answers = 0
        if self.light:
            # The chosen way is the one that is known to work; its turn comes at once.
            self.light, self._light_failed = False, True
        elif self._step_down(why):
            return
        if self.health.crash_looping(on_probation=self.on_probation):
            self.looping = True
            failure = msgspec.structs.replace(
                failure_of(why),
                message=f"the worker of this pack keeps dying: {why.message}"[:1000],
                hint="run `edgeward predict` with this pack and the message that kills it",
            )
            self._hooks.crash_looped(self.lane.name, self._pack(), failure)

    # -- where the chosen way fails ---------------------------------------------------------------

    @property
    def running(self) -> Plan | None:
        """The plan that workers are started by: the chosen one, or another in its place."""
        if self.plan is not None and self.stepped_down is not None:
            return self.plan.spare
        if self.plan is not None and self.light:
            return self.plan.lighter
        return self.plan

    def _step_down(self, why: errors.AgentError) -> bool:
        """Run the pack in the spare way: at once where an accelerator failed, which says nothing
        against the pack; else where it keeps dying, and has served well before."""
        plan = self.plan
        if plan is None or plan.spare is None or self.stepped_down is not None:
            return False
        keeps_dying = self.health.crash_looping(on_probation=False) and not self.on_probation
        if not (plan.way.accelerated or keeps_dying):
            return False
        if self._loop.time() - self._chosen_at > self._return_after_s:
            # It has worked for a while since, so this is a failure of its own.
            self._return_after_s = self._return_first_s
        self.stepped_down = why
        self.health = Health()
        log.warning("slot=%s %s failed; now %s", self.lane.name, plan.way, plan.spare.way)
        self._hooks.stepped(self.lane.name, plan.spare.way, why)
        if plan.way.accelerated:
            self._return = self._loop.create_task(self._come_back(plan))
        return True

    async def _come_back(self, plan: Plan) -> None:
        """Try the chosen way again, with patience; it takes over once it has proven itself."""
        while True:
            await asyncio.sleep(self._return_after_s)
            self._return_after_s = min(RETURN_LAST_S, 2 * self._return_after_s)
            try:
                load = msgspec.structs.replace(plan.load, probe=True)
                probe = await self._supervisor.probe(plan.way.runtime, load, plan.load_deadline_s)
                probe.stop()
                worker = await self._start(plan)
                await self._take_over(worker)
            except errors.AgentError as error:
                log.info("slot=%s %s does not work yet: %s", self.lane.name, plan.way, error)
                continue
            self._return = None
            self._chosen_at = self._loop.time()
            self.health = Health()
            log.info("slot=%s %s works again", self.lane.name, plan.way)
            self._attach(worker)
            self._hooks.stepped(self.lane.name, plan.way, None)
            return

    def _cancel_return(self) -> None:
        if self._return is not None:
            self._return.cancel()
            self._return = None

    # -- while the device is under strain ---------------------------------------------------------

    def ease(self, easing: Easing | None) -> None:
        """Do from now on what the slot's policy says; None: serve as always. The same as before is
        no change, so this may be called again and again."""
        if easing == self.easing:
            return
        self.easing = easing
        self._light_failed = False
        self.lane.ease(easing, self._loop.time())
        told = "as always" if easing is None else f"{easing}, since it is {easing.because}"
        log.info("slot=%s policy: %s", self.lane.name, told)
        self._hooks.eased(self.lane.name, easing)
        self._weigh()

    @property
    def _weighs_wrong(self) -> bool:
        """Whether another way shall run than does; one that failed comes back first."""
        easing, plan = self.easing, self.plan
        wanted = easing is not None and easing.action == "lighter_variant"
        can = plan is not None and plan.lighter is not None and not self._light_failed
        return self.stepped_down is None and (wanted and can) != self.light

    def _weigh(self) -> None:
        """See that the way runs which the policy asks for; it takes over between two messages."""
        may = self._may_weigh and self._weighing is None and self.worker is not None
        if may and self._weighs_wrong:
            self._weighing = self._loop.create_task(self._change_weight())

    async def _change_weight(self) -> None:
        delay = RETURN_FIRST_S
        try:
            while self._weighs_wrong:
                light, plan = not self.light, self.plan
                way = plan.lighter if plan is not None and light else plan
                if way is None:
                    return
                try:
                    worker = await self._start(way)
                    if self.stepped_down is not None:
                        worker.stop()
                        return
                    await self._take_over(worker)
                except errors.AgentError as error:
                    log.warning("slot=%s %s did not take over: %s", self.lane.name, way.way, error)
                    # Without the lighter way it serves on; without the chosen one it must not stay.
                    self._light_failed = self._light_failed or light
                    if not light:
                        await asyncio.sleep(delay)
                        delay = min(RETURN_LAST_S, 2 * delay)
                    continue
                self._cancel_return()
                self.light = light
                log.info("slot=%s now %s", self.lane.name, way.way)
                self._attach(worker)
        finally:
            self._weighing = None

    async def _stop_weighing(self) -> None:
        self._may_weigh = False
        weighing, self._weighing = self._weighing, None
        if weighing is not None:
            weighing.cancel()
            await asyncio.wait((weighing,))

    def _schedule_restart(self, delay: float) -> None:
        self._cancel_restart()
        self._restart = self._loop.create_task(self._start_again(delay))

    def _cancel_restart(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None

    async def _start_again(self, delay: float) -> None:
        while self.running is not None:
            if delay:
                await asyncio.sleep(delay)
            try:
                worker = await self._start(self.running)
                self._restart = None
                self._attach(worker)
                return
            except errors.AgentError as error:
                why: errors.AgentError = error
            except Exception as error:
                # Whatever it is (descriptors run short, a bug): the slot must try again.
                log.exception("slot=%s no worker", self.lane.name)
                why = errors.WorkerError(f"no worker could be started: {error!r}")
            log.warning("slot=%s no worker: %s", self.lane.name, why)
            self._count_death(why, self._loop.time())
            delay = max(0.1, self.health.restart_after_s())

    def _stop_looking(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _check(self) -> None:
        """End a worker that hangs, or has been silent on one message for longer than it may."""
        self._overdue = None
        lane, plan, watcher = self.lane, self.running, self._watcher
        if plan is None or watcher is None or not lane.in_flight:
            return
        now, since, deadline_s = self._loop.time(), lane.last_progress, plan.message_deadline_s
        cold = lane.meters.answers == self._answers_before
        why = watcher.look(now, since, lane.largest_in_flight_bytes, cold=cold)
        if lane.overdue(now, deadline_s):
            why = f"no answer within {deadline_s:g} s"
        if why:
            self._replace_worker(errors.WorkerTimedOut(why))
            return
        due_in_s = watcher.next_look_at(since, deadline_s) - now
        self._overdue = self._loop.call_later(max(LOOK_AFTER_S, due_in_s), self._check)

    def _pack(self) -> str:
        return self.plan.spec.pack if self.plan is not None else ""
