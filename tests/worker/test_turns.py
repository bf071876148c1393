"""Turns on a shared device, in a simulation of slots that ask again once they are answered."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.documents.deployment import Share
from agent.worker.turns import Turns

# From an answer to the next request of the same slot.
THINK_S = 0.0002


@dataclass
class Slot:
    """A slot with runs of this length; `idle_until_s`: it wants nothing before."""

    run_s: float
    share: Share = field(default_factory=Share)
    idle_until_s: float = 0.0


def play(slots: list[Slot], seconds: float = 4.0) -> list[float]:
    """Return how much of the device's time each slot had."""
    turns, now = Turns(), 0.0
    asks_at = [slot.idle_until_s for slot in slots]
    had = [0.0] * len(slots)
    waiting: set[int] = set()
    for number, slot in enumerate(slots):
        turns.join(number, slot.share, now)
    while now < seconds:
        for number, at in enumerate(asks_at):
            if at <= now and number not in waiting:
                waiting.add(number)
                turns.ask(number)
        chosen = turns.next(waiting, now)
        if chosen is None:
            nexts = [at for number, at in enumerate(asks_at) if number not in waiting]
            now = max(now + 1e-6, min([now + turns.wait_s(waiting, now), *nexts]))
            continue
        waiting.discard(chosen)
        run_s = slots[chosen].run_s
        now += run_s
        had[chosen] += run_s
        turns.took(chosen, run_s, now)
        asks_at[chosen] = now + THINK_S
    return [part / seconds for part in had]


def test_slots_with_runs_of_any_length_have_equal_time() -> None:
    short, long = play([Slot(0.001), Slot(0.010)])
    assert short == pytest.approx(long, abs=0.05)
    assert short + long > 0.85


def test_a_priority_goes_first_and_leaves_what_it_does_not_want() -> None:
    high, low = play([Slot(0.002, Share(priority=5)), Slot(0.002)])
    assert high > 0.85
    assert low < 0.05
    busy, rest = play([Slot(0.002, Share(priority=5, quota=0.6)), Slot(0.002)])
    assert busy == pytest.approx(0.6, abs=0.05)
    assert rest > 0.3


def test_a_quota_holds_where_nobody_else_wants_the_device() -> None:
    assert play([Slot(0.003, Share(quota=0.2))]) == [pytest.approx(0.2, abs=0.03)]


def test_one_long_run_spends_no_quota_that_is_the_whole() -> None:
    assert play([Slot(1.0)]) == [pytest.approx(1.0, abs=0.01)]


def test_time_in_which_nothing_was_wanted_is_not_saved_up() -> None:
    early, late = play([Slot(0.002), Slot(0.002, idle_until_s=2.0)])
    assert late == pytest.approx(0.25, abs=0.05)
    assert early == pytest.approx(0.75, abs=0.1)


def test_one_that_leaves_keeps_nobody_waiting() -> None:
    turns = Turns()
    turns.join(1, Share(priority=9), 0.0)
    turns.join(2, Share(), 0.0)
    turns.took(1, 1.0, 1.0)
    turns.ask(2)
    assert turns.next([2], 1.0) is None
    assert 0 < turns.wait_s([2], 1.0) <= 0.001
    turns.leave(1)
    assert turns.next([2], 1.0) == 2
    assert turns.wait_s([], 1.0) == math.inf


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([0.0005, 0.001, 0.004, 0.02]), min_size=2, max_size=5),
)
def test_fairness_holds_for_any_mixture(runs: list[float]) -> None:
    parts = play([Slot(run_s) for run_s in runs], 3.0)
    assert max(parts) - min(parts) < 0.06
