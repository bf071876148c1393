"""Golden samples: run through the model in a real worker, kept as the pack's self-test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from agent.author import random_samples
from agent.author.inspect import codec_hint
from agent.author.made_up import random_of, reading_of
from agent.author.samples import Sample, read_samples
from agent.author.trials import Trials, candidates_here, with_hint
from agent.documents.manifest import CaseTensor, Manifest, SelfTestCase, Tensor, Variant
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
from agent.pipeline import selftest
from agent.pipeline.codecs.v2_binary import LENGTH
from agent.pipeline.message import Prediction
from agent.pipeline.tensors import DTYPES, Array
from agent.wire import frames
from agent.wire.worker import Failed


def make_cases(
    trials: Trials,
    manifest: Manifest,
    files: Sequence[Path],
    dim_names: Mapping[str, Sequence[str]],
) -> list[SelfTestCase]:
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
    draft = replace(
        manifest,
        pipeline=replace(manifest.pipeline, encode={"codec": "v2_binary"}),
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

    def author_cases(self, files: Sequence[Path]) -> list[SelfTestCase]:
        samples = read_samples(files, self._reading)
        return [self._author_case(number, sample) for number, sample in enumerate(samples, 1)]

    def _author_case(self, number: int, sample: Sample) -> SelfTestCase:
        try:
            return self._case(f"sample/{number}", sample)
        except BadInput as error:
            hint = error.hint or codec_hint(self._manifest)
            raise BadInput(f"sample {number}: {error.message}", hint=hint) from None

    def random_cases(self, dim_names: Mapping[str, Sequence[str]]) -> list[SelfTestCase]:
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

    def _case(self, topic: str, sample: Sample) -> SelfTestCase:
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


def as_array(tensor: CaseTensor) -> Array:
    """Return a kept output as an array."""
    if tensor.datatype == "BYTES":
        texts = selftest.strings_from(tensor.data, tensor.name)
        return np.array(texts, np.object_).reshape(tensor.shape)
    dtype = DTYPES[tensor.datatype]
    flat = np.frombuffer(tensor.data, dtype.newbyteorder("<")).astype(dtype)
    return flat.reshape(tensor.shape)


def _as_case(tensor: Tensor, array: Array) -> CaseTensor:
    data = selftest.to_bytes(array.astype(DTYPES[tensor.datatype]))
    return CaseTensor(tensor.name, tensor.datatype, array.shape, data)
