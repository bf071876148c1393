"""Golden samples: run through the model in a real worker, kept as the pack's self-test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np

from agent.author import payloads, random_samples
from agent.author.folder import Folder
from agent.author.samples import Reading, Sample, read_samples
from agent.control.selection import Candidate, select
from agent.documents import codec
from agent.documents.manifest import (
    CaseTensor,
    Limits,
    Manifest,
    SelfTestCase,
    Tensor,
    Variant,
    Window,
)
from agent.errors import (
    AgentError,
    BadInput,
    BadOutput,
    MemoryLimit,
    ModelRejected,
    RuntimeUnavailable,
    SelfTestFailed,
    UsageError,
)
from agent.links.worker import BlockingWorker, error_of
from agent.pipeline import assembly, selftest
from agent.pipeline.boundary import pair
from agent.pipeline.chain import ProducedBy, compile_chain
from agent.pipeline.codecs import registry as codecs
from agent.pipeline.codecs.v2_binary import LENGTH
from agent.pipeline.message import Prediction
from agent.pipeline.options import look_up
from agent.pipeline.steps.api import StepKind
from agent.pipeline.steps.registry import STEPS
from agent.pipeline.tensors import DTYPES, Arrays
from agent.wire import frames
from agent.wire.worker import Failed, Load, Probed

Case: TypeAlias = SelfTestCase

MEMORY_MB = 1024
# A recurrent state shows in the third answer at the latest.
STATEFUL_PAYLOADS = 3
# Readings that a random window by time is made of; the last one completes it.
TIMED_PAYLOADS = 9


@dataclass(frozen=True)
class Tried:
    """How a variant did on this machine; `probed` is None where it was not run, `why` says why."""

    variant: str
    runtime: str
    probed: Probed | None
    why: str = ""


class Trials:
    """Runs variants of a pack in the making, each in a worker of its own."""

    def __init__(self, folder: Folder, limits: Limits, deadline_s: float) -> None:
        self._folder = folder
        self._memory_mb = limits.memory_mb or MEMORY_MB
        self._deadline_s = deadline_s

    def worker(self, manifest: Manifest, candidate: Candidate) -> BlockingWorker:
        """Start a worker for a variant; it has loaded nothing yet.

        Raises:
            RuntimeUnavailable: This machine has no runtime for it.
        """
        data = codec.encode(manifest)
        self._folder.write_manifest(data)
        load = Load(
            directory=str(self._folder.path),
            pack=f"sha256:{hashlib.sha256(data).hexdigest()}",
            variant=candidate.variant.name,
            memory_mb=self._memory_mb,
        )
        return BlockingWorker(
            candidate.runtime, load, load_deadline_s=self._deadline_s, deadline_s=self._deadline_s
        )

    def qualify(self, manifest: Manifest) -> tuple[Tried, ...]:
        """Let every variant that this machine can run pass the self-test, as a device will.

        Raises:
            AgentError: One does not; names it.
        """
        selection = select(manifest)
        tried = [self._qualify(manifest, candidate) for candidate in selection.candidates]
        ran = {one.variant for one in tried}
        left = [v for v in manifest.variants if v.name not in ran]
        reasons = zip(left, selection.refused, strict=True)
        return (*tried, *(Tried(variant.name, "", None, why) for variant, why in reasons))

    def _qualify(self, manifest: Manifest, candidate: Candidate) -> Tried:
        name = candidate.variant.name
        try:
            with self.worker(manifest, candidate) as worker:
                return Tried(name, candidate.runtime, worker.probe())
        except RuntimeUnavailable as error:
            return Tried(name, candidate.runtime, None, str(error))
        except MemoryLimit as error:
            raise with_hint(error) from None
        except SelfTestFailed as error:
            raise SelfTestFailed(
                f"variant {name}: {error.message}",
                hint="where the difference is meant, state a tolerance for it in model.toml; "
                "random numbers are a hard test, --samples FILE gives real ones",
            ) from None


def with_hint(error: MemoryLimit) -> MemoryLimit:
    """Return the error with what an author can do about it."""
    return MemoryLimit(error.message, hint="state what it needs as limits.memory_mb in model.toml")


def candidates_here(manifest: Manifest) -> tuple[Candidate, ...]:
    """Return the variants worth running on this machine, in order.

    Raises:
        ModelRejected: There is none, and why.
    """
    selection = select(manifest)
    if not selection.candidates:
        raise ModelRejected(f"no variant can be run here: {'; '.join(selection.refused)}")
    return selection.candidates


def check_chains(manifest: Manifest) -> None:
    """Compile the pipeline for every variant, as a worker will.

    Raises:
        DocumentError: It does not fit the signature or the variant; names the path.
    """
    for variant in manifest.variants:
        compile_chain(manifest, variant, produced_by=ProducedBy("", "", ""))


def make_cases(
    trials: Trials,
    manifest: Manifest,
    files: Sequence[Path],
    dim_names: Mapping[str, Sequence[str]],
) -> list[Case]:
    """Run samples through the first variant that runs here.

    Args:
        trials: Where.
        manifest: Complete but for its self-test.
        files: The author's samples; none: random ones.
        dim_names: By input: what the model file calls each dimension.

    Raises:
        AgentError: The model does not run on them; says why.
    """
    # Every output with its exact bits, whatever the pack will encode.
    draft = msgspec.structs.replace(
        manifest,
        pipeline=msgspec.structs.replace(manifest.pipeline, encode={"codec": "v2_binary"}),
    )
    missing: RuntimeUnavailable | None = None
    for candidate in candidates_here(manifest):
        try:
            with trials.worker(draft, candidate) as worker:
                worker.load()
                runner = _Runner(worker, draft, candidate.variant)
                return runner.author_cases(files) if files else runner.random_cases(dim_names)
        except RuntimeUnavailable as error:
            missing = error
        except MemoryLimit as error:
            raise with_hint(error) from None
    assert missing is not None
    raise missing


class _Runner:
    """Samples on their way through one loaded variant."""

    def __init__(self, worker: BlockingWorker, manifest: Manifest, variant: Variant) -> None:
        self._worker = worker
        self._manifest = manifest
        self._variant = variant
        self._reading = reading_of(manifest, variant)

    def author_cases(self, files: Sequence[Path]) -> list[Case]:
        samples = read_samples(files, self._reading)
        return [self._author_case(number, sample) for number, sample in enumerate(samples, 1)]

    def _author_case(self, number: int, sample: Sample) -> Case:
        try:
            return self._case(f"sample/{number}", sample)
        except BadInput as error:
            raise BadInput(f"sample {number}: {error.message}", hint=error.hint) from None

    def random_cases(self, dim_names: Mapping[str, Sequence[str]]) -> list[Case]:
        inputs = random_samples.with_batch_of_one(self._reading.inputs, dim_names)
        reading = replace(self._reading, inputs=inputs)
        refusal: BadInput | None = None
        for free in random_samples.free_sizes(inputs):
            samples = random_of(self._manifest, self._variant, reading, free)
            try:
                return [self._case(f"{free}/{i}", sample) for i, sample in enumerate(samples)]
            except BadInput as error:
                refusal = error
        assert refusal is not None
        raise ModelRejected(
            f"the model does not run on random numbers: {refusal.message}",
            hint="give real samples: --samples FILE",
        )

    def _case(self, topic: str, sample: Sample) -> Case:
        answer = b""
        for payload in sample.payloads:
            answer = self._ask(topic, payload)
        if not answer:
            raise UsageError(
                f"a sample of {len(sample.payloads)} messages completes no window",
                hint="a sample must hold as many messages as the window takes",
            )
        measured = read_response(answer)
        promised = tuple(
            _as_case(tensor, sample.outputs[tensor.name])
            for tensor in self._manifest.outputs
            if tensor.name in sample.outputs
        )
        self._compare(topic, measured, promised)
        by_name = {tensor.name: tensor for tensor in (*measured, *promised)}
        return SelfTestCase(
            schema=1,
            payloads=sample.payloads,
            outputs=tuple(by_name[tensor.name] for tensor in measured),
            variant=self._variant.name,
        )

    def _ask(self, topic: str, payload: bytes) -> bytes:
        """Return the prediction; empty where a window took the message in."""
        answer = self._worker.ask(topic, payload)
        if answer.outcome == frames.REJECTED:
            error = error_in(answer.payload)
            if isinstance(error, BadOutput):
                raise BadOutput(
                    error.message, hint="if NaN is meant, set allow_nan under [[outputs]]"
                )
            raise error
        return answer.payload if answer.outcome == frames.PREDICTION else b""

    def _compare(
        self, topic: str, measured: Sequence[CaseTensor], promised: Sequence[CaseTensor]
    ) -> None:
        try:
            selftest.deviation(as_prediction(measured), promised, self._variant.tolerance)
        except SelfTestFailed as error:
            raise SelfTestFailed(
                f"{topic}: {error.message}",
                hint="the model does not give the outputs that its samples state; state a "
                "tolerance in model.toml if that is as it should be",
            ) from None


def error_in(payload: bytes) -> AgentError:
    """Return the error that a rejected message's answer tells of."""
    told: dict[str, Any] = msgspec.json.decode(payload)
    return error_of(Failed(code=str(told.get("code")), message=str(told.get("error"))))


