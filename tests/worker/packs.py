"""Packs for tests, made from a model file and what is said of its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.documents.manifest import (
    Manifest,
    PackFile,
    SelfTestCase,
    Tensor,
    Tolerance,
    Variant,
)

TOLERANCE = Tolerance(absolute=1e-5, relative=1e-4)


def make_pack(
    folder: Path,
    model: bytes,
    kind: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    public_inputs: Sequence[Tensor] | None = None,
    cases: Sequence[SelfTestCase] = (),
    hidden_state: Any = "none",
    tolerance: Tolerance = TOLERANCE,
    **more: Any,
) -> Path:
    """Write a pack with one variant, called `cpu`, and return its folder.

    `inputs` and `outputs` are the file's; what a payload holds is `public_inputs` where it differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"model.{kind}": model}
    files |= {f"case-{n}.json": msgspec.json.encode(case) for n, case in enumerate(cases, 1)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    variant = Variant(
        name="cpu",
        file=f"model.{kind}",
        format=kind,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        tolerance=tolerance,
        hidden_state=hidden_state,
    )
    public = inputs if public_inputs is None else public_inputs
    fields: dict[str, Any] = {"inputs": tuple(public), "outputs": tuple(outputs), **more}
    manifest = Manifest(
        schema=1,
        name="test",
        version="1.0.0",
        variants=(variant,),
        files={name: _pack_file(data) for name, data in files.items()},
        selftest=tuple(f"case-{n}.json" for n in range(1, len(cases) + 1)),
        **fields,
    )
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return folder


def v2(inputs: dict[str, tuple[str, Sequence[int], Sequence[Any]]], id: str | None = "m1") -> bytes:
    """Return a V2 JSON request: name → datatype, shape, flat data."""
    body: dict[str, Any] = {} if id is None else {"id": id}
    body["inputs"] = [
        {"name": name, "datatype": datatype, "shape": list(shape), "data": list(data)}
        for name, (datatype, shape, data) in inputs.items()
    ]
    return msgspec.json.encode(body)


def _pack_file(data: bytes) -> PackFile:
    return PackFile(digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))
