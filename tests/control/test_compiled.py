"""Which ways wait for a compiler, and what becomes of what it made."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.control import events as e
from agent.control.choice import Decision
from agent.control.compiled import (
    NOISE,
    compiler_of,
    judge,
    kept_out,
    sort_out,
    still_pending,
)
from agent.control.contest import Outcome
from agent.control.lifecycle import step
from agent.control.state import DeviceState, Phase, choice_for
from agent.documents.choice import Choice, Tried, Way
from agent.documents.device import Device, RuntimeFacts
from tests.control.stories import DYING, A, B, desired, rollout, serving_a, slot

CPU, GPU, VINO = Way("m", "onnx"), Way("m", "onnx", "Trt"), Way("m", "openvino")
DEVICE = Device(
    1,
    runtimes=(
        RuntimeFacts("onnx", usable=True, compiles={"Trt": "10.3"}),
        RuntimeFacts("openvino", usable=True, compiles={"CPU": "", "GPU": ""}),
    ),
)


def ahead(way: Way) -> Way:
    return replace(way, compiled=True)


def outcome(*rows: Tried) -> Outcome:
    passed = tuple(place for place, row in enumerate(rows) if not row.excluded)
    return Outcome(rows, Decision(passed, ()), ())


def ran(way: Way, ms: float) -> Tried:
    return Tried(way, median_ms=ms)


CHOICE = Choice(
    CPU,
    (ran(CPU, 4.0), Tried(VINO, excluded="no operator")),
    "the only way",
    (f"{GPU}: it is being compiled", "int8: no file"),
    "key",
    pending=(GPU,),
)


def test_a_runtime_says_for_which_provider_it_compiles_and_with_what() -> None:
    assert compiler_of(GPU, DEVICE) == "10.3"
    assert compiler_of(CPU, DEVICE) is None
    # Its CPU kernels have a name of their own.
    assert compiler_of(VINO, DEVICE) == ""
    assert compiler_of(replace(VINO, provider="GPU"), DEVICE) == ""
    assert compiler_of(replace(VINO, provider="NPU"), DEVICE) is None
    assert compiler_of(Way("m", "absent"), DEVICE) is None


def test_a_way_that_is_compiled_first_takes_no_part_while_another_can_serve() -> None:
    found = sort_out([GPU, CPU], {GPU}, (), {})
    assert (found.now, found.pending, found.later) == ((CPU,), (GPU,), (GPU,))
    assert found.left_out == (f"{GPU}: it is being compiled",)


def test_with_what_was_compiled_before_it_takes_part() -> None:
    found = sort_out([GPU, CPU], {GPU}, {GPU}, {})
    assert (found.now, found.pending, found.left_out) == ((ahead(GPU), CPU), (), ())


def test_what_was_no_good_is_not_compiled_again_and_its_reason_is_told() -> None:
    found = sort_out([GPU, CPU], {GPU}, (), {GPU: "wrong answers"})
    assert (found.now, found.pending) == ((CPU,), ())
    assert found.left_out == (f"{GPU}: wrong answers",)


def test_the_only_way_serves_at_once_and_is_compiled_for_the_next_start() -> None:
    found = sort_out([GPU], {GPU}, (), {})
    assert (found.now, found.pending, found.left_out) == ((GPU,), (GPU,), ())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([CPU, GPU, VINO]), unique=True, min_size=1),
    st.sets(st.sampled_from([CPU, GPU, VINO])),
    st.sets(st.sampled_from([CPU, GPU, VINO])),
    st.sets(st.sampled_from([CPU, GPU, VINO])),
)
def test_something_always_takes_part_and_nothing_is_forgotten(
    ways: list[Way], compiling: set[Way], ready: set[Way], bad: set[Way]
) -> None:
    ready, bad = ready & compiling, (bad & compiling) - ready
    found = sort_out(ways, compiling, ready, dict.fromkeys(bad, "no good"))
    assert found.now
    assert {way.plain for way in found.now} | set(found.later) == set(ways)
    assert not {way for way in found.now if way.compiled and way.plain not in ready}
    assert set(found.pending) == set(ways) & compiling - ready - bad


def test_of_ways_that_were_measured_all_the_same_only_the_winner_is_compiled() -> None:
    two = replace(GPU, threads=2)
    measured = outcome(ran(two, 1.0), ran(GPU, 2.0))
    assert still_pending((GPU, two, VINO), measured) == (two, VINO)


def test_what_answers_wrongly_is_kept_out_with_the_reason() -> None:
    wrong = Tried(ahead(GPU), excluded="self-test case 1: got 5")
    verdict = judge(CHOICE, ahead(GPU), outcome(ran(CPU, 4.0), wrong))
    assert verdict.refused == "self-test case 1: got 5"
    assert verdict.choice.way == CPU
    assert verdict.choice.tried[-1] == wrong
    assert verdict.choice.pending == ()
    assert verdict.choice.left_out == ("int8: no file",)


def test_what_is_faster_takes_over_and_what_served_is_the_runner_up() -> None:
    verdict = judge(CHOICE, ahead(GPU), outcome(ran(ahead(GPU), 1.0), ran(CPU, 3.9)))
    assert not verdict.refused
    assert verdict.choice.way == ahead(GPU)
    assert [tried.way for tried in verdict.choice.tried] == [ahead(GPU), CPU, VINO]
    assert verdict.choice.runner_up == CPU
    assert verdict.choice.pending == ()
    assert verdict.choice.because == "1 ms a run, 3.9 times as fast as m on onnx, 1 thread"
    assert verdict.choice.key == "key"


def test_what_is_slower_than_another_way_is_kept_out() -> None:
    verdict = judge(CHOICE, ahead(GPU), outcome(ran(CPU, 4.0), ran(ahead(GPU), 9.0)))
    assert verdict.refused == "9 ms a run, m on onnx, 1 thread takes 4"
    assert verdict.choice.way == CPU


def test_the_same_way_may_be_as_slow_as_two_measurements_of_it_differ() -> None:
    served = replace(CHOICE, way=GPU, tried=(ran(GPU, 4.0),))
    for ms, good in ((4.0 * NOISE, True), (4.0 * NOISE + 0.01, False)):
        verdict = judge(served, ahead(GPU), outcome(ran(GPU, 4.0), ran(ahead(GPU), ms)))
        assert verdict.choice.way == (ahead(GPU) if good else GPU)
        assert bool(verdict.refused) is not good
    assert "compiled at the load it takes 4" in verdict.refused
    # Its best run says that the machine was busy.
    busy = replace(ran(ahead(GPU), 9.0), best_ms=4.0)
    verdict = judge(served, ahead(GPU), outcome(replace(ran(GPU, 4.0), best_ms=3.9), busy))
    assert not verdict.refused


def test_it_is_used_where_what_served_does_not_pass_any_more() -> None:
    measured = outcome(ran(ahead(GPU), 9.0), Tried(CPU, excluded="it died"))
    verdict = judge(CHOICE, ahead(GPU), measured)
    assert verdict.choice.way == ahead(GPU)
    assert verdict.choice.tried[-1].excluded


def test_a_long_reason_and_many_rows_stay_within_what_a_choice_may_hold() -> None:
    rows = tuple(ran(Way(f"v{n}", "onnx"), 1.0) for n in range(32))
    full = replace(CHOICE, tried=rows)
    verdict = kept_out(full, ahead(GPU), "x" * 5000)
    assert len(verdict.choice.tried) == 32
    assert verdict.choice.tried[0] == rows[0]
    assert len(verdict.choice.tried[-1].excluded) == 1000


# What it means for a slot.


def serving(choice: Choice = CHOICE) -> DeviceState:
    return replace(serving_a(), qualified={A: choice})


def compiled(after: Choice, before: Choice = CHOICE, pack: str = A) -> e.Compiled:
    return e.Compiled("vib", pack, before, after)


BETTER = replace(CHOICE, way=ahead(GPU), pending=())


def test_a_better_way_takes_over_like_any_other() -> None:
    state, actions = step(serving(), compiled(BETTER))
    assert rollout(state).phase is Phase.SWITCHING
    (action,) = actions
    assert isinstance(action, e.Switch)
    assert action.target.pack == A
    assert choice_for(state, slot(A)) == BETTER
    over = rollout(state).id
    state, _ = step(state, e.Switched("vib", over))
    state, _ = step(state, e.ProbationPassed("vib", over))
    entry = state.slots["vib"]
    assert entry.rollout is None
    assert entry.outcome is not None
    assert entry.outcome.state == "active"
    assert entry.previous is None


def test_the_same_way_is_only_remembered() -> None:
    served = replace(CHOICE, way=GPU)
    after = replace(served, way=ahead(GPU), pending=())
    state, actions = step(serving(served), compiled(after, served))
    assert actions == ()
    assert state.slots["vib"].rollout is None
    assert choice_for(state, slot(A)) == after


def test_a_choice_that_was_made_meanwhile_knows_better() -> None:
    for state in (
        serving(replace(CHOICE, key="another kernel")),
        step(serving(), desired("next", vib=slot(B)))[0],
        step(serving(), e.CrashLooped("vib", A, DYING))[0],
        step(serving(), desired("none"))[0],
    ):
        assert step(state, compiled(BETTER)) == (state, ())
    state = serving()
    assert step(state, compiled(BETTER, pack=B)) == (state, ())
