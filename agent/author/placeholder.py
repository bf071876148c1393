"""A pack of a model that nobody looked at: for tests that bring a broken model to a device.

Its self-test promises zeros for random numbers, so that no sound device takes it for proven.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from agent.author import reading, signature
from agent.author.folder import Folder
from agent.author.made_up import random_of, reading_of
from agent.author.spec import Spec
from agent.documents import codec
from agent.documents.manifest import CaseTensor, Manifest, SelfTestCase, Tensor, Tolerance, Variant
from agent.errors import AgentError
from agent.pipeline.tensors import DTYPES

_CASE = "selftest/000.json"
_TOLERANCE = Tolerance(absolute=1e-6)


def write(folder: Folder, model: Path, spec: Spec) -> Manifest:
    """Fill a folder with a model file and a made-up self-test; return its manifest."""
    file = folder.take(model, f"model{model.suffix if model.suffix.isascii() else ''}")
    variant = _described(folder.path / file, file, spec) or _unknown(file, model.suffix)
    manifest = Manifest(
        schema=1,
        name=spec.name or "",
        version=spec.version or "",
        inputs=variant.inputs,
        outputs=variant.outputs,
        variants=(variant,),
        files=folder.files(),
        limits=spec.limits,
        selftest=(_CASE,),
    )
    folder.write(_CASE, codec.encode(_case(manifest, variant)))
    return msgspec.structs.replace(manifest, files=folder.files())


def _described(path: Path, file: str, spec: Spec) -> Variant | None:
    try:
        variant = signature.variant_of(reading.read_model(path), file, None, spec)
    except AgentError:
        return None
    return msgspec.structs.replace(variant, tolerance=_TOLERANCE)


def _unknown(file: str, suffix: str) -> Variant:
    return Variant(
        name="unknown",
        file=file,
        format=suffix.lstrip(".") or "onnx",
        inputs=(Tensor("x", "FP32", (1, 4)),),
        outputs=(Tensor("y", "FP32", (1, 4)),),
        tolerance=_TOLERANCE,
    )


def _case(manifest: Manifest, variant: Variant) -> SelfTestCase:
    sample = random_of(manifest, variant, reading_of(manifest, variant), 1)[0]
    return SelfTestCase(1, sample.payloads, tuple(map(_zeros, variant.outputs)), variant.name)


def _zeros(tensor: Tensor) -> CaseTensor:
    shape = tuple(1 if size == -1 else size for size in tensor.shape)
    size = 4 if tensor.datatype == "BYTES" else DTYPES[tensor.datatype].itemsize
    return CaseTensor(tensor.name, tensor.datatype, shape, bytes(size * math.prod(shape)))
