"""Broken and hostile packs on a device that serves: each is refused with its reason, the old model
serves on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.author.pack import Packed, pack
from tests.scenarios.conftest import Packs
from tests.scenarios.running import Running, running, seconds, slot

PROBE_DEADLINE_S = 3.0
MEMORY_MB = 256
LIMITS = f"""
worker_memory_mb = {MEMORY_MB}
probe_deadline_s = {PROBE_DEADLINE_S}
worker_deadline_s = 1.0
"""
# Starting the fetcher and a template, on a machine that does other things too.
OVERHEAD_S = 12.0


class Refusal(NamedTuple):
    """What a device must say of a file: one of the codes, and some words."""

    codes: tuple[str, ...]
    words: str


REJECTED = ("model_rejected",)
# A file made to kill the runtime does so, or is refused by it, as its memory happens to lie.
CRASHES = ("model_rejected", "worker_exited")
REFUSALS = {
    "zero_length.tflite": Refusal(REJECTED, "empty"),
    "truncated.tflite": Refusal(REJECTED, "damaged or cut short"),
    "wrong_magic.tflite": Refusal(REJECTED, "is not a"),
    "root_offset_outside.tflite": Refusal(REJECTED, "outside the file"),
    "crashes_runtime.tflite": Refusal(CRASHES, ""),
    "crashes_when_loaded_from_bytes.tflite": Refusal(CRASHES, ""),
    "memory_4gb.tflite": Refusal(("memory_limit",), f"the limit of {MEMORY_MB} MB"),
    "external_data_escape.onnx": Refusal(REJECTED, "outside its pack"),
    "endless_loop.onnx": Refusal(("worker_timed_out",), f"within {PROBE_DEADLINE_S:g} s"),
    "memory_12gb_at_run.onnx": Refusal(("memory_limit",), f"the limit of {MEMORY_MB} MB"),
    "zip_archive.onnx": Refusal(REJECTED, "ZIP archive"),
    "nan_output.onnx": Refusal(("self_test_failed", "bad_output"), ""),
    "future_opset.onnx": Refusal(REJECTED, "does not know opset 999"),
    "person_detect_refused_by_litert.tflite": Refusal(REJECTED, "refuses"),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, packs: Packs) -> Iterator[Running]:
    """A device whose slot serves a good pack."""
    folder = tmp_path_factory.mktemp("bad-packs")
    with running(folder, packs, limits=LIMITS) as started:
        started.serve(vib=slot(packs.affine(1)))
        yield started


def forced(model: Path, out: Path) -> Packed:
    return pack(model, out, unchecked=True)


@pytest.mark.parametrize("file", REFUSALS)
def test_a_hostile_file_is_refused_with_its_reason_and_the_old_model_serves(
    file: str, here: Running, packs: Packs, shared_models: Path
) -> None:
    good = packs.affine(1)
    bad = forced(shared_models / "invalid" / file, packs.folder / f"forced-{file}")
    before = here.device.slot("vib")
    took_s = seconds(lambda: refuse(here, bad))
    found = here.device.slot("vib")
    error = found["error"]
    assert error["code"] in REFUSALS[file].codes, error
    assert REFUSALS[file].words in error["message"]
    assert "Traceback" not in str(error)
    if error["code"] == "worker_exited":
        assert "the model crashed the runtime (signal 11, SIGSEGV)" in error["message"]
    # The old model never stopped: the same process, and it answers.
    assert (found["pack"], found["worker_pid"]) == (good.pack, before["worker_pid"])
    assert here.predict(f"after {file}")["parameters"]["pack"] == good.pack
    assert took_s < PROBE_DEADLINE_S + OVERHEAD_S


def refuse(here: Running, bad: Packed) -> None:
    here.deploy(vib=slot(bad))
    here.settle("vib", bad.pack)
