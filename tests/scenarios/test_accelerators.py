"""An Edge TPU, in the shape of a double of its library: used, refused, shared, lost and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.author.pack import Packed
from tests.delegate import double as doubles
from tests.delegate.double import Double
from tests.scenarios.accelerators import LOSSES, Stream, placement, runs_on, same, with_double
from tests.scenarios.conftest import Packs
from tests.scenarios.running import Running, slot

SILENCE_S = 1.0
# The second time it had been away and come back before.
ROUNDS = 2


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Double:
    return doubles.build(tmp_path_factory.mktemp("double"))


@pytest.fixture(scope="module")
def packed(packs: Packs) -> Packed:
    return same(packs, "same")


@pytest.fixture
def on_tpu(tmp_path: Path, packs: Packs, double: Double) -> Iterator[Running]:
    with with_double(tmp_path, packs, double) as here:
        yield here


def test_it_is_used_and_the_report_says_so(on_tpu: Running, packed: Packed) -> None:
    on_tpu.serve(a=slot(packed))
    told = runs_on(on_tpu, "a", "edgetpu")
    assert told == {"wanted": "edgetpu", "got": "edgetpu", "operators": 1.0, "time": 1.0}
    assert on_tpu.device.slot("a")["runtime"] == "edgetpu"
    told = on_tpu.device.slot("a")
    assert told["isolation"]["policy"] == "strict"
    owner = told["owner"]
    assert owner["policy"] == "edgetpu-usb"
    assert "net" in owner["missing"]
    assert owner["layers"]["syscalls"] == "deny-list"
    assert told["owner_pid"] not in (0, told["worker_pid"])
    assert 10 << 20 < told["owner_memory_bytes"] < 1 << 30
    answer = on_tpu.predict("m1", "in/a")
    assert answer["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]


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