def read_response(payload: bytes) -> tuple[CaseTensor, ...]:
    """Return the outputs of a V2 response with binary tensors."""
    (length,) = LENGTH.unpack_from(payload)
    place = LENGTH.size + length
    outputs = msgspec.json.decode(payload[LENGTH.size : place])["outputs"]
    tensors = []
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        data = payload[place : place + size]
        place += size
        tensors.append(CaseTensor(output["name"], output["datatype"], tuple(output["shape"]), data))
    return tuple(tensors)


def as_prediction(tensors: Sequence[CaseTensor]) -> Prediction:
    """Return outputs as a chain would give them."""
    return Prediction({tensor.name: as_array(tensor) for tensor in tensors})


def as_array(tensor: CaseTensor) -> np.ndarray[Any, Any]:
    """Return a kept output as an array."""
    if tensor.datatype == "BYTES":
        texts = selftest.strings_from(tensor.data, tensor.name)
        return np.array(texts, np.object_).reshape(tensor.shape)
    dtype = DTYPES[tensor.datatype]
    flat = np.frombuffer(tensor.data, dtype.newbyteorder("<")).astype(dtype)
    return flat.reshape(tensor.shape)


def _as_case(tensor: Tensor, array: np.ndarray[Any, Any]) -> CaseTensor:
    data = selftest.to_bytes(array.astype(DTYPES[tensor.datatype]))
    return CaseTensor(tensor.name, tensor.datatype, array.shape, data)


