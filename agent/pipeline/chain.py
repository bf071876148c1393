"""The whole way of a message through a model, compiled once per model.

    payload → decode → window → steps before → quantise → (run) → dequantise → steps after → encode

The caller runs the model in between:

    step = chain.accept(message)
    raw = session.run(step.inputs)
    prediction = chain.predict(step, raw)
    body = chain.encode(step, prediction, run_us)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count

import msgspec

from agent.documents.manifest import CaseTensor, Manifest, Tensor, Tolerance, Variant, Window
from agent.errors import AgentError, BadInput, BadOutput, DocumentError
from agent.pipeline import assembly, selftest
from agent.pipeline.boundary import Bind, compile_inputs, compile_outputs, example
from agent.pipeline.codecs.api import Decode, Encode
from agent.pipeline.message import (
    Decoded,
    IdKind,
    Incoming,
    Prediction,
    ProducedBy,
    RejectedMessage,
    Step,
    id_from_correlation,
)
from agent.pipeline.sources import Sources
from agent.pipeline.state import State, compile_state
from agent.pipeline.steps.api import CLASS_INDEX, Memory
from agent.pipeline.tensors import FLOAT_MAX, Arrays
from agent.pipeline.window import compile_window

__all__ = ["Chain", "Counters", "Incoming", "Prediction", "ProducedBy", "Step", "compile_chain"]


class Counters(msgspec.Struct):
    """What a chain gave up to stay within its bounds, since it was made."""

    # Sources that were forgotten, with their window and state, for a new one.
    evicted_sources: int = 0
    # Readings that a window by time had no room for.
    dropped_readings: int = 0


class Parts(msgspec.Struct, frozen=True):
    """What `compile_chain` made."""

    decode: Decode
    before: assembly.Steps
    bind: Bind
    unbind: Bind
    after: assembly.Steps
    encode: Encode
    sources: Sources | None
    state: State | None
    # The input that holds a reading's own time, where the window asks for one.
    time_input: str
    class_labels: tuple[str, ...]
    # The output whose largest value names the class, where no step does.
    class_scores: str


class Chain:
    """One model's way from payload to prediction. Used from one thread."""

    def __init__(
        self,
        parts: Parts,
        outputs: tuple[Tensor, ...],
        file_inputs: tuple[Tensor, ...],
        tolerance: Tolerance,
        id_prefix: str,
    ) -> None:
        self.outputs = outputs
        # What `Prediction.class_index` counts; empty where classes have no names.
        self.class_labels = parts.class_labels
        self.counters = Counters()
        self._file_inputs = file_inputs
        self._tolerance = tolerance
        self._decode = parts.decode
        self._before = parts.before.runs
        self._bind = parts.bind
        self._unbind = parts.unbind
        self._after = parts.after.runs
        self._encode = parts.encode
        self._sources = parts.sources
        self._state = parts.state
        self._time_input = parts.time_input
        self._names_class = parts.after.class_labels is not None
        self._class_scores = parts.class_scores
        self._output_names = frozenset(tensor.name for tensor in outputs)
        self._id_prefix = id_prefix
        self._next_id = count(1)

    def accept(self, message: Incoming) -> Step:
        """Make a message ready for the model.

        Returns:
            A step whose `inputs` are None where the message only fills a window.

        Raises:
            RejectedMessage: It does not fit the model; a BadInput that carries the message's id
                and, like a step, what was released.
        """
        if self._sources is None and message.replay:
            return Step(None, "", "agent", message.topic)
        decoded: Decoded | None = None
        try:
            decoded = self._decode(message.payload)
            if decoded.wanted is not None:
                self._check_wanted(decoded.wanted)
            step = self._identify(message, decoded)
            if self._sources is not None:
                return self._accept_remembering(step, message, decoded)
            arrays = decoded.arrays
            for run in self._before:
                arrays = run(arrays, {})
            step.inputs = self._bind(arrays)
        except BadInput as error:
            raise self._rejection(error, message, decoded) from None
        return step

    def predict(self, step: Step, raw: Arrays) -> Prediction:
        """Turn what the model gave into the pack's outputs.

        Args:
            step: What `accept` returned.
            raw: By the file's names, as the model stores them.

        Raises:
            BadOutput: It is not what the manifest says. A source's state is then as at first.
        """
        source = self._sources.peek(step.source) if self._sources is not None else None
        try:
            tensors = self._unbind(raw)
            if self._state is not None and source is not None:
                source.state = self._state.after(raw)
            memory: Memory = source.memory if source is not None else {}
            for run in self._after:
                tensors = run(tensors, memory)
        except BadOutput:
            if self._state is not None and source is not None:
                source.state = dict(self._state.first)
            raise
        if self._names_class:
            return Prediction(tensors, memory.pop(CLASS_INDEX))
        if self._class_scores:
            scores = tensors[self._class_scores]
            if scores.size == len(self.class_labels):
                return Prediction(tensors, int(scores.argmax()))
        return Prediction(tensors)

    def encode(self, step: Step, prediction: Prediction, run_us: int) -> bytes:
        """Return the answer to a message.

        Args:
            step: What `accept` returned.
            prediction: What `predict` returned.
            run_us: How long the model ran, in µs.
        """
        return self._encode(step, prediction, run_us)

    def encode_error(self, message_id: str | None, error: AgentError) -> bytes:
        """Return the answer to a message that has no prediction, in the protocol's form."""
        return msgspec.json.encode({"id": message_id, "error": str(error), "code": error.code})

    def zeros(self) -> Arrays:
        """Return inputs for a warm-up run: zeros, free dimensions 1, strings empty."""
        return {tensor.name: example(tensor) for tensor in self._file_inputs}

    def expected_from(self, prediction: Prediction) -> tuple[CaseTensor, ...]:
        """Return what a self-test case keeps of a prediction."""
        return selftest.expected_from(prediction, self.outputs)

    def deviation(self, prediction: Prediction, expected: Sequence[CaseTensor]) -> float:
        """Hold a prediction against a self-test case, within the variant's tolerance.

        Returns:
            The largest difference seen.

        Raises:
            SelfTestFailed: It is too far off.
        """
        return selftest.deviation(prediction, expected, self._tolerance)

    def held(self) -> tuple[int, ...]:
        """Return the sequence numbers of all messages that open windows still need."""
        return self._sources.held() if self._sources is not None else ()

    def _identify(self, message: Incoming, decoded: Decoded) -> Step:
        message_id: str | None = decoded.id
        kind: IdKind = "payload"
        if not message_id:
            message_id, kind = id_from_correlation(message.correlation), "correlation"
            if message_id is None:
                message_id, kind = f"{self._id_prefix}-{next(self._next_id)}", "agent"
        return Step(None, message_id, kind, message.topic, decoded.reply_to, None, decoded.wanted)

    def _accept_remembering(self, step: Step, message: Incoming, decoded: Decoded) -> Step:
        assert self._sources is not None
        time_ms = self._take_time(decoded, message)
        source, evicted = self._sources.get(message.topic)
        self.counters.evicted_sources = self._sources.evicted
        arrays: Arrays | None = decoded.arrays
        if source.window is not None:
            pushed = source.window.push(decoded.arrays, message.sequence, time_ms)
            self.counters.dropped_readings += pushed.dropped
            step.released = evicted + pushed.released
            arrays = pushed.ready
        if arrays is None:
            return step
        try:
            for run in self._before:
                arrays = run(arrays, source.memory)
            # A replayed message runs again only where the model's own state depends on it.
            if message.replay and self._state is None:
                return step
            step.inputs = self._bind(arrays)
        except BadInput as error:
            raise RejectedMessage(
                error.message,
                id=step.id if step.id_kind != "agent" else None,
                id_kind=step.id_kind,
                reply_to=step.reply_to,
                released=step.released,
            ) from None
        step.inputs.update(source.state)
        return step

    def _take_time(self, decoded: Decoded, message: Incoming) -> float:
        if self._time_input:
            array = decoded.arrays.pop(self._time_input)
            if array.size != 1:
                raise BadInput(f"{self._time_input}: expected one time in ms, got {array.size}")
            time_ms = float(array.flat[0])
            if not math.isfinite(time_ms):
                raise BadInput(f"{self._time_input}: expected a time in ms, got {time_ms}")
            return time_ms
        return message.now_ms if decoded.time_ms is None else decoded.time_ms

    def _check_wanted(self, wanted: tuple[str, ...]) -> None:
        for index, name in enumerate(wanted):
            if name not in self._output_names:
                names = ", ".join(tensor.name for tensor in self.outputs)
                raise BadInput(f"outputs[{index}].name: expected one of {names}, got {name[:60]!r}")

    def _rejection(
        self, error: BadInput, message: Incoming, decoded: Decoded | None
    ) -> RejectedMessage:
        if not isinstance(error, RejectedMessage):
            found = decoded or Decoded({})
            error = RejectedMessage(error.message, id=found.id, reply_to=found.reply_to)
        if not error.id:
            error.id = id_from_correlation(message.correlation)
            error.id_kind = "correlation" if error.id else "agent"
        return error


