"""Broken and hostile packs on a device that serves: each is refused with its reason, the old model
serves on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.author.pack import Packed, pack
from tests.scenarios.conftest import Packs
from tests.scenarios.device import Device, v2_request
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
    "future_opset.onnx": Refusal(REJECTED, "opset 999"),
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
    here.serve(vib=slot(good))
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


# Packs that prove themselves well, and then die.


def kill_twice(here: Running, count: int) -> None:
    """Send messages that each cost two workers."""
    for number in range(count):
        here.user.publish("in/a", v2_request([0.0, 1e9, 0.0, 0.0], "x", f"deadly {number}"))


def test_a_pack_that_keeps_dying_on_probation_is_rolled_back(here: Running, packs: Packs) -> None:
    good, deadly = packs.affine(1), packs.treacherous(5)
    here.user.subscribe(here.topic("events"))
    here.serve(vib=slot(good))
    deployment = here.deploy(vib=slot(deadly, rollout={"probation_s": 600}))
    here.device.wait_for("vib", "probation", deadly.pack)
    assert here.predict("on probation")["outputs"][0]["data"][0] == 5.0
    kill_twice(here, 2)
    found = here.device.wait_for("vib", "rolled_back", good.pack)
    assert found["wanted"] == deadly.pack
    assert found["error"]["code"] == "memory_limit"
    assert "keeps dying" in found["error"]["message"]
    assert here.predict("after the way back")["parameters"]["pack"] == good.pack
    told = here.event("rollout_rolled_back", slot="vib", pack=deadly.pack)
    assert (told["code"], told["deployment"]) == ("memory_limit", deployment)


def test_a_pack_that_keeps_dying_with_nothing_to_go_back_to_fails_but_serves_what_it_can(
    here: Running, packs: Packs
) -> None:
    deadly = packs.treacherous(6)
    here.serve()
    here.deploy(new=slot(deadly, rollout={"probation_s": 600}))
    here.device.wait_for("new", "probation", deadly.pack)
    kill_twice(here, 2)
    found = here.settle("new", deadly.pack)
    assert found["error"]["code"] == "memory_limit"
    assert here.predict("all the same")["outputs"][0]["data"][0] == 6.0


def test_a_runtime_that_dies_on_import_is_reported_and_another_deployment_tries_again(
    here: Running, packs: Packs, tmp_path: Path
) -> None:
    one = packs.affine(1)
    with running(tmp_path, packs, limits=LIMITS) as fresh:
        with killed_at_birth(fresh.device):
            fresh.deploy(vib=slot(one))
            error = fresh.settle("vib", one.pack)["error"]
        assert error["code"] == "runtime_unavailable"
        assert "the runtime onnx cannot be imported here (signal 4, SIGILL)" in error["message"]
        assert "instructions that this processor lacks" in error["hint"]
        fresh.serve(vib=slot(one))
        assert fresh.predict("with a healthy runtime")["parameters"]["pack"] == one.pack


@contextmanager
def killed_at_birth(device: Device) -> Iterator[None]:
    """Send SIGILL, as a wheel for another processor brings it, to each template that starts."""
    assert device.process is not None
    parent, over = device.process.pid, threading.Event()
    children = Path(f"/proc/{parent}/task/{parent}/children")

    def watch() -> None:
        while not over.wait(0.001):
            for pid in children.read_text().split():
                with suppress(OSError):
                    if b"agent.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(int(pid), signal.SIGILL)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