def reading_of(manifest: Manifest, variant: Variant) -> Reading:
    """Return what samples of a pack are read for."""
    pipeline = manifest.pipeline
    keeps = bool(manifest.state) or variant.hidden_state == "per_source"
    keeps = (
        keeps
        or pipeline.window is not None
        or any(map(_remembers, (*pipeline.pre, *pipeline.post)))
    )
    return Reading(
        inputs=assembly.public_inputs(manifest),
        outputs=manifest.outputs,
        codec=pipeline.decode or {"codec": codecs.DEFAULT},
        together=keeps,
    )


def _remembers(step: Mapping[str, Any]) -> bool:
    """True for a step that keeps something of a source between its messages."""
    kind: StepKind = look_up(step, "step", STEPS, "edgeward.steps", path="manifest.pipeline")
    return kind.remembers


def random_of(
    manifest: Manifest, variant: Variant, reading: Reading, free: int
) -> tuple[Sample, ...]:
    """Return random samples, the same ones every time.

    Args:
        manifest: The pack's.
        variant: The variant whose stored ranges are drawn from where none is declared.
        reading: As from `reading_of`.
        free: The size of free dimensions.
    """
    window = manifest.pipeline.window
    each = _payloads_of(window) if window else STATEFUL_PAYLOADS if reading.together else 1
    count = random_samples.case_count(reading.inputs, each)
    inputs = payloads.drawable(reading.codec, reading.inputs)
    drawn = random_samples.draw(inputs, _stored(manifest, variant), free, count * each)
    made = [
        reading.payload(*_timed(arrays, window, index % each, each))
        for index, arrays in enumerate(drawn)
    ]
    return tuple(Sample(tuple(made[i * each : (i + 1) * each])) for i in range(count))


def _stored(manifest: Manifest, variant: Variant) -> dict[str, Tensor]:
    if manifest.pipeline.window or manifest.pipeline.pre:
        return {}
    fed = {pair.input for pair in manifest.state}
    file = [tensor for tensor in variant.inputs if tensor.name not in fed]
    paired = pair(file, assembly.public_inputs(manifest), path="manifest.inputs")
    return {public.name: stored for stored, public in paired}


def _payloads_of(window: Window) -> int:
    if window.size is not None:
        return window.size
    if window.time_field:
        return TIMED_PAYLOADS
    raise UsageError(
        "a window over the time of arrival has no golden sample: its readings must carry a time",
        hint="state time_field under [pipeline] window in model.toml",
    )


def _timed(
    arrays: Arrays, window: Window | None, index: int, each: int
) -> tuple[Arrays, dict[str, float]]:
    """Give a reading its time, so that the last of a window by time completes it.

    Returns:
        Its arrays, and the time where it is none of them.
    """
    if window is None or not window.time_field:
        return arrays, {}
    time_ms = (window.span_ms or each) * index / (each - 1 or 1)
    field = arrays.get(window.time_field)
    if field is None:
        return arrays, {window.time_field: time_ms}
    return {**arrays, window.time_field: np.full_like(field, time_ms)}, {}
