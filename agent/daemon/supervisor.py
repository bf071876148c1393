"""Worker processes: start them from their runtime's template, talk to them, know when they end.

A template process has imported one runtime and holds no model; forking it makes a worker in a few
milliseconds. Templates are started on first use and kept while any slot needs them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import msgspec

from agent import errors
from agent.links.template import TemplateProcess, describe_exit, start_template
from agent.links.worker import error_of
from agent.wire import frames
from agent.wire.worker import Failed, Load, Probed, Ready, TemplateEvent, read

log = logging.getLogger(__name__)

READ_BYTES = 256 * 1024
TEMPLATE_DEADLINE_S = 60.0
EXIT_STATUS_DEADLINE_S = 1.0


class Worker(asyncio.BufferedProtocol):
    """One worker process, from the daemon's side. Made by `Supervisor.start`."""

    def __init__(self, number: int, runtime: str, memory_mb: int) -> None:
        self.number = number
        self.runtime = runtime
        self.memory_mb = memory_mb
        self.pid = 0
        self.ready: Ready | None = None
        self.on_results: Callable[[list[frames.Frame]], None] | None = None
        self.on_gone: Callable[[Worker, errors.AgentError], None] | None = None
        self.gone = asyncio.get_running_loop().create_future()
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answer: asyncio.Future[frames.Frame] | None = None
        self._reader = frames.FrameReader()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._transport: asyncio.Transport | None = None
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

    async def ask(self, load: Load, deadline_s: float) -> frames.Frame:
        """Send LOAD and return the worker's first frame.

        Raises:
            WorkerTimedOut, WorkerExited, MemoryLimit: No answer came, and why.
        """
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self.send(frames.encode_frame(frames.LOAD, 0, 0, b"", msgspec.json.encode(load)))
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
        """Ask the worker to end; it has nothing more to answer."""
        self.on_results = self.on_gone = None
        if self._transport is not None:
            self._transport.close()

    def kill(self, why: errors.AgentError) -> None:
        """End the worker at once, whatever it does."""
        self.why_killed = self.why_killed or why
        if self._transport is not None:
            self._transport.abort()
        self.on_kill(self)

    on_kill: Callable[[Worker], None] = staticmethod(lambda worker: None)
    last_words: Callable[[], str] = staticmethod(lambda: "")

    # -- the end ------------------------------------------------------------------------------

    def exited(self, status: int) -> None:
        if not self._status.done():
            self._status.set_result(status)

    async def _wait_for_status(self) -> None:
        done, _ = await asyncio.wait((self._status,), timeout=EXIT_STATUS_DEADLINE_S)
        error: errors.AgentError
        if self.why_killed is not None:
            error = self.why_killed
        elif done:
            error = describe_exit(self._status.result(), self.memory_mb, self.last_words())
        else:
            error = errors.WorkerExited("the worker closed its socket")
        if not self.gone.done():
            self.gone.set_result(error)
        if self.on_gone is not None:
            self.on_gone(self, error)


class Supervisor:
    """Starts workers and probes; owns the template processes."""

    def __init__(self) -> None:
        self._templates: dict[str, asyncio.Future[_Template]] = {}
        self._next = 1

    def prepare(self, runtime: str) -> None:
        """Begin to start a runtime's template, so that it is there when it is needed."""
        with suppress(errors.AgentError):
            self._template(runtime)

    async def start(self, runtime: str, load: Load, deadline_s: float) -> Worker:
        """Start a worker and let it load; returns when it is ready to serve.

        Raises:
            AgentError: The template, the worker or the model says why not.
        """
        worker, first = await self._begin(runtime, load, deadline_s)
        if first.kind != frames.READY:
            raise _failure(worker, first)
        worker.ready = read(first.payload, Ready)
        return worker

    async def probe(self, runtime: str, load: Load, deadline_s: float) -> Probed:
        """Qualify a candidate in a process that ends with it.

        Raises:
            AgentError: It did not pass, and why.
        """
        worker, first = await self._begin(runtime, load, deadline_s)
        try:
            if first.kind != frames.PROBED:
                raise _failure(worker, first)
            return read(first.payload, Probed)
        finally:
            worker.stop()

    async def close(self) -> None:
        """End every template; their workers end with them."""
        for future in self._templates.values():
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()
            else:
                future.cancel()
        self._templates.clear()

    async def _begin(
        self, runtime: str, load: Load, deadline_s: float
    ) -> tuple[Worker, frames.Frame]:
        template = await asyncio.shield(self._template(runtime))
        number, self._next = self._next, self._next + 1
        worker = Worker(number, runtime, load.memory_mb)
        await template.spawn(worker)
        try:
            return worker, await worker.ask(load, deadline_s)
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
            known = asyncio.ensure_future(_open_template(runtime))
            self._templates[runtime] = known
        return known


class _Template:
    """A running template process and the workers forked from it."""

    def __init__(self, process: TemplateProcess) -> None:
        self.process = process
        self.closed = False
        self.workers: dict[int, Worker] = {}
        self.first_event: asyncio.Future[TemplateEvent] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(process.control.fileno(), self._readable)

    async def spawn(self, worker: Worker) -> None:
        try:
            stream = self.process.request_worker(worker.number)
        except OSError as error:
            self.close()
            raise errors.WorkerExited(f"the {worker.runtime} template is gone: {error}") from None
        self.workers[worker.number] = worker
        worker.on_kill = self._kill
        worker.last_words = self.process.take_last_words
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=stream)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        asyncio.get_running_loop().remove_reader(self.process.control.fileno())
        self.process.kill()

    def _kill(self, worker: Worker) -> None:
        if worker.number in self.workers and worker.pid:
            self.process.kill_worker(worker.pid)

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
            return
        worker = self.workers.get(event.worker)
        if worker is None:
            return
        if event.event == "started":
            worker.pid = event.pid
        elif event.event == "exited":
            del self.workers[event.worker]
            # With a code: it was not even forked, and the message says why.
            if event.code:
                worker.why_killed = errors.WorkerError(event.message)
            worker.exited(event.status)

    def _ended(self) -> None:
        self.close()
        if not self.first_event.done():
            error = self.process.failure()
            self.first_event.set_result(
                TemplateEvent("failed", code=error.code, message=error.message, hint=error.hint)
            )


async def _open_template(runtime: str) -> _Template:
    template = _Template(start_template(runtime))
    try:
        event = await asyncio.wait_for(asyncio.shield(template.first_event), TEMPLATE_DEADLINE_S)
    except asyncio.TimeoutError:
        template.close()
        raise errors.RuntimeUnavailable(
            f"the {runtime} runtime did not import within {TEMPLATE_DEADLINE_S:g} s"
        ) from None
    if event.event == "failed":
        template.close()
        raise errors.RuntimeUnavailable(event.message, hint=event.hint)
    log.info("runtime=%s version=%s template pid=%s", runtime, event.version, template.process.pid)
    return template


def _keep(frame: frames.Frame) -> frames.Frame:
    """Copy a frame out of the read buffer, for a reader that comes later."""
    return frame._replace(
        meta=memoryview(bytes(frame.meta)), payload=memoryview(bytes(frame.payload))
    )


def _failure(worker: Worker, frame: frames.Frame) -> errors.AgentError:
    worker.stop()
    if frame.kind != frames.FAILED:
        return errors.WorkerError(f"a worker answered LOAD with a frame of kind {frame.kind}")
    return error_of(read(frame.payload, Failed))
