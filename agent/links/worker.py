"""One worker, spoken to by a program that waits: `pack`, `predict`, `inspect`, tests."""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

import msgspec

from agent.documents.text import printable
from agent.errors import AgentError, RuntimeUnavailable, WorkerError, WorkerTimedOut, retold
from agent.links.template import TemplateProcess, describe_exit, start_template
from agent.wire import frames
from agent.wire.worker import (
    Failed,
    Load,
    Measure,
    Measured,
    Probed,
    Ready,
    TemplateEvent,
    read,
)

START_DEADLINE_S = 60.0
LOAD_DEADLINE_S = 60.0
ASK_DEADLINE_S = 10.0
# From the end of a worker's stream to its exit status.
EXIT_DEADLINE_S = 5.0
_READ_BYTES = 256 * 1024
# What a report can carry of a worker's words.
_MAX_MESSAGE_CHARACTERS = 600
_MAX_HINT_CHARACTERS = 300
# Unique also where several workers share a template.
_numbers = itertools.count(1)


class Answer(NamedTuple):
    """One answer of a worker; the flags and outcomes are those of `agent.wire.frames`."""

    outcome: int
    flags: int
    result: frames.Result
    payload: bytes


class BlockingWorker:
    """A worker, by default with a template of its own. Use it as a context manager.

    Every method that waits ends the worker when its deadline passes.
    """

    def __init__(
        self,
        runtime: str,
        load: Load,
        *,
        template: TemplateProcess | None = None,
        start_deadline_s: float = START_DEADLINE_S,
        load_deadline_s: float = LOAD_DEADLINE_S,
        deadline_s: float = ASK_DEADLINE_S,
    ) -> None:
        """Start the processes; load nothing yet.

        Args:
            runtime: A runtime's name, as it is declared.
            load: What to load and within which limits.
            template: One of this runtime that lives on after this worker, and serves one worker
                after the other.
            start_deadline_s: For the import of the runtime.
            load_deadline_s: For `load` and `probe`.
            deadline_s: For each answer, unless `ask` says otherwise.

        Raises:
            RuntimeUnavailable: The runtime does not import; the hint says what to install.
        """
        self._load = load
        self._load_deadline_s = load_deadline_s
        self._deadline_s = deadline_s
        self._sequence = 0
        self._reader = frames.FrameReader()
        self._buffer = bytearray(_READ_BYTES)
        self._received: list[frames.Frame] = []
        self._stream: socket.socket | None = None
        # Known once the worker has answered for the first time.
        self.pid = 0
        self._exited: TemplateEvent | None = None
        self._number = next(_numbers)
        self._owns_template = template is None
        self._template = template or start_template(runtime)
        try:
            self._await_ready(start_deadline_s)
            # What a worker before this one said is not about this one.
            self._template.take_last_words()
            self._stream = self._template.request_worker(self._number, load)
        except BaseException:
            self.close()
            raise

    def load(self) -> Ready:
        """Have the model loaded and warmed up.

        Raises:
            AgentError: Why it does not serve: `ModelRejected`, `PackError`, `MemoryLimit`,
                `WorkerExited`, `WorkerTimedOut`, `IsolationUnavailable` …
        """
        self._send_load(self._load)
        return read(self._first(frames.READY, self._load_deadline_s).payload, Ready)

    def probe(self) -> Probed:
        """Have the self-test run; then `measure` may be asked for, and nothing else.

        Raises:
            AgentError: As `load`; `SelfTestFailed` where the answers are not those promised.
        """
        self._send_load(msgspec.structs.replace(self._load, probe=True))
        return read(self._first(frames.PROBED, self._load_deadline_s).payload, Probed)

    def measure(self, asked: Measure, deadline_s: float) -> Measured:
        """Have the model run so often, once it was probed.

        Raises:
            WorkerExited, WorkerTimedOut, MemoryLimit: It did not, and why.
        """
        self._send(frames.encode_frame(frames.MEASURE, 0, 0, b"", msgspec.json.encode(asked)))
        return read(self._first(frames.MEASURED, deadline_s).payload, Measured)

    def ask(
        self,
        topic: str,
        payload: bytes,
        correlation: bytes | None = None,
        *,
        replay: bool = False,
        deadline_s: float | None = None,
    ) -> Answer:
        """Send one message and return its answer.

        Args:
            topic: Its source.
            payload: As a bus would deliver it.
            correlation: MQTT 5 correlation data.
            replay: It only rebuilds a window or a state.
            deadline_s: In place of the worker's own.

        Raises:
            WorkerExited, WorkerTimedOut, MemoryLimit: There is none, and why.
        """
        self._sequence += 1
        message = frames.encode_message(
            self._sequence, topic.encode(), payload, correlation, replay=replay
        )
        self._send(message)
        frame = self._receive(deadline_s or self._deadline_s)
        if frame.kind == frames.FAILED:
            raise error_of(read(frame.payload, Failed))
        return Answer(
            frame.flags & frames.OUTCOME_MASK,
            frame.flags,
            frames.decode_result(frame),
            bytes(frame.payload),
        )

    def close(self) -> None:
        """End the worker, and its template if that is its own. Safe to call twice."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._owns_template:
            self._template.kill()
        elif self.pid:
            self._template.kill_worker(self.pid)

    def __enter__(self) -> BlockingWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send_load(self, load: Load) -> None:
        self._send(frames.encode_frame(frames.LOAD, 0, 0, b"", msgspec.json.encode(load)))

    def _send(self, data: bytes) -> None:
        stream = self._open_stream()
        stream.settimeout(self._deadline_s)
        try:
            stream.sendall(data)
        except TimeoutError:
            raise self._timed_out(self._deadline_s) from None
        except OSError:
            raise self._gone() from None

    def _first(self, wanted: int, deadline_s: float) -> frames.Frame:
        frame = self._receive(deadline_s)
        # The template told of the fork before the worker could answer.
        self._note_events()
        if frame.kind == frames.FAILED:
            raise error_of(read(frame.payload, Failed))
        if frame.kind != wanted:
            raise WorkerError(f"the worker answered with a frame of kind {frame.kind}")
        return frame

    def _receive(self, deadline_s: float) -> frames.Frame:
        stream, deadline = self._open_stream(), time.monotonic() + deadline_s
        while not self._received:
            stream.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                count = stream.recv_into(self._buffer)
            except TimeoutError:
                raise self._timed_out(deadline_s) from None
            except OSError:
                count = 0
            if count == 0:
                raise self._gone()
            self._received += self._reader.feed(memoryview(self._buffer)[:count])
        return self._received.pop(0)

    def _open_stream(self) -> socket.socket:
        if self._stream is None:
            raise RuntimeError("the worker is closed")
        return self._stream

    def _timed_out(self, deadline_s: float) -> WorkerTimedOut:
        self._note_events()
        self.close()
        return WorkerTimedOut(
            f"no answer within {deadline_s:g} s",
            hint="the model is too slow for this machine or never ends; raise the deadline if it "
            "is the former",
        )

    def _gone(self) -> AgentError:
        """Return why the worker is gone, and close what is left."""
        try:
            events = self._events(EXIT_DEADLINE_S)
            while self._exited is None and next(events, None) is not None:
                pass
            return self._why_exited(self._exited) if self._exited else self._template.failure()
        finally:
            self.close()

    def _why_exited(self, event: TemplateEvent) -> AgentError:
        if event.code:
            return error_of(Failed(event.code, event.message, event.hint))
        words = self._template.take_last_words()
        return describe_exit(event.status, self._load.memory_mb, words)

    def _await_ready(self, deadline_s: float) -> None:
        if self._template.is_ready:
            return
        for event in self._events(deadline_s):
            if event.event == "ready":
                return
            if event.event == "failed":
                raise RuntimeUnavailable(event.message, hint=event.hint)
        raise self._template.failure()

    def _events(self, deadline_s: float) -> Iterator[TemplateEvent]:
        """Yield the template's events until it ends.

        Raises:
            WorkerTimedOut: Nothing came in time.
        """
        deadline = time.monotonic() + deadline_s
        poll = select.poll()
        poll.register(self._template.control, select.POLLIN)
        while True:
            remaining_ms = (deadline - time.monotonic()) * 1000
            if not poll.poll(max(0.0, remaining_ms)):
                raise WorkerTimedOut(
                    f"the runtime {self._template.runtime} gave no sign within {deadline_s:g} s"
                )
            events = self._template.read_events()
            if events is None:
                return
            for event in events:
                self._note(event)
                yield event

    def _note_events(self) -> None:
        for event in self._template.read_events() or ():
            self._note(event)

    def _note(self, event: TemplateEvent) -> None:
        if event.worker != self._number:
            return
        if event.event == "exited":
            # Its process id may soon be another's.
            self.pid, self._exited = 0, event
        else:
            self.pid = event.pid


def error_of(failed: Failed) -> AgentError:
    """Return the error that a worker told of by its code; `WorkerError` where it is unknown."""
    # They quote the model's file, which anybody may have written.
    message = printable(failed.message, _MAX_MESSAGE_CHARACTERS)
    hint = printable(failed.hint, _MAX_HINT_CHARACTERS)
    return retold(failed.code, message, hint, otherwise=WorkerError)
