"""Percentiles, ratios, silences and switches, by example and by property."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import stats
from bench.stats import LoadReport

NUMBERS = st.lists(st.floats(0, 1e9, allow_nan=False), min_size=1, max_size=50)


def report(arrivals: dict[int, float], versions: str = "", per_s: float = 200) -> LoadReport:
    """A run on a schedule from second 100; `arrivals`: seconds into the run, by message."""
    count = max(arrivals) + 1
    sent_us = tuple(number / per_s * 1e6 for number in range(count))
    return LoadReport(
        sent=count,
        answered=len(arrivals),
        duplicates=0,
        split=0,
        stray=0,
        wrong=0,
        disordered=0,
        started_s=100.0,
        wall_s=1.0,
        cpu_s=0.0,
        latency_us=tuple(
            arrivals[number] * 1e6 - sent_us[number] if number in arrivals else None
            for number in range(count)
        ),
        sent_us=sent_us,
        versions=versions,
    )


def steady(count: int, *, gap_at: int = -1, gap_s: float = 0.0) -> dict[int, float]:
    """Answers 1 ms after each message of 200 a second, all those from `gap_at` on later."""
    return {n: n / 200 + 0.001 + (gap_s if n >= gap_at >= 0 else 0) for n in range(count)}


@given(NUMBERS, st.floats(0, 100))
@settings(max_examples=100, deadline=None)
def test_a_percentile_is_one_of_the_values_and_splits_them(
    values: list[float], percent: float
) -> None:
    ascending = sorted(values)
    found = stats.percentile(ascending, percent)
    assert found in ascending
    assert sum(value <= found for value in ascending) >= percent / 100 * len(ascending) - 1e-9


def test_percentiles_by_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [stats.percentile(values, p) for p in (0, 50, 99, 100)] == [1, 50, 99, 100]
    with pytest.raises(ValueError, match="no values"):
        stats.percentile([], 50)


def test_a_ratio_compares_values_of_the_same_round() -> None:
    # The medians are equal; what counts is that the machine was slow in different rounds.
    assert stats.ratios([10, 20, 30], [30, 20, 10]) == (1.0, 1 / 3, 3.0)
    assert stats.ratios([10, 20], []) is None
    assert stats.ratios([10], [0]) is None


@given(NUMBERS)
@settings(max_examples=50, deadline=None)
def test_the_median_lies_between_the_least_and_the_largest(values: list[float]) -> None:
    middle, low, high = stats.spread(values)
    assert low <= middle <= high


def test_the_next_answer_is_one_to_a_message_sent_after_the_event() -> None:
    # Message 19 was sent before the kill at 0.097 s and is answered after it, from a buffer.
    arrivals = {**steady(19), 19: 0.098, **{n: 0.5 + n / 1e4 for n in range(20, 40)}}
    assert stats.next_answer_ms(report(arrivals), 100.097) == pytest.approx(405, abs=0.1)


def test_no_answer_after_an_event_is_not_a_number() -> None:
    assert math.isnan(stats.next_answer_ms(report(steady(20)), 101.0))


def test_a_silence_counts_where_it_touches_the_interval() -> None:
    silent = report(steady(100, gap_at=50, gap_s=0.2))
    assert stats.longest_silence_ms(silent, 100.3, 100.31) == pytest.approx(205, abs=0.1)
    assert stats.longest_silence_ms(silent, 100.0, 100.1) == pytest.approx(5, abs=0.1)
    assert math.isnan(stats.longest_silence_ms(silent, 200.0, 201.0))


def test_a_switch_is_found_with_its_pause() -> None:
    run = report(steady(100, gap_at=50, gap_s=0.01), "1" * 50 + "2" * 50)
    found = stats.switch(run, 100.2, "1", "2")
    assert found is not None
    assert found.pause_ms == pytest.approx(15, abs=0.1)
    assert found.silence_ms == pytest.approx(15, abs=0.1)
    assert found.order_to_new_s == pytest.approx(0.061, abs=1e-3)
    assert found.mixed == 0


def test_an_answer_of_the_old_model_after_the_new_one_is_counted() -> None:
    found = stats.switch(report(steady(6), "112122"), 100.0, "1", "2")
    assert found is not None
    assert found.mixed == 1


def test_a_model_that_never_answers_is_no_switch() -> None:
    assert stats.switch(report(steady(6), "111111"), 100.0, "1", "2") is None


def test_lost_messages_have_no_latency() -> None:
    run = report({0: 0.001, 2: 0.011})
    assert run.lost == 1
    assert run.latencies_us == pytest.approx([1000, 1000])


def test_stalls_are_answers_that_took_as_long_as_a_delayed_acknowledgement() -> None:
    assert stats.stalls(report({0: 0.001, 1: 0.045})) == 1


def test_a_report_is_read_as_the_generators_write_it() -> None:
    text = (
        b'{"sent":2,"answered":1,"duplicates":0,"split":0,"stray":0,"wrong":0,"disordered":0,'
        b'"started_s":1.5,"wall_s":0.1,"cpu_s":0.01,"latency_us":[12.5,null]}'
    )
    read: Any = stats.parse_report(text)
    assert (read.lost, read.latency_us) == (1, (12.5, None))