def compile_chain(
    manifest: Manifest,
    variant: Variant,
    settings: assembly.Settings | None = None,
    *,
    reply_to: bool = False,
    produced_by: ProducedBy,
    id_prefix: str = "",
) -> Chain:
    """Do all the work that one model needs once.

    Args:
        manifest: The pack's.
        variant: The one of its variants that runs.
        settings: The slot's; they override options of steps by name.
        reply_to: Obey a `reply_to` in payloads.
        produced_by: What every prediction says of its origin.
        id_prefix: Of the ids that messages without one get; random, so that no two starts share
            one.

    Raises:
        DocumentError: The pipeline does not fit the signature or the variant; names the path.
    """
    settings = settings or {}
    pipeline = manifest.pipeline
    assembly.check_settings(pipeline, settings)
    inputs = assembly.public_inputs(manifest)
    decode = assembly.compile_decoder(manifest, variant, inputs, reply_to=reply_to)
    make_window, flow, time_input = None, inputs, ""
    if pipeline.window is not None:
        time_input, readings = take_time_input(pipeline.window, inputs)
        make_window, flow = compile_window(
            pipeline.window, readings, manifest.limits.max_sources, path="manifest.pipeline.window"
        )
    before = assembly.compile_steps(
        pipeline.pre, flow, manifest.labels, settings, path="manifest.pipeline.pre", refuse=BadInput
    )
    fed = {pair.input for pair in manifest.state}
    bind = compile_inputs(
        before.tensors,
        [tensor for tensor in variant.inputs if tensor.name not in fed],
        path=f"variant {variant.name}: inputs",
        stored=not pipeline.pre and pipeline.window is None,
    )
    model_outputs = assembly.model_outputs(manifest, variant)
    unbind = compile_outputs(
        model_outputs, variant.outputs, path=f"variant {variant.name}: outputs"
    )
    after = assembly.compile_steps(
        pipeline.post,
        model_outputs,
        manifest.labels,
        settings,
        path="manifest.pipeline.post",
        refuse=BadOutput,
    )
    assembly.check_outputs(manifest.outputs, after.tensors)
    state = None
    if manifest.state:
        state = compile_state(
            manifest.state, variant.inputs, variant.outputs, path="manifest.state"
        )
    sources = None
    if make_window or state or before.remember or after.remember:
        sources = Sources(manifest.limits.max_sources, make_window, state.first if state else {})
    encode = assembly.compile_encoder(manifest, variant, after.tensors, produced_by)
    scores = "" if after.class_labels is not None else class_scores(after.tensors, manifest.labels)
    labels = manifest.labels if scores else after.class_labels or ()
    parts = Parts(
        decode, before, bind, unbind, after, encode, sources, state, time_input, labels, scores
    )
    return Chain(parts, after.tensors, variant.inputs, variant.tolerance, id_prefix)


def take_time_input(window: Window, inputs: tuple[Tensor, ...]) -> tuple[str, tuple[Tensor, ...]]:
    """Return the name of the input that is a reading's time (empty: none is), and the others.

    Raises:
        DocumentError: That input holds no number.
    """
    for tensor in inputs:
        if tensor.name == window.time_field:
            if tensor.datatype in ("BYTES", "BOOL", "BF16"):
                raise DocumentError(
                    "manifest.pipeline.window.time_field", "a number of ms", tensor.datatype
                )
            return tensor.name, tuple(other for other in inputs if other is not tensor)
    return "", inputs


def class_scores(outputs: Sequence[Tensor], labels: Sequence[str]) -> str:
    """Return the name of the one output that holds a score per label; empty if there is none."""
    scores = [t for t in outputs if t.shape and t.datatype in FLOAT_MAX and t.datatype != "BF16"]
    exact = [tensor for tensor in scores if tensor.shape[-1] == len(labels)]
    # Some models do not state how many classes they have; the array tells.
    open_ended = [tensor for tensor in scores if len(tensor.shape) > 1 and tensor.shape[-1] == -1]
    found = exact or open_ended
    return found[0].name if labels and len(found) == 1 else ""
