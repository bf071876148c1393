"""An Edge TPU, in the shape of a double of its library: used, refused, shared, lost and back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from agent.author.pack import Packed, pack
from agent.author.spec import Spec, TensorSpec, VariantSpec
from tests.delegate import double as doubles
from tests.delegate import models
from tests.delegate.double import Double
from tests.scenarios.conftest import Packs
from tests.scenarios.device import until, v2_request
from tests.scenarios.running import Running, running, slot

PROGRAM = Path(__file__).parent.parent / "delegate" / "plugged_in.py"
RETRY_S = 0.4
# A message every 10 ms.
EVERY_S = 0.01
SILENCE_S = 1.0
# The second time it had been away and come back before.
ROUNDS = 2


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Double:
    return doubles.build(tmp_path_factory.mktemp("double"))


def same(packs: Packs, name: str) -> Packed:
    """A pack with two variants of y = x: compiled for the Edge TPU, and plain."""
    plain, compiled = packs.folder / f"{name}.tflite", packs.folder / f"{name}_edgetpu.tflite"
    plain.write_bytes(models.slow())
    compiled.write_bytes(models.compiled())
    spec = Spec(
        name=name,
        version="1.0",
        inputs=(TensorSpec("x", low=0.0, high=1.0),),
        variants=(VariantSpec(str(compiled)),),
    )
    return pack(plain, packs.folder / name, spec=spec)


@pytest.fixture(scope="module")
def packed(packs: Packs) -> Packed:
    return same(packs, "same")


@pytest.fixture
def on_tpu(tmp_path: Path, packs: Packs, double: Double) -> Iterator[Running]:
    double.plug()
    with running(
        tmp_path,
        packs,
        limits=f"accelerator_retry_s = {RETRY_S}",
        environment={"LD_LIBRARY_PATH": str(double.folder), "STICK_AWAY": str(tmp_path / "away")},
        program=(str(PROGRAM),),
    ) as here:
        yield here
        double.plug()


def placement(here: Running, name: str) -> dict[str, Any]:
    found: dict[str, Any] = here.device.slot(name).get("placement", {})
    return found


def runs_on(here: Running, name: str, got: str) -> dict[str, Any]:
    """Wait until a slot is run on this, and return its placement."""

    def there() -> dict[str, Any] | None:
        found = placement(here, name)
        return found if found.get("got") == got else None

    found: dict[str, Any] = until(there, f"{name} runs on {got}", log=here.device)
    return found


def test_it_is_used_and_the_report_says_so(on_tpu: Running, packed: Packed) -> None:
    on_tpu.serve(a=slot(packed))
    told = runs_on(on_tpu, "a", "edgetpu")
    assert told == {"wanted": "edgetpu", "got": "edgetpu", "operators": 1.0, "time": 1.0}
    assert on_tpu.device.slot("a")["runtime"] == "edgetpu"
    answer = on_tpu.predict("m1", "in/a")
    assert answer["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]


class Stream:
    """A sensor that sends a message every 10 ms and a consumer that looks at every answer."""

    def __init__(self, here: Running, name: str) -> None:
        self._here = here
        self._name = name
        self._stop = Event()
        self._thread = Thread(target=self._send)
        self.sent = 0

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        started = time.monotonic()
        while not self._stop.wait(max(0.0, started + self.sent * EVERY_S - time.monotonic())):
            row = [float(self.sent), 1.0, 2.0, 3.0]
            self._here.user.client.publish(
                f"in/{self._name}", v2_request(row, "x", f"{self._name}{self.sent}"), 1
            )
            self.sent += 1

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        self._here.user.wait_for(f"out/{self._name}", len(self._answers()) + count)

    def finish(self) -> None:
        """Stop sending, and hold the answers against what was sent: each once, in order, right."""
        self._stop.set()
        self._thread.join()
        self._here.user.wait_for(f"out/{self._name}", self.sent)
        answers = [json.loads(message.payload) for message in self._answers()]
        assert [a["id"] for a in answers] == [f"{self._name}{n}" for n in range(self.sent)]
        for number, answer in enumerate(answers):
            assert answer["outputs"][0]["data"] == [float(number), 1.0, 2.0, 3.0], answer

    def longest_silence_s(self) -> float:
        """Between two answers."""
        times: list[float] = [message.timestamp for message in self._answers()]
        return max(later - before for before, later in pairwise(times))

    def providers(self) -> list[str]:
        """What computed the answers, each change once."""
        told = [json.loads(m.payload)["parameters"]["provider"] for m in self._answers()]
        return [one for one, _ in groupby(told)]

    def _answers(self) -> list[Any]:
        return self._here.user.on(f"out/{self._name}")


LOSSES: dict[str, Callable[[Double], None]] = {
    "unplugged": lambda double: double.unplug(),
    "hung": lambda double: double.set("invoke hangs"),
    "crashed": lambda double: double.set("invoke crashes"),
}


@pytest.mark.parametrize("how", LOSSES)
def test_one_that_is_lost_in_mid_stream_costs_no_message_and_comes_back(
    on_tpu: Running, packed: Packed, double: Double, how: str
) -> None:
    on_tpu.serve(a=slot(packed))
    runs_on(on_tpu, "a", "edgetpu")
    with Stream(on_tpu, "a") as stream:
        for _ in range(ROUNDS):
            stream.more(50)
            LOSSES[how](double)
            told = runs_on(on_tpu, "a", "XNNPACK")
            assert told["wanted"] == "edgetpu"
            assert "failed and is tried again" in told["why"]
            double.plug()
            runs_on(on_tpu, "a", "edgetpu")
        stream.more(50)
        stream.finish()
    assert stream.providers() == ["edgetpu", *["XNNPACK", "edgetpu"] * ROUNDS]
    assert stream.longest_silence_s() < SILENCE_S


REFUSALS: dict[str, Callable[[Double], None]] = {
    "without a word": lambda double: double.set("silent null"),
    "with a message": lambda double: double.set("null with message"),
    "by a crash": lambda double: double.set("create crashes"),
}
WORDS = {
    "without a word": "cannot be opened: none is plugged in",
    "with a message": "double: no such device",
    "by a crash": "the process that holds the device has ended",
}


@pytest.mark.parametrize("how", REFUSALS)
def test_one_that_refuses_leaves_the_pack_to_the_cpu_and_the_report_says_why(
    on_tpu: Running, packed: Packed, double: Double, how: str
) -> None:
    REFUSALS[how](double)
    on_tpu.serve(a=slot(packed))
    assert on_tpu.predict("m1", "in/a")["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]
    told = placement(on_tpu, "a")
    assert (told["wanted"], told["got"]) == ("edgetpu", "XNNPACK")
    assert WORDS[how] in told["why"]
    assert WORDS[how] in on_tpu.device.log


def test_one_that_refused_is_tried_again_and_takes_over_without_a_lost_message(
    on_tpu: Running, packed: Packed, double: Double
) -> None:
    double.set("silent null")
    on_tpu.serve(a=slot(packed))
    assert "is out and is tried again: " in runs_on(on_tpu, "a", "XNNPACK")["why"]
    with Stream(on_tpu, "a") as stream:
        stream.more(50)
        double.plug()
        runs_on(on_tpu, "a", "edgetpu")
        stream.more(50)
        stream.finish()
    assert stream.providers() == ["XNNPACK", "edgetpu"]
    assert stream.longest_silence_s() < SILENCE_S


def test_one_that_is_plugged_in_later_is_found_and_gets_what_was_not_fetched_for_it(
    on_tpu: Running, packed: Packed, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    away.touch()
    on_tpu.serve(a=slot(packed))
    assert placement(on_tpu, "a") == {
        "wanted": "XNNPACK",
        "got": "XNNPACK",
        "operators": 1.0,
        "time": 1.0,
    }
    with Stream(on_tpu, "a") as stream:
        stream.more(50)
        away.unlink()
        runs_on(on_tpu, "a", "edgetpu")
        stream.more(50)
        stream.finish()
    assert stream.providers() == ["XNNPACK", "edgetpu"]


def test_a_demand_for_it_is_refused_where_it_is_not_had(
    on_tpu: Running, packed: Packed, double: Double
) -> None:
    double.unplug()
    on_tpu.deploy(a=slot(packed, pin={"runtime": "edgetpu"}))
    failed = on_tpu.settle("a", packed.pack)
    assert failed["error"]["code"] == "accelerator_failed"
    assert "none is plugged in" in failed["error"]["message"]


def test_a_new_pack_is_proven_beside_the_one_that_has_the_device(
    on_tpu: Running, packed: Packed, packs: Packs
) -> None:
    other = same(packs, "other")
    on_tpu.serve(a=slot(packed))
    runs_on(on_tpu, "a", "edgetpu")
    with Stream(on_tpu, "a") as stream:
        stream.more(30)
        on_tpu.serve(a=slot(other))
        runs_on(on_tpu, "a", "edgetpu")
        stream.more(30)
        stream.finish()
    assert stream.providers() == ["edgetpu"]


def test_two_slots_share_one_and_both_lose_it_and_both_get_it_back(
    on_tpu: Running, packed: Packed, double: Double
) -> None:
    on_tpu.serve(a=slot(packed, "in/a", "out/a"), b=slot(packed, "in/b", "out/b"))
    runs_on(on_tpu, "a", "edgetpu")
    runs_on(on_tpu, "b", "edgetpu")
    on_tpu.user.subscribe(on_tpu.topic("events"))
    with Stream(on_tpu, "a") as one, Stream(on_tpu, "b") as other:
        one.more(50)
        double.unplug()
        runs_on(on_tpu, "a", "XNNPACK")
        runs_on(on_tpu, "b", "XNNPACK")
        double.plug()
        runs_on(on_tpu, "a", "edgetpu")
        runs_on(on_tpu, "b", "edgetpu")
        one.more(50)
        other.more(50)
        one.finish()
        other.finish()
    for name in ("a", "b"):
        on_tpu.event("way_failed", slot=name, code="accelerator_failed")
        on_tpu.event("way_restored", slot=name)
    for stream in (one, other):
        assert stream.providers() == ["edgetpu", "XNNPACK", "edgetpu"]
        assert stream.longest_silence_s() < SILENCE_S
