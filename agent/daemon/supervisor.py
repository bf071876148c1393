"""Worker processes: start them from their runtime's template, talk to them, know when they end.

A template process has imported one runtime and holds no model; forking it makes a worker in a few
milliseconds. Templates are started on first use and end a while after their last worker.

A worker is not trusted: what it says is bounded as it is read, and its end is seen to.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from agent import errors
from agent.documents.report import Isolation
from agent.links.cgroups import WorkerGroups
from agent.links.template import TemplateProcess, describe_exit, memory_limit, start_template
from agent.links.worker import error_of
from agent.wire import frames
from agent.wire.worker import (
    MAX_ANSWER_BYTES,
    Failed,
    Load,
    Measure,
    Measured,
    Probed,
    Ready,
    TemplateEvent,
    read,
)

log = logging.getLogger(__name__)

READ_BYTES = 256 * 1024
TEMPLATE_DEADLINE_S = 60.0
# From the end of a worker's stream, or from the wish that it ends, until it is killed.
EXIT_DEADLINE_S = 1.0
TEMPLATE_IDLE_S = 60.0
MAX_WORD_CHARACTERS = 64
MAX_REASON_CHARACTERS = 500
MAX_LAYERS = 16

StartTemplate = Callable[[str], TemplateProcess]


class NoWorkerNow(errors.WorkerError):
    """This machine cannot start a process at this moment: too many files or processes."""

    retryable = True


class Worker(asyncio.BufferedProtocol):
    """One worker process, from the daemon's side. Made by `Supervisor.start`."""

    def __init__(self, number: int, runtime: str, memory_mb: int) -> None:
        self.number = number
        self.runtime = runtime
        self.memory_mb = memory_mb
        self.pid = 0
        # It is to be killed, and its process id is not known yet.
        self.doomed = False
        self.ready: Ready | None = None
        self.on_results: Callable[[list[frames.Frame]], None] | None = None
        self.on_gone: Callable[[Worker, errors.AgentError], None] | None = None
        self.gone: asyncio.Future[errors.AgentError] = asyncio.get_running_loop().create_future()
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answer: asyncio.Future[frames.Frame] | None = None
        self._reader = frames.FrameReader(MAX_ANSWER_BYTES)
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._transport: asyncio.Transport | None = None
        self._last_call: asyncio.TimerHandle | None = None
        self.why_killed: errors.AgentError | None = None

    # -- asyncio.BufferedProtocol -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=frames.MAX_FRAME_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        try:
            received = list(self._reader.feed(self._buffer[:count]))
        except errors.WorkerError as error:
            self.kill(error)
            return
        if self._answer is not None and received and not self._answer.done():
            self._answer.set_result(_keep(received.pop(0)))
        if received and self.on_results is not None:
            self.on_results(received)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ending = asyncio.ensure_future(self._wait_for_status())

    # -- conversation -------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def ask(self, kind: int, content: msgspec.Struct, deadline_s: float) -> frames.Frame:
        """Send LOAD or MEASURE and return the frame that answers it.

        Raises:
            WorkerTimedOut, WorkerExited, MemoryLimit: No answer came, and why.
        """
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self.send(frames.encode_frame(kind, 0, 0, b"", msgspec.json.encode(content)))
        try:
            await asyncio.wait(
                (self._answer, self.gone),
                timeout=deadline_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._answer.done():
                return self._answer.result()
            if self.gone.done():
                raise self.gone.result()
            raise errors.WorkerTimedOut(f"no answer within {deadline_s:g} s")
        finally:
            self._answer = None

    def stop(self) -> None:
        """Have the worker end; it has nothing more to answer. One that does not is killed."""
        self.on_results = self.on_gone = None
        if self._transport is not None:
            self._transport.close()
        if not self._status.done() and self._last_call is None:
            loop = asyncio.get_running_loop()
            why = errors.WorkerTimedOut("it did not end when told to")
            self._last_call = loop.call_later(EXIT_DEADLINE_S, self.kill, why)

    def kill(self, why: errors.AgentError) -> None:
        """End the worker at once, whatever it does."""
        self.why_killed = self.why_killed or why
        if self._transport is not None:
            self._transport.abort()
        self.on_kill(self)

    on_kill: Callable[[Worker], None] = staticmethod(lambda worker: None)
    last_words: Callable[[], str] = staticmethod(lambda: "")

    # -- the end ------------------------------------------------------------------------------

    def orphaned(self) -> None:
        """Its template has ended, and the kernel ends it with that."""
        self.why_killed = self.why_killed or errors.WorkerExited("the worker's template has ended")
        if self._transport is not None:
            self._transport.abort()
        self.exited(-signal.SIGKILL)

    def exited(self, status: int) -> None:
        if self._last_call is not None:
            self._last_call.cancel()
        if not self._status.done():
            self._status.set_result(status)

    async def _wait_for_status(self) -> None:
        done, _ = await asyncio.wait((self._status,), timeout=EXIT_DEADLINE_S)
        error: errors.AgentError
        if self.why_killed is not None:
            error = self.why_killed
        elif done:
            error = describe_exit(self._status.result(), self.memory_mb, self.last_words())
        else:
            error = errors.WorkerExited("the worker closed its socket")
            self.on_kill(self)
        if not self.gone.done():
            self.gone.set_result(error)
        if self.on_gone is not None:
            self.on_gone(self, error)


@dataclass(frozen=True)
class Probe:
    """A candidate that passed its self-test, in a process that waits to be measured."""

    worker: Worker
    probed: Probed

    async def measure(self, asked: Measure, deadline_s: float) -> Measured:
        """Have it run so often.

        Raises:
            AgentError: It died or was too slow; it is ended.
        """
        try:
            answer = await self.worker.ask(frames.MEASURE, asked, deadline_s)
            if answer.kind != frames.MEASURED:
                _refuse(answer)
            measured = read(answer.payload, Measured)
            if not measured.ms:
                raise errors.WorkerError("a probe measured nothing")
            return measured
        except errors.AgentError as error:
            self.worker.kill(error)
            raise

    def stop(self) -> None:
        self.worker.stop()


class Supervisor:
    """Starts workers and probes; owns the template processes.

    Args:
        start_template: Starts a runtime's template process.
        idle_s: How long a template without a worker is kept.
        groups: Control groups for workers, where the agent has been given some.
    """

    def __init__(
        self,
        start_template: StartTemplate = start_template,
        *,
        idle_s: float = TEMPLATE_IDLE_S,
        groups: WorkerGroups | None = None,
    ) -> None:
        self._start_template = start_template
        self._idle_s = idle_s
        self._groups = groups
        # Whether a runtime may be needed at any moment, though no worker of it runs now.
        self.is_spare: Callable[[str], bool] = lambda runtime: False
        self._templates: dict[str, asyncio.Future[_Template]] = {}
        self._next = 1

    def prepare(self, runtime: str) -> None:
        """Begin to start a runtime's template, so that it is there when it is needed."""
        self._template(runtime).add_done_callback(_tell_failure)

    async def start(self, runtime: str, load: Load, deadline_s: float) -> Worker:
        """Start a worker and let it load; returns when it is ready to serve.

        Raises:
            AgentError: The template, the worker or the model says why not.
        """
        worker, first = await self._begin(runtime, load, deadline_s)
        try:
            if first.kind != frames.READY:
                _refuse(first)
            worker.ready = _bounded(read(first.payload, Ready))
        except errors.AgentError as error:
            worker.kill(error)
            raise
        return worker

    async def probe(self, runtime: str, load: Load, deadline_s: float) -> Probe:
        """Qualify a candidate in a process of its own; stop it when it has been measured.

        Raises:
            AgentError: It did not pass, and why.
        """
        worker, first = await self._begin(runtime, load, deadline_s)
        try:
            if first.kind != frames.PROBED:
                _refuse(first)
            probed = read(first.payload, Probed)
        except errors.AgentError as error:
            worker.kill(error)
            raise
        return Probe(worker, msgspec.structs.replace(probed, ready=_bounded(probed.ready)))

    async def close(self) -> None:
        """End every template; their workers end with them."""
        templates, self._templates = self._templates, {}
        ends: list[asyncio.Future[errors.AgentError]] = []
        for future in templates.values():
            if future.done() and not future.cancelled() and future.exception() is None:
                ends += [worker.gone for worker in future.result().workers.values()]
                future.result().close()
            else:
                future.cancel()
        # One that was being started is ended by its own task.
        await asyncio.gather(*templates.values(), return_exceptions=True)
        if ends:
            await asyncio.wait(ends, timeout=EXIT_DEADLINE_S)

    async def _begin(
        self, runtime: str, load: Load, deadline_s: float
    ) -> tuple[Worker, frames.Frame]:
        template = await asyncio.shield(self._template(runtime))
        number, self._next = self._next, self._next + 1
        worker = Worker(number, runtime, load.memory_mb)
        await template.spawn(worker, load)
        try:
            return worker, await worker.ask(frames.LOAD, load, deadline_s)
        except BaseException:
            worker.kill(errors.WorkerTimedOut("no answer in time"))
            raise

    def _template(self, runtime: str) -> asyncio.Future[_Template]:
        known = self._templates.get(runtime)
        broken = (
            known is not None
            and known.done()
            and (known.cancelled() or known.exception() is not None or known.result().closed)
        )
        if known is None or broken:
            known = asyncio.ensure_future(self._open_template(runtime))
            self._templates[runtime] = known
        return known

    async def _open_template(self, runtime: str) -> _Template:
        try:
            process = self._start_template(runtime)
            template = _Template(
                process, self._idle_s, self._groups, lambda: self.is_spare(runtime)
            )
        except OSError as error:
            raise _no_worker(f"the {runtime} template", error) from None
        try:
            event = await asyncio.wait_for(
                asyncio.shield(template.first_event), TEMPLATE_DEADLINE_S
            )
        except asyncio.TimeoutError:
            template.close()
            raise errors.RuntimeUnavailable(
                f"the {runtime} runtime did not import within {TEMPLATE_DEADLINE_S:g} s"
            ) from None
        except BaseException:
            template.close()
            raise
        if event.event == "failed":
            template.close()
            raise errors.RuntimeUnavailable(event.message, hint=event.hint)
        pid = template.process.pid
        log.info("runtime=%s version=%s template pid=%s", runtime, event.version, pid)
        return template


class _Template:
    """A running template process and the workers forked from it."""

    def __init__(
        self,
        process: TemplateProcess,
        idle_s: float,
        groups: WorkerGroups | None,
        is_spare: Callable[[], bool],
    ) -> None:
        self.process = process
        self._groups = groups
        self._is_spare = is_spare
        self.closed = False
        self.workers: dict[int, Worker] = {}
        self._loop = asyncio.get_running_loop()
        self._idle_s = idle_s
        self._idle: asyncio.TimerHandle | None = None
        self.first_event: asyncio.Future[TemplateEvent] = self._loop.create_future()
        self._loop.add_reader(process.control.fileno(), self._readable)

    async def spawn(self, worker: Worker, load: Load) -> None:
        """Have a worker forked.

        Raises:
            WorkerExited: The template is gone.
            NoWorkerNow: The machine has no room for one more at this moment.
        """
        group = self._open_group(worker)
        try:
            stream = self.process.request_worker(worker.number, load, group)
        except ConnectionError as error:
            self.close()
            raise errors.WorkerExited(f"the {worker.runtime} template is gone: {error}") from None
        except OSError as error:
            # The workers that it has serve on.
            raise _no_worker(f"a {worker.runtime} worker", error) from None
        finally:
            if group is not None:
                os.close(group)
        self._be_busy()
        self.workers[worker.number] = worker
        worker.on_kill = self._kill
        worker.last_words = self.process.take_last_words
        try:
            await self._loop.create_unix_connection(lambda: worker, sock=stream)
        except OSError as error:
            # It ends when its stream does.
            stream.close()
            raise _no_worker(f"a {worker.runtime} worker", error) from None

    def _open_group(self, worker: Worker) -> int | None:
        if self._groups is None:
            return None
        try:
            return self._groups.open(worker.number, worker.memory_mb)
        except OSError as error:
            # Its other limits hold, and its report says that this one is missing.
            log.warning("worker %d gets no control group: %s", worker.number, error)
            return None

    def _close_group(self, worker: Worker) -> None:
        if self._groups is not None:
            if self._groups.ran_out_of_memory(worker.number):
                worker.why_killed = worker.why_killed or memory_limit(worker.memory_mb)
            self._groups.remove(worker.number)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._be_busy()
        self._loop.remove_reader(self.process.control.fileno())
        self.process.kill()
        workers, self.workers = self.workers, {}
        for worker in workers.values():
            worker.orphaned()
            self._close_group(worker)

    def _be_busy(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _be_idle(self) -> None:
        if not self.closed and not self.workers:
            self._be_busy()
            self._idle = self._loop.call_later(self._idle_s, self._end_idle)

    def _end_idle(self) -> None:
        if self._is_spare():
            self._be_idle()
            return
        log.info("template pid=%s ends: no slot needs it", self.process.pid)
        self.close()

    def _kill(self, worker: Worker) -> None:
        if worker.number not in self.workers or self.closed:
            return
        if worker.pid:
            self.process.kill_worker(worker.pid)
        else:
            worker.doomed = True

    def _readable(self) -> None:
        try:
            events = self.process.read_events()
        except (OSError, errors.WorkerError) as error:
            events = None
            log.warning("template of %s: %s", self.process.runtime, error)
        if events is None:
            self._ended()
            return
        for event in events:
            self._happened(event)

    def _happened(self, event: TemplateEvent) -> None:
        if event.event in ("ready", "failed"):
            if not self.first_event.done():
                self.first_event.set_result(event)
                self._be_idle()
            return
        worker = self.workers.get(event.worker)
        if worker is None:
            return
        if event.event == "started":
            worker.pid = event.pid
            if worker.doomed:
                self._kill(worker)
        elif event.event == "exited":
            del self.workers[event.worker]
            # With a code: it was not even forked, and the message says why.
            if event.code:
                worker.why_killed = NoWorkerNow(event.message)
            self._close_group(worker)
            worker.exited(event.status)
            self._be_idle()

    def _ended(self) -> None:
        self.close()
        if not self.first_event.done():
            error = self.process.failure()
            self.first_event.set_result(
                TemplateEvent("failed", code=error.code, message=error.message, hint=error.hint)
            )


def _keep(frame: frames.Frame) -> frames.Frame:
    """Copy a frame out of the read buffer, for a reader that comes later."""
    return frame._replace(
        meta=memoryview(bytes(frame.meta)), payload=memoryview(bytes(frame.payload))
    )


def _refuse(frame: frames.Frame) -> NoReturn:
    """Raise what a worker says in place of the answer that was wanted."""
    if frame.kind != frames.FAILED:
        raise errors.WorkerError(f"a worker answered with a frame of kind {frame.kind}")
    raise error_of(read(frame.payload, Failed))


def _bounded(ready: Ready) -> Ready:
    """What a worker says of itself, cut to what a report can carry."""
    return msgspec.structs.replace(
        ready,
        runtime=_word(ready.runtime),
        runtime_version=_word(ready.runtime_version),
        placement=msgspec.structs.replace(
            ready.placement,
            wanted=_word(ready.placement.wanted),
            got=_word(ready.placement.got),
            why=ready.placement.why[:MAX_REASON_CHARACTERS],
        ),
        variant=_word(ready.variant),
        isolation=_words(ready.isolation),
    )


def _words(isolation: Isolation) -> Isolation:
    layers, missing = (
        {_word(name): _word(how) for name, how in list(table.items())[:MAX_LAYERS]}
        for table in (isolation.layers, isolation.missing)
    )
    return Isolation(isolation.level, _word(isolation.policy), layers, missing)


def _word(text: str) -> str:
    return text[:MAX_WORD_CHARACTERS]


def _no_worker(what: str, error: OSError) -> NoWorkerNow:
    return NoWorkerNow(
        f"{what} cannot be started now: {error.strerror or error}",
        hint="the machine, or the service, has too many processes or open files",
    )


def _tell_failure(template: asyncio.Future[_Template]) -> None:
    error = None if template.cancelled() else template.exception()
    if error is not None:
        log.warning("no template: %s", error)
