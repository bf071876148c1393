"""The worker's conversation: LOAD, then one RESULT for each MESSAGE, in order."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
from msgspec.structs import replace

from agent.errors import (
    AcceleratorFailed,
    AgentError,
    BadInput,
    BadOutput,
    IsolationUnavailable,
    MemoryLimit,
    ModelError,
    WorkerError,
)
from agent.pipeline.chain import Incoming, Step
from agent.pipeline.message import RejectedMessage
from agent.runtimes.api import Runtime, shorten
from agent.wire import frames
from agent.wire.worker import MAX_PREDICTION_BYTES, Failed, Load, Measure, read
from agent.worker import confine
from agent.worker.confine import Held
from agent.worker.kernel import LayerUnavailable
from agent.worker.ladder import demand
from agent.worker.load import Model, open_model
from agent.worker.probe import Bench, qualify

READ_BYTES = 256 * 1024
# How long one that ends waits until it was heard.
HEARD_WITHIN_S = 1.0
# Answers go out together: after what one read brought, this many, or this long.
BATCH_ANSWERS = 16
BATCH_NS = 1_000_000
_BAD_OUTPUT = frames.REJECTED | frames.BAD_OUTPUT


def serve_process(runtime: Runtime, stream: socket.socket, held: Held) -> None:
    """Be a worker, once it is confined, to the end of the conversation.

    Args:
        runtime: Imported, with no session yet.
        stream: The other end is the daemon's. Blocking.
        held: What confines this process.
    """
    conversation = Conversation(stream)
    try:
        _converse(runtime, conversation, held)
    except ConnectionError:
        return  # Nobody is left to be told anything.


def _converse(runtime: Runtime, conversation: Conversation, held: Held) -> None:
    load = conversation.read_load()
    if load is None:
        return
    try:
        model = _open(runtime, load, held)
        if load.probe:
            probed, bench = qualify(model)
            conversation.tell(frames.PROBED, probed)
            conversation.be_measured(bench)
            return
        conversation.tell(frames.READY, model.ready)
        conversation.serve(Answerer(model))
    except MemoryError:
        confine.allow_last_words()
        conversation.fail(
            MemoryLimit(
                f"the model needs more memory than the limit of {load.memory_mb} MB",
                hint="raise limits.worker_memory_mb if the device has it, or use a smaller variant",
            )
        )
    except AgentError as error:
        conversation.fail(error)


def _open(runtime: Runtime, load: Load, held: Held) -> Model:
    """Load a model within the limits, then take away what only the load needed.

    Raises:
        AgentError: It does not load.
        IsolationUnavailable: This process is not confined as LOAD asks.
    """
    held.layers.setdefault("memory", confine.limit_memory(load.memory_mb))
    demand(load.require_isolation, held.report())
    if load.policy != held.policy:
        raise IsolationUnavailable(
            f"the worker is confined by the policy {held.policy!r}, not {load.policy!r}"
        )
    confine.check_compiles(held)
    confine.limit_cpu(held)
    model = open_model(runtime, load, held.report())
    confine.allow_cpu()
    try:
        confine.narrow(held, runtime.name)
    except LayerUnavailable as error:
        raise IsolationUnavailable(f"system calls cannot be limited: {error.reason}") from None
    return replace(model, ready=replace(model.ready, isolation=held.report()))


class Conversation:
    """Frames in and out of the stream."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._reader = frames.FrameReader()
        self._buffer = memoryview(bytearray(READ_BYTES))

    def read_load(self) -> Load | None:
        """Wait for LOAD; None: the other side has gone."""
        for batch in self._batches():
            if len(batch) != 1 or batch[0].kind != frames.LOAD:
                raise WorkerError("the conversation must begin with one LOAD")
            return read(batch[0].payload, Load)
        return None

    def tell(self, kind: int, content: msgspec.Struct) -> None:
        """Send one JSON object."""
        self._stream.sendall(frames.encode_frame(kind, 0, 0, b"", msgspec.json.encode(content)))

    def fail(self, error: AgentError) -> None:
        """Say why this process is of no use; it ends then."""
        message, hint = error.message[:1000], error.hint[:1000]
        self.tell(frames.FAILED, Failed(error.code, message, hint, error.retryable))
        # What has come meanwhile is thrown away: were it left unread, the other side would find its
        # next message refused before it finds out why.
        self._stream.settimeout(HEARD_WITHIN_S)
        with suppress(OSError):
            while self._stream.recv_into(self._buffer):
                pass

    def serve(self, answerer: Answerer) -> None:
        """Answer messages until STOP or the end of the stream."""
        answer, clock = answerer.answer, time.monotonic_ns
        for batch in self._batches():
            answers: list[bytes] = []
            started = clock()
            for frame in batch:
                if frame.kind == frames.MESSAGE:
                    answers.append(answer(frame))
                    if len(answers) >= BATCH_ANSWERS or clock() - started > BATCH_NS:
                        self._send(answers)
                        started = clock()
                elif frame.kind == frames.STOP:
                    self._send(answers)
                    return
                else:
                    raise WorkerError(f"a serving worker got a frame of kind {frame.kind}")
            self._send(answers)

    def be_measured(self, bench: Bench) -> None:
        """Answer MEASURE until the end of the stream."""
        for batch in self._batches():
            for frame in batch:
                if frame.kind != frames.MEASURE:
                    raise WorkerError(f"a probe got a frame of kind {frame.kind}")
                self.tell(frames.MEASURED, bench.measure(read(frame.payload, Measure)))

    def _batches(self) -> Iterator[list[frames.Frame]]:
        """Yield the frames of each read; their views end with the next."""
        receive, feed, buffer = self._stream.recv_into, self._reader.feed, self._buffer
        while count := receive(buffer):
            batch = feed(buffer[:count])
            if batch:
                yield batch

    def _send(self, answers: list[bytes]) -> None:
        if answers:
            self._stream.sendall(answers[0] if len(answers) == 1 else b"".join(answers))
            answers.clear()


