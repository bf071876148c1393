"""Choosing by measurement: who goes on, what counts, and who wins."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control.choice import (
    ALIKE,
    BLOCKS_A_ROUND,
    ENOUGH_BLOCKS,
    HOPELESS,
    Round,
    Trial,
    decide,
    figures,
    next_round,
)


def steady(ms: float, rounds: int = 3, threads: int = 1) -> Trial:
    return Trial(threads, rounds=(Round((ms,) * BLOCKS_A_ROUND, ms),) * rounds)


def test_everybody_is_measured_once_even_when_time_is_up() -> None:
    trials = [Trial(), Trial(), Trial(excluded="failed its self-test")]
    assert next_round(trials, -1.0) == (0, 1)
    assert next_round([steady(1.0, 1), Trial()], -1.0) == (1,)


def test_rounds_go_on_until_there_are_enough_or_time_is_up() -> None:
    trials = [steady(1.0, 1), steady(1.1, 1)]
    assert next_round(trials, 10.0) == (0, 1)
    assert next_round(trials, 0.0) == ()
    enough = ENOUGH_BLOCKS // BLOCKS_A_ROUND
    assert next_round([steady(1.0, enough), steady(1.1, enough)], 10.0) == ()


def test_a_hopeless_candidate_is_measured_no_further() -> None:
    trials = [steady(1.0, 1), steady(1.0 * HOPELESS + 0.1, 1), steady(1.2, 1)]
    assert next_round(trials, 10.0) == (0, 2)


def test_a_contest_of_one_takes_one_round() -> None:
    assert next_round([Trial(), Trial(excluded="died")], 10.0) == (0,)
    assert next_round([steady(1.0, 1), Trial(excluded="died")], 10.0) == ()


def test_the_fastest_wins_and_the_runner_up_comes_next() -> None:
    decision = decide([steady(3.0), steady(1.0), steady(2.0), Trial(excluded="died")])
    assert decision.order == (1, 2, 0)
    assert decision.figures[3] is None
    assert not decision.cheaper


def test_of_two_that_are_alike_the_one_with_fewer_threads_wins() -> None:
    decision = decide([steady(1.0, threads=4), steady(1.0 + ALIKE / 2, threads=1)])
    assert decision.order == (1, 0)
    assert decision.cheaper


def test_of_two_that_are_alike_with_the_same_threads_the_one_with_less_cpu_wins() -> None:
    busy = Trial(rounds=(Round((1.0,) * 5, 4.0),))
    assert decide([busy, Trial(rounds=(Round((1.01,) * 5, 1.0),))]).order == (1, 0)


def test_a_last_resort_is_chosen_only_where_no_other_passes() -> None:
    exact = Trial(rounds=(Round((0.1,) * 5, 0.1),), last_resort=True)
    assert decide([exact, steady(1.0)]).order == (1, 0)
    assert decide([exact, Trial(excluded="died")]).order == (0,)


def test_nobody_left_is_no_choice() -> None:
    assert decide([Trial(excluded="died")]).order == ()


def test_a_round_in_which_the_device_slowed_down_does_not_count() -> None:
    slow = Round((9.0,) * 5, throttled=True)
    fell = Round((9.0,) * 5, clock_hz=0.9e9)
    good = Round((1.0,) * 5, clock_hz=1.0e9)
    assert figures(Trial(rounds=(slow, good, fell))).median_ms == 1.0
    # Where every round was slow, that is how it is here.
    assert figures(Trial(rounds=(slow, slow))).median_ms == 9.0


def test_one_that_gets_slower_while_it_runs_is_ranked_by_how_it_ended() -> None:
    warming = Trial(rounds=(Round((1.0,) * 5), Round((1.05,) * 5), Round((2.0,) * 5)))
    found = figures(warming)
    assert found.limited_by_heat
    assert found.median_ms == 2.0
    assert decide([warming, steady(1.5)]).order == (1, 0)


times = st.floats(0.01, 1000.0)
trials = st.lists(
    st.builds(
        Trial,
        threads=st.integers(1, 8),
        excluded=st.sampled_from(["", "", "", "died"]),
        rounds=st.lists(
            st.builds(
                Round,
                ms=st.lists(times, min_size=1, max_size=5).map(tuple),
                cpu_ms=times,
                throttled=st.booleans(),
                clock_hz=st.none() | st.floats(1e8, 4e9),
            ),
            max_size=4,
        ).map(tuple),
    ),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(trials)
def test_the_chosen_one_is_never_slower_than_the_best_by_more_than_alike(
    given_trials: list[Trial],
) -> None:
    decision = decide(given_trials)
    measured = {place for place, t in enumerate(given_trials) if t.rounds and not t.excluded}
    assert set(decision.order) == measured
    assert len(decision.order) == len(measured)
    if decision.order:
        medians = {place: figures(given_trials[place]).median_ms for place in measured}
        assert medians[decision.order[0]] <= min(medians.values()) * (1 + ALIKE)


@settings(max_examples=200, deadline=None)
@given(st.lists(times, min_size=1, max_size=6), st.floats(0.0, 100.0))
def test_a_contest_always_ends(speeds: list[float], budget_s: float) -> None:
    contest = [Trial() for _ in speeds]
    turns = 0
    while turn := next_round(contest, budget_s - turns):
        turns += 1
        for place in turn:
            contest[place] = contest[place].after(Round((speeds[place],) * BLOCKS_A_ROUND))
        assert turns <= ENOUGH_BLOCKS
    assert decide(contest).order
