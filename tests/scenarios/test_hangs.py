"""A worker that hangs is told from one that works slowly by what its process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.author.pack import Packed, pack
from agent.author.spec import Spec, TensorSpec
from agent.documents.manifest import Limits
from tests.scenarios.conftest import Packs
from tests.scenarios.device import until, v2_request
from tests.scenarios.hanging_daemon import ASLEEP, PROGRAM, SPINNING
from tests.scenarios.models import Affine, write_affine
from tests.scenarios.running import Running, documents, running, slot

# Far beyond what any of these tests waits for: nothing here is seen by the deadline, but what says
# so.
DEADLINE_S = 100.0
# Of a run of the model in `packed`.
USUAL_MS = 5.0
# As far as a busy machine allows; `python -m tests.scenarios.recovery` measures it.
SEEN_WITHIN_S = 5.0


@pytest.fixture(scope="module")
def packed(packs: Packs) -> Packed:
    """A pack whose runs take as many milliseconds as the first number of the row says."""
    return _packed(packs, "honest")


def _packed(packs: Packs, name: str, **limits: Any) -> Packed:
    model = packs.folder / f"{name}.onnx"
    write_affine(model, Affine(1, 0))
    inputs = (TensorSpec("x", low=USUAL_MS, high=USUAL_MS + 0.1),)
    spec = Spec(name=name, version="1", inputs=inputs, limits=Limits(**limits))
    return pack(model, packs.folder / name, spec=spec)


@contextmanager
def serving(
    folder: Path, packs: Packs, packed: Packed, deadline_s: float = DEADLINE_S, **more: Any
) -> Iterator[Running]:
    limits = f"worker_deadline_s = {deadline_s}"
    with running(folder, packs, limits=limits, program=(str(PROGRAM),), **more) as here:
        here.user.subscribe(here.topic("dead-letter/#"))
        here.serve(vib=slot(packed))
        assert here.predict("warm", row=row(1.0))
        yield here


@pytest.fixture(scope="module")
def here(
    tmp_path_factory: pytest.TempPathFactory, packs: Packs, packed: Packed
) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("hangs"), packs, packed) as started:
        yield started


def row(first: float) -> list[float]:
    return [first, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("name", "how", "reason"),
    [
        ("asleep", ASLEEP, "hung: asleep for "),
        ("spinning", SPINNING, "of processor time spent on one message"),
    ],
)
def test_a_message_that_hangs_its_worker_is_tried_twice_then_set_aside_long_before_the_deadline(
    name: str, how: float, reason: str, here: Running
) -> None:
    letters, answers = here.topic("dead-letter/vib"), f"out/{name}"
    aside, before = len(here.user.on(letters)), here.device.slot("vib")
    started = time.monotonic()
    for number in range(5):
        first = how if number == 2 else 1.0
        here.user.client.publish(f"in/{name}", v2_request(row(first), "x", str(number)), qos=1)
    here.user.wait_for(answers, 4)
    assert time.monotonic() - started < 2 * SEEN_WITHIN_S
    assert [answer["id"] for answer in here.answers(answers)] == ["0", "1", "3", "4"]
    (letter,) = documents(here.user.wait_for(letters, aside + 1)[aside:])
    assert letter["code"] == "worker_timed_out"
    assert reason in letter["reason"]
    after = here.device.slot("vib")
    assert after["worker_restarts"] == before["worker_restarts"] + 2
    assert after["dead_letters"] == before["dead_letters"] + 1


@pytest.mark.parametrize("sign", [signal.SIGUSR1, signal.SIGUSR2], ids=["asleep", "spinning"])
def test_a_worker_that_hangs_once_costs_no_message(sign: signal.Signals, here: Running) -> None:
    before = here.device.slot("vib")
    os.kill(before["worker_pid"], sign)
    answers = f"out/{sign.name}"
    for number in range(20):
        here.user.client.publish(f"in/{sign.name}", v2_request(row(1.0), "x", str(number)), qos=1)
    here.user.wait_for(answers, 20, within_s=SEEN_WITHIN_S)
    assert [a["id"] for a in here.answers(answers)] == [str(n) for n in range(20)]
    after = here.device.slot("vib")
    assert after["worker_restarts"] == before["worker_restarts"] + 1
    assert after["dead_letters"] == before["dead_letters"]


def test_a_run_of_five_times_its_p95_is_waited_for(here: Running) -> None:
    before = here.device.slot("vib")
    for number in range(10):
        assert here.predict(f"slow {number}", "in/slow", "out/slow", row(5 * USUAL_MS))
    assert here.device.slot("vib")["worker_pid"] == before["worker_pid"]


@contextmanager
def burners(count: int) -> Iterator[None]:
    """Processes that leave others hardly any processor time."""
    started = [
        subprocess.Popen([sys.executable, "-I", "-c", "while True: pass"]) for _ in range(count)
    ]
    try:
        yield
    finally:
        for burner in started:
            burner.kill()
            burner.wait()


def test_a_starved_worker_is_waited_for(here: Running) -> None:
    before = here.device.slot("vib")
    os.setpriority(os.PRIO_PROCESS, before["worker_pid"], 19)
    # Two for each processor: the worker gets a hundredth of one, and so waits for most of the time.
    with burners(2 * (os.cpu_count() or 1)):
        started = time.monotonic()
        assert here.predict("starved", "in/starved", "out/starved", row(USUAL_MS))
        while time.monotonic() - started < 0.3:
            assert here.predict(f"more {time.monotonic()}", "in/starved", "out/starved", row(2.0))
    assert here.device.slot("vib")["worker_pid"] == before["worker_pid"]


def test_a_stopped_worker_is_waited_for_until_the_deadline(
    tmp_path: Path, packs: Packs, packed: Packed
) -> None:
    with serving(tmp_path, packs, packed, deadline_s=1.0) as here:
        letters = here.topic("dead-letter/vib")
        pid = here.device.slot("vib")["worker_pid"]
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        assert here.predict("after all", row=row(1.0))
        assert time.monotonic() - started >= 1.0
        until(lambda: "no answer within 1 s" in here.device.log, "the reason", log=here.device)
        assert not here.user.on(letters)


def test_an_author_s_deadline_is_what_a_message_may_compute(tmp_path: Path, packs: Packs) -> None:
    patient = _packed(packs, "patient", deadline_ms=50_000)
    with serving(tmp_path, packs, patient) as here:
        before = here.device.slot("vib")
        # Fifty times its usual.
        assert here.predict("long", row=row(50 * USUAL_MS))
        assert here.device.slot("vib")["worker_pid"] == before["worker_pid"]