class Answerer:
    """Makes the RESULT of each MESSAGE."""

    def __init__(self, model: Model, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._chain = model.chain
        self._accept = model.chain.accept
        self._run = model.run
        self._predict = model.chain.predict
        self._encode = model.chain.encode
        self._clock = clock

    def answer(self, frame: frames.Frame) -> bytes:
        """Return the RESULT frame of one MESSAGE.

        Raises:
            MemoryError: This process is at its limit.
        """
        started = self._clock()
        sequence, replay = frame.sequence, bool(frame.flags & frames.REPLAY)
        topic, correlation = frames.decode_message_meta(frame)
        try:
            step = self._accept(
                Incoming(sequence, topic, frame.payload, correlation, replay, started / 1e6)
            )
        except RejectedMessage as error:
            return self._reject(sequence, error, self._clock() - started)
        except Exception as error:
            return self._reject(sequence, _unexpected(error), self._clock() - started)
        decoded = self._clock()
        decode_us = (decoded - started) // 1000
        if step.inputs is None:
            return _absorbed(sequence, step, (decode_us, 0, 0))
        run_us = 0
        try:
            raw = self._run(step.source, step.inputs)
            ran = self._clock()
            run_us = (ran - decoded) // 1000
            prediction = self._predict(step, raw)
            if replay:
                return _absorbed(sequence, step, (decode_us, run_us, 0))
            body = _short_enough(self._encode(step, prediction, run_us))
        except (MemoryError, AcceleratorFailed):
            # Neither is the message's fault: another worker answers it.
            raise
        except Exception as error:
            return self._fail(sequence, step, error, (decode_us, run_us, 0))
        encode_us = (self._clock() - ran) // 1000
        return frames.encode_result(
            sequence,
            frames.PREDICTION,
            body,
            times_us=(decode_us, run_us, encode_us),
            class_index=prediction.class_index,
            reply_topic=step.reply_to.encode() if step.reply_to else b"",
            released=step.released,
        )

    def _reject(self, sequence: int, error: RejectedMessage, spent_ns: int) -> bytes:
        """Answer a message that does not fit the model."""
        has_id = 0 if error.id is None else frames.HAS_ID
        return frames.encode_result(
            sequence,
            frames.REJECTED | has_id,
            self._chain.encode_error(error.id, error),
            times_us=(spent_ns // 1000, 0, 0),
            reply_topic=error.reply_to.encode(),
            message_id=(error.id or "").encode(),
            released=error.released,
        )

    def _fail(
        self, sequence: int, step: Step, error: Exception, times_us: tuple[int, int, int]
    ) -> bytes:
        """Answer a message on which the model, not the message, did wrong; or where the model found
        out what no check before it could: that the input does not fit."""
        own_id = step.id if step.id_kind != "agent" else None
        if isinstance(error, BadInput):
            rejected = RejectedMessage(
                error.message, id=own_id, reply_to=step.reply_to, released=step.released
            )
            return self._reject(sequence, rejected, times_us[0] * 1000)
        if not isinstance(error, ModelError):
            _tell_traceback(error)
            error = BadOutput(f"the model's answer cannot be handled: {shorten(repr(error))}")
        return frames.encode_result(
            sequence,
            _BAD_OUTPUT | (frames.HAS_ID if own_id is not None else 0),
            self._chain.encode_error(step.id, error),
            times_us=times_us,
            reply_topic=step.reply_to.encode(),
            message_id=(own_id or "").encode(),
            released=step.released,
        )


def _absorbed(sequence: int, step: Step, times_us: tuple[int, int, int]) -> bytes:
    return frames.encode_result(
        sequence, frames.ABSORBED, b"", times_us=times_us, released=step.released
    )


def _short_enough(body: bytes) -> bytes:
    """Refuse what the daemon would end this worker for."""
    if len(body) > MAX_PREDICTION_BYTES:
        raise BadOutput(
            f"the prediction has {len(body)} bytes, at most {MAX_PREDICTION_BYTES} can be sent"
        )
    return body


def _unexpected(error: Exception) -> RejectedMessage:
    """Turn what no check foresaw into a refusal: one message must not end the stream."""
    if isinstance(error, MemoryError):
        raise error
    _tell_traceback(error)
    return RejectedMessage(f"the message cannot be read: {shorten(repr(error))}")


def _tell_traceback(error: Exception) -> None:
    # The one place for it: to the log pipe, for who mends the program, not for who uses it.
    sys.excepthook(type(error), error, error.__traceback__)
