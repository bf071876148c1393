"""Broken and hostile model files: each is refused with its reason, and only its worker may die."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from agent.documents.manifest import Datatype, Tensor
from agent.errors import (
    AgentError,
    MemoryLimit,
    ModelRejected,
    PackError,
    WorkerExited,
    WorkerTimedOut,
)
from agent.wire import frames
from tests.worker.conftest import Start
from tests.worker.packs import make_pack, v2


class Hostile(NamedTuple):
    file: str
    error: type[AgentError]
    says: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def tensor(name: str, *shape: int, datatype: Datatype = "FP32") -> Tensor:
    return Tensor(name=name, datatype=datatype, shape=shape)


ONNX = (tensor("x", 1, 4),), (tensor("y", 1, 4),)
SINE = (
    (tensor("serving_default_dense_input:0", -1, 1),),
    (tensor("StatefulPartitionedCall:0", -1, 1),),
)
WAND = (tensor("conv2d_input", 1, 128, 3, 1),), (tensor("Identity", 1, 4),)
PERSON = (
    (tensor("input", 1, 96, 96, 1, datatype="INT8"),),
    (tensor("output", 1, 2, datatype="INT8"),),
)

HOSTILE = (
    Hostile("zero_length.tflite", ModelRejected, "the model file is empty", *SINE),
    Hostile("truncated.tflite", ModelRejected, "damaged or cut short", *WAND),
    Hostile("wrong_magic.tflite", ModelRejected, "is not a .* model", *SINE),
    Hostile("root_offset_outside.tflite", ModelRejected, "outside the file", *SINE),
    Hostile("memory_4gb.tflite", MemoryLimit, "more memory than the limit of 256 MB", *SINE),
    Hostile("external_data_escape.onnx", ModelRejected, "/etc/passwd.*outside its pack", *ONNX),
    Hostile("endless_loop.onnx", WorkerTimedOut, "no answer within 2 s", *ONNX),
    Hostile(
        "memory_12gb_at_run.onnx",
        MemoryLimit,
        "more memory than the limit of 256 MB",
        ONNX[0],
        (tensor("y"),),
    ),
    Hostile("zip_archive.onnx", ModelRejected, "is a ZIP archive", *ONNX),
    Hostile("future_opset.onnx", ModelRejected, "this runtime does not know opset 999", *ONNX),
    Hostile(
        "person_detect_refused_by_litert.tflite", ModelRejected, "refuses .*quantized", *PERSON
    ),
)


def pack_of(folder: Path, source: Path, hostile: Hostile) -> Path:
    kind = hostile.file.rpartition(".")[2]
    data = (source / "invalid" / hostile.file).read_bytes()
    return make_pack(folder, data, kind, hostile.inputs, hostile.outputs)


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.file)
def test_a_hostile_file_is_refused_with_its_reason(
    hostile: Hostile, shared_models: Path, tmp_path: Path, start: Start
) -> None:
    pack = pack_of(tmp_path, shared_models, hostile)
    deadline_s = 2.0 if hostile.error is WorkerTimedOut else 20.0
    worker = start(pack, pack_kind(hostile), deadline_s=deadline_s, memory_mb=256)
    with pytest.raises(hostile.error, match=hostile.says) as caught:
        worker.probe()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.file)
def test_a_hostile_file_that_was_never_probed_is_refused_too(
    hostile: Hostile, shared_models: Path, tmp_path: Path, start: Start
) -> None:
    pack = pack_of(tmp_path, shared_models, hostile)
    # The thorough look is part of the probe; without it some versions of LiteRT crash.
    with pytest.raises((hostile.error, WorkerExited, PackError)):
        start(pack, pack_kind(hostile), deadline_s=2.0, memory_mb=256).load()


@pytest.mark.parametrize(
    "file", ["crashes_runtime.tflite", "crashes_when_loaded_from_bytes.tflite"]
)
def test_a_file_that_crashes_the_runtime_takes_only_its_worker_along(
    file: str, shared_models: Path, tmp_path: Path, start: Start
) -> None:
    hostile = Hostile(file, WorkerExited, "", *SINE)
    worker = start(pack_of(tmp_path, shared_models, hostile), "tflite", memory_mb=256)
    # The second file is an error or a crash, as the heap will have it.
    with pytest.raises((WorkerExited, ModelRejected)) as caught:
        worker.load()
    if isinstance(caught.value, WorkerExited):
        assert "the model crashed the runtime (signal 11, SIGSEGV)" in str(caught.value)


def test_a_nan_is_a_bad_output_and_the_stream_goes_on(
    shared_models: Path, tmp_path: Path, start: Start
) -> None:
    hostile = Hostile("nan_output.onnx", ModelRejected, "", *ONNX)
    worker = start(pack_of(tmp_path, shared_models, hostile), "onnx")
    worker.load()
    bad = worker.ask("t", v2({"x": ("FP32", [1, 4], [-1.0] * 4)}, id="seven"))
    assert bad.flags == frames.REJECTED | frames.BAD_OUTPUT | frames.HAS_ID
    assert bad.result.id == b"seven"
    assert b"NaN" in bad.payload
    good = worker.ask("t", v2({"x": ("FP32", [1, 4], [1.0] * 4)}))
    assert good.outcome == frames.PREDICTION


def pack_kind(hostile: Hostile) -> str:
    return hostile.file.rpartition(".")[2]
