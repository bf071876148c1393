"""What a device makes of the candidates before and after they are measured."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.daemon.choosing import _within_budget, key_of
from agent.documents.choice import Way
from agent.documents.device import Cpu, Device, RuntimeFacts, System
from tests.control.packs import pack, variant

ONE, TWO, FOUR = (Way("fp32", "onnx", threads=threads) for threads in (1, 2, 4))


def test_ways_that_take_more_threads_than_other_slots_leave_are_left_out_with_the_reason() -> None:
    kept, out = _within_budget([FOUR, TWO, ONE], 3)
    assert kept == [TWO, ONE]
    assert out == ("fp32 on onnx, 4 threads: other slots leave 3",)


def test_one_thread_is_always_had_and_a_pin_gets_what_it_asks_for() -> None:
    assert _within_budget([TWO, ONE], -2)[0] == [ONE]
    assert _within_budget([FOUR], 1) == ([FOUR], ())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([ONE, TWO, FOUR]), min_size=1), st.integers(-8, 8))
def test_something_is_always_left(ways: list[Way], threads: int) -> None:
    kept, _ = _within_budget(ways, threads)
    assert kept
    assert all(way in ways for way in kept)


def device(version: str = "1.32", kernel: str = "6.12.1", cpus: float = 4.0) -> Device:
    return Device(
        schema=1,
        system=System(architecture="aarch64", kernel=kernel),
        cpu=Cpu(usable=cpus),
        runtimes=(RuntimeFacts("onnx", usable=True, version=version),),
    )


def test_a_choice_rests_on_model_runtime_kernel_and_processors_and_on_no_more() -> None:
    manifest = pack(variant("fp32"))
    key = key_of(manifest, ONE, device())
    assert key == key_of(manifest, ONE, device(kernel="6.12.9"))
    others = {
        key_of(manifest, TWO, device()),
        key_of(manifest, ONE, device(version="1.33")),
        key_of(manifest, ONE, device(kernel="6.13.0")),
        key_of(manifest, ONE, device(cpus=2.0)),
    }
    assert len(others) == 4
    assert key not in others
