"""One worker process from the daemon's side: a stream of frames, and an end that is seen to.

A worker is not trusted: what it says is bounded as it is read.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import msgspec

from agent import errors
from agent.links.template import describe_exit
from agent.wire import frames
from agent.wire.worker import MAX_ANSWER_BYTES, Ready

READ_BYTES = 256 * 1024
# From the end of a worker's stream, or from the wish that it ends, until it is killed.
EXIT_DEADLINE_S = 1.0


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
        # Who runs its model on a shared device; 0: it does itself.
        self.owner_pid = 0
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

    @property
    def is_connected(self) -> bool:
        """Whether its stream has ended on neither side."""
        return self._transport is not None and not self._transport.is_closing()

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


def _keep(frame: frames.Frame) -> frames.Frame:
    """Copy a frame out of the read buffer, for a reader that comes later."""
    return frame._replace(
        meta=memoryview(bytes(frame.meta)), payload=memoryview(bytes(frame.payload))
    )
