"""How many messages windows may hold: a guess that learns from what the broker does."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.daemon.held import HELD_UNKNOWN, PROMPT_S, SUSPECT_FIRST_S, SUSPECT_LAST_S, HeldBudget


def test_half_of_what_a_broker_sends_ahead_may_be_held() -> None:
    budget = HeldBudget()
    assert budget.limit == HELD_UNKNOWN
    budget.granted(128)
    assert budget.limit == 64


def test_nothing_is_given_up_before_a_silence_or_where_nothing_is_held() -> None:
    budget = HeldBudget()
    budget.heard(0.0)
    assert not budget.gives_room(SUSPECT_FIRST_S)
    budget.used = 3
    assert not budget.gives_room(SUSPECT_FIRST_S - 0.1)
    assert budget.gives_room(SUSPECT_FIRST_S)


def test_a_prompt_message_after_room_was_given_shows_the_broker_s_limit() -> None:
    budget = HeldBudget(limit=64, used=10)
    assert budget.gives_room(SUSPECT_FIRST_S)
    budget.heard(SUSPECT_FIRST_S + PROMPT_S)
    assert budget.limit == 9


def test_a_late_message_shows_nothing() -> None:
    budget = HeldBudget(limit=64, used=10)
    assert budget.gives_room(SUSPECT_FIRST_S)
    budget.heard(SUSPECT_FIRST_S + 2 * PROMPT_S)
    assert budget.limit == 64


def test_a_slow_sensor_is_suspected_ever_later() -> None:
    budget = HeldBudget(limit=64, used=10)
    given_at = [float(now) for now in range(20_000) if budget.gives_room(float(now))]
    silences = [late - early for early, late in pairwise(given_at)]
    assert silences[0] <= 2 * SUSPECT_FIRST_S + 1
    assert silences == sorted(silences)
    assert SUSPECT_LAST_S <= silences[-1] <= SUSPECT_LAST_S + 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["heard", "look"]), st.floats(0.0, 700.0)), max_size=40))
def test_whatever_happens_the_limit_only_falls_and_is_never_negative(
    story: list[tuple[str, float]],
) -> None:
    budget, now = HeldBudget(limit=64, used=1), 0.0
    for what, after in story:
        now += after
        before = budget.limit
        if what == "heard":
            budget.heard(now)
        else:
            budget.gives_room(now)
        assert 0 <= budget.limit <= before
