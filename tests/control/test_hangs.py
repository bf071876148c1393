"""When a worker hangs, told from looks at its process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.control.hangs import (
    ASLEEP_LOOKS,
    ASLEEP_S,
    CPU_LEAST_S,
    CPU_TIMES,
    FIRST_LOOK_S,
    LOOK_EVERY_MOST_S,
    LOOK_EVERY_S,
    Look,
    Patience,
    Watch,
    patience,
    watch,
    why_hung,
)
from agent.documents.choice import Tried, Way
from agent.documents.manifest import (
    Limits,
    Manifest,
    Needs,
    PackFile,
    Pipeline,
    StatePair,
    Tensor,
    Tolerance,
    Variant,
)
from agent.documents.report import Placement

BOTH = Patience(judges_sleep=True, cpu_s=0.1, threads=2)


def seen(looks: Sequence[Look], patience: Patience = BOTH) -> tuple[str, float]:
    """Return why it is taken for hung and after how long, of these looks."""
    watched: Watch | None = None
    for look in looks:
        watched = watch(look) if watched is None else watched.after(look, patience)
        why = why_hung(watched, patience)
        if why:
            return why, look.at
    return "", 0.0


def every(step_s: float, count: int, cpu_s: float, asleep: bool) -> list[Look]:
    """Looks at a worker that uses so much processor time from one to the next."""
    return [Look(number * step_s, number * cpu_s, asleep) for number in range(count)]


def test_a_worker_that_only_sleeps_hangs() -> None:
    why, after_s = seen(every(LOOK_EVERY_S, 20, 0.0, True))
    assert why == "hung: asleep for 28 ms with a message in hand"
    assert ASLEEP_S <= after_s < ASLEEP_S + 2 * LOOK_EVERY_S
    assert FIRST_LOOK_S + after_s < 0.05


def test_a_worker_whose_threads_wait_for_a_disk_or_a_processor_does_not_hang() -> None:
    assert seen(every(LOOK_EVERY_S, 1000, 0.0, False)) == ("", 0.0)


def test_a_worker_that_wakes_up_now_and_then_does_not_sleep() -> None:
    assert seen(every(LOOK_EVERY_S, 1000, 1e-9, True)) == ("", 0.0)


def test_one_thread_that_runs_at_one_look_begins_it_anew() -> None:
    looks = every(LOOK_EVERY_S, 9, 0.0, True)
    looks[4] = replace(looks[4], asleep=False)
    assert seen(looks)[0] == ""


def test_a_worker_that_uses_many_times_its_time_hangs() -> None:
    why, after_s = seen(every(LOOK_EVERY_S, 100, LOOK_EVERY_S, False))
    assert why == ("hung: 105 ms of processor time spent on one message, which may take 100 ms")
    assert after_s < 0.11


def test_larger_messages_may_take_longer() -> None:
    watched = watch(Look(0.0, 0.0, False))
    for number in range(1, 20):
        watched = watched.after(Look(0.007 * number, 0.007 * number, False), BOTH)
    assert why_hung(watched, BOTH)
    assert not why_hung(watched, BOTH, payload_bytes=1 << 20)


def test_the_first_answer_of_a_worker_may_take_longer() -> None:
    busy = every(LOOK_EVERY_S, 20, LOOK_EVERY_S, False)
    watched = watch(busy[0])
    for look in busy[1:]:
        watched = watched.after(look, BOTH)
    assert 0.1 < watched.cpu_s < 0.5
    assert why_hung(watched, BOTH)
    assert not why_hung(watched, BOTH, cold=True)
    assert why_hung(replace(watched, cpu_s=0.5), BOTH, cold=True)


def test_a_machine_that_stood_still_says_nothing() -> None:
    # Looks that come a second late, and a processor whose time another machine had.
    assert seen([Look(0.0, 0.0, True), Look(1.0, 0.0, True)])[0] == ""
    assert seen([Look(0.0, 0.0, False), Look(1.0, 1.0, False)])[0] == ""


def test_where_an_accelerator_computes_the_worker_may_sleep_and_wait_busily() -> None:
    allowed = Patience()
    assert not allowed.judges
    assert seen(every(LOOK_EVERY_S, 1000, 0.0, True), allowed) == ("", 0.0)
    assert seen(every(LOOK_EVERY_S, 1000, LOOK_EVERY_S, False), allowed) == ("", 0.0)


def test_looks_become_rarer_the_longer_a_message_takes() -> None:
    watched = watch(Look(0.0, 0.0, False))
    count, at = 0, 0.0
    while at < 10.0:
        at += watched.next_look_s
        watched = watched.after(Look(at, 0.0, False), BOTH)
        count += 1
    assert watched.next_look_s == LOOK_EVERY_MOST_S
    assert count < 130


looks = st.lists(
    st.tuples(
        st.floats(0.0001, 2.0),  # since the last look
        st.floats(0.0, 4.0),  # processor time used meanwhile
        st.booleans(),
    ),
    max_size=40,
)


def along(steps: list[tuple[float, float, bool]]) -> list[Look]:
    at = cpu_s = 0.0
    made = [Look(at, cpu_s, False)]
    for passed_s, used_s, asleep in steps:
        at, cpu_s = at + passed_s, cpu_s + used_s
        made.append(Look(at, cpu_s, asleep))
    return made


@settings(max_examples=200, deadline=None)
@given(looks)
def test_nothing_is_taken_for_hung_that_was_not_seen_for_long(
    steps: list[tuple[float, float, bool]],
) -> None:
    made = along(steps)
    why, at = seen(made)
    if not why:
        return
    until = [look for look in made if look.at <= at]
    if "asleep" in why:
        last = until[-ASLEEP_LOOKS:]
        assert all(look.asleep for look in last)
        assert len({look.cpu_s for look in last}) == 1
        assert at >= ASLEEP_S
    else:
        assert BOTH.cpu_s is not None
        assert until[-1].cpu_s >= BOTH.cpu_s
        assert BOTH.threads * at >= BOTH.cpu_s


@settings(max_examples=100, deadline=None)
@given(looks, st.floats(0.0, 0.0049))
def test_a_message_within_its_time_is_never_taken_for_spinning(
    steps: list[tuple[float, float, bool]], share: float
) -> None:
    # Forty looks, each of which saw less than a fortieth of what a message may take.
    awake = [(passed_s, min(used_s, share / 2), False) for passed_s, used_s, _ in steps]
    assert seen(along(awake))[0] == ""


@settings(max_examples=100, deadline=None)
@given(looks)
def test_a_worker_that_sleeps_from_some_moment_on_is_seen_soon(
    steps: list[tuple[float, float, bool]],
) -> None:
    made = along(steps)
    watched = watch(made[0])
    for look in made[1:]:
        watched = watched.after(look, BOTH)
    began = at = watched.last.at
    while not why_hung(watched, BOTH):
        at += watched.next_look_s
        watched = watched.after(Look(at, watched.last.cpu_s, True), BOTH)
        assert at - began <= max(0.05, 4 * LOOK_EVERY_MOST_S)


# What is waited for.

X, Y = Tensor("x", "FP32", (1, 4)), Tensor("y", "FP32", (1, 2))
WAY = Way("cpu", "onnx", threads=2)
ON_CPU = Placement("CPUExecutionProvider", "CPUExecutionProvider")
TRIED = Tried(WAY, p95_ms=2.0, message_ms=3.0, placement=ON_CPU)


def manifest(variant: dict[str, Any] | None = None, **more: Any) -> Manifest:
    fields: dict[str, Any] = {
        "inputs": (X,),
        "outputs": (Y,),
        "needs": Needs(operators=("MatMul", "Softmax")),
        **(variant or {}),
    }
    one = Variant("cpu", "model.onnx", "onnx", tolerance=Tolerance(1e-5), **fields)
    whole: dict[str, Any] = {"inputs": (X,), "outputs": (Y,), **more}
    files = {"model.onnx": PackFile("sha256:" + "0" * 64, 1)}
    return Manifest(1, "test", "1", variants=(one,), files=files, **whole)


def changed(value: Any, **changes: Any) -> Any:
    return replace(value, **changes)


def test_processor_time_follows_the_dearest_measured_message_and_all_threads() -> None:
    got = patience(manifest(), TRIED)
    assert got == Patience(True, CPU_TIMES * 0.003 * 2, 0.003, 2)
    assert got.first_look_s == FIRST_LOOK_S


def test_a_slow_model_is_looked_at_later() -> None:
    slow = changed(TRIED, p95_ms=400.0)
    assert patience(manifest(), slow).first_look_s == pytest.approx(0.6)


def test_what_takes_no_time_may_take_some() -> None:
    fast = changed(TRIED, p95_ms=0.01, message_ms=0.02)
    assert patience(manifest(), fast).cpu_s == CPU_LEAST_S


@pytest.mark.parametrize(
    "tried",
    [
        None,
        changed(TRIED, placement=None),
        changed(TRIED, placement=Placement("CUDA", "CUDAExecutionProvider")),
        changed(TRIED, way=Way("cpu", "onnx", provider="CUDAExecutionProvider")),
        changed(TRIED, way=Way("cpu", "edgetpu", provider="edgetpu")),
        changed(TRIED, placement=Placement("somebody's", "somebody's")),
    ],
    ids=["not tried", "unknown", "fell to", "asked for", "an Edge TPU", "of another package"],
)
def test_what_does_not_compute_on_the_cpu_is_left_to_its_deadline(tried: Tried | None) -> None:
    assert patience(manifest(), tried) == Patience()


@pytest.mark.parametrize("got", ["CPU", "CPUExecutionProvider", "XNNPACK", "NumPy"])
def test_every_runtime_s_own_kernels_are_the_cpu(got: str) -> None:
    tried = changed(TRIED, placement=Placement(got, got))
    assert patience(manifest(), tried).judges_sleep


FREE = Tensor("x", "FP32", (-1, 4))
TEXT = Tensor("x", "BYTES", (1,))
VARYING: dict[str, dict[str, Any]] = {
    "a free dimension": {"variant": {"inputs": (FREE,)}},
    "a free dimension of an output": {"variant": {"outputs": (FREE,)}},
    "a free dimension of the pack": {"inputs": (FREE,)},
    "text": {"variant": {"inputs": (TEXT,)}},
    "a loop": {"variant": {"needs": Needs(operators=("Add", "Loop"))}},
    "a loop of TFLite": {"variant": {"needs": Needs(operators=("ADD:1", "WHILE:1"))}},
    "an operator of another library": {"variant": {"needs": Needs(custom_operators=("x:Y",))}},
    "a model for each source": {"variant": {"hidden_state": "per_source"}},
    "pictures": {"pipeline": Pipeline(decode={"codec": "image"})},
    "somebody's codec": {"pipeline": Pipeline(decode={"codec": "theirs"})},
    "a deadline": {"limits": Limits(deadline_ms=50)},
}


@pytest.mark.parametrize("name", VARYING)
def test_where_run_time_may_vary_processor_time_is_not_judged_but_sleep_is(name: str) -> None:
    got = patience(manifest(**VARYING[name]), TRIED)
    assert got.cpu_s is None
    assert got.judges_sleep


def test_without_a_self_test_processor_time_is_not_judged() -> None:
    got = patience(manifest(), changed(TRIED, message_ms=None))
    assert (got.cpu_s, got.judges_sleep) == (None, True)


def test_explicit_state_is_an_input_like_others() -> None:
    stateful = manifest(state=(StatePair("x", "y"),))
    assert patience(stateful, TRIED).cpu_s is not None
