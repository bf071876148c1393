"""Every real model loads and answers in a confined worker."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.documents.manifest import Limits, Pipeline, Tensor
from agent.errors import ModelRejected
from agent.pipeline.tensors import DTYPES
from agent.runtimes import registry
from agent.runtimes.api import Wanted
from agent.wire import frames
from tests.conftest import SHARED_MODELS
from tests.worker.conftest import Start
from tests.worker.packs import make_pack, v2

INDEX = SHARED_MODELS / "index.json"
ENTRIES = msgspec.json.decode(INDEX.read_bytes())["models"] if INDEX.is_file() else []
FREE = {"sequence": 576}


def filled(tensor: Tensor, file: dict[str, Any]) -> tuple[str, list[int], list[Any]]:
    """Return a V2 tensor for an input: ones, free dimensions 1 or as the model needs them."""
    names = {given["name"]: given["shape"] for given in file["inputs"]}
    named = names.get(tensor.name, tensor.shape)
    shape = [
        FREE.get(str(name), 1) if size == -1 else size
        for size, name in zip(tensor.shape, named, strict=True)
    ]
    value = 16000 if tensor.name == "sr" else 1
    return (
        tensor.datatype,
        shape,
        np.full(math.prod(shape), value, DTYPES[tensor.datatype]).tolist(),
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_a_real_model_answers(
    entry: dict[str, Any], shared_models: Path, tmp_path: Path, start: Start
) -> None:
    path = shared_models / entry["file"]
    kind = path.suffix[1:]
    if entry["name"].endswith("_edgetpu"):
        x = Tensor("input", "UINT8", (1, 128, 128, 3))
        y = Tensor("MobilenetV1/Predictions/Reshape_1", "UINT8", (1, 1001))
        pack = make_pack(tmp_path, path.read_bytes(), kind, [x], [y])
        with pytest.raises(ModelRejected, match="the variant needs an Edge TPU"):
            start(pack, kind).load()
        return
    session = registry.find(kind).load(path, Wanted())
    pack = make_pack(
        tmp_path,
        path.read_bytes(),
        kind,
        session.inputs,
        session.outputs,
        pipeline=Pipeline(decode={"codec": "v2_json"}),
        limits=Limits(max_sources=2),
    )
    worker = start(pack, kind)
    ready = worker.load()
    # Without a view of the processor LiteRT would lose its fast kernels and not say so.
    assert ready.placement.got == session.placement.got
    assert ready.placement.operators == session.placement.operators
    assert ready.isolation.layers["syscalls"] == "allow-list"
    request = v2({tensor.name: filled(tensor, entry) for tensor in session.inputs})
    answer = worker.ask("t", request)
    assert answer.outcome == frames.PREDICTION, answer.payload
    outputs = msgspec.json.decode(answer.payload)["outputs"]
    assert [tensor["name"] for tensor in outputs] == [t.name for t in session.outputs]
