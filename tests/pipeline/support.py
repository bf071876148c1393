"""Small manifests and chains for the tests of this room."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent.documents.manifest import (
    Limits,
    Manifest,
    PackFile,
    Pipeline,
    StatePair,
    Tensor,
    Tolerance,
    Variant,
    Window,
)
from agent.pipeline import assembly
from agent.pipeline.chain import Chain, Incoming, ProducedBy, compile_chain

PRODUCED_BY = ProducedBy("sha256:" + "1" * 64, "onnx", "CPUExecutionProvider", "vibration")


def make_manifest(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    file_inputs: Sequence[Tensor] | None = None,
    file_outputs: Sequence[Tensor] | None = None,
    window: Window | None = None,
    decode: Mapping[str, Any] | None = None,
    pre: Sequence[Mapping[str, Any]] = (),
    post: Sequence[Mapping[str, Any]] = (),
    encode: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    state: Sequence[StatePair] = (),
    max_sources: int = 64,
) -> Manifest:
    """Return a manifest of one variant. `outputs` are what the model gives, in real numbers; the
    manifest's own are those after `post`."""
    pipeline = Pipeline(
        decode=None if decode is None else dict(decode),
        window=window,
        pre=tuple(dict(step) for step in pre),
        post=tuple(dict(step) for step in post),
        encode=None if encode is None else dict(encode),
    )
    variant = Variant(
        "only",
        "model.onnx",
        "onnx",
        tuple(inputs if file_inputs is None else file_inputs),
        tuple(outputs if file_outputs is None else file_outputs),
        Tolerance(1e-4),
    )
    return Manifest(
        schema=1,
        name="tab",
        version="1.0.0",
        inputs=tuple(inputs),
        outputs=assembly.public_outputs(pipeline, tuple(outputs), tuple(labels)),
        variants=(variant,),
        files={"model.onnx": PackFile("sha256:" + "0" * 64, 1)},
        pipeline=pipeline,
        labels=tuple(labels),
        state=tuple(state),
        limits=Limits(max_sources=max_sources),
    )


def make_chain(
    manifest: Manifest, settings: Mapping[str, Any] | None = None, *, reply_to: bool = False
) -> Chain:
    """Compile the chain of a manifest's only variant."""
    return compile_chain(
        manifest,
        manifest.variants[0],
        settings,
        reply_to=reply_to,
        produced_by=PRODUCED_BY,
        id_prefix="boot",
    )


def v2_request(*tensors: Mapping[str, Any], **fields: Any) -> bytes:
    """Return a V2 request in JSON."""
    return json.dumps({**fields, "inputs": list(tensors)}).encode()


def incoming(payload: bytes | memoryview, **fields: Any) -> Incoming:
    """Return a message of source `a`."""
    return Incoming(**{"sequence": 1, "topic": "a", "payload": payload, **fields})
