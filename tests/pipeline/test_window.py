"""Windows: the right readings, in order, and every message released exactly once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.documents.manifest import Tensor, Window
from agent.errors import DocumentError
from agent.pipeline.window import OpenWindow, Pushed, TimeWindow, compile_window

VALUE = (Tensor("x", "FP32", ()),)


def make(window: Window) -> OpenWindow:
    return compile_window(window, VALUE, 4, path="p")[0]()


def push(window: OpenWindow, sequence: int, time_ms: float = 0.0) -> Pushed:
    return window.push({"x": np.array(sequence, np.float32)}, sequence, time_ms)


def ready(pushed: Pushed) -> list[float] | None:
    return None if pushed.ready is None else pushed.ready["x"].tolist()


def test_a_sliding_window_releases_what_slides_out_next() -> None:
    window = make(Window("sliding", size=3))
    pushed = [push(window, i) for i in range(1, 6)]
    assert [ready(p) for p in pushed] == [None, None, [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert [p.released for p in pushed] == [(), (), (1,), (2,), (3,)]
    assert window.held() == (4, 5)


def test_a_tumbling_window_releases_all_it_used() -> None:
    window = make(Window("tumbling", size=2))
    pushed = [push(window, i) for i in range(1, 5)]
    assert [ready(p) for p in pushed] == [None, [1, 2], None, [3, 4]]
    assert [p.released for p in pushed] == [(), (1, 2), (), (3, 4)]


def test_a_step_larger_than_the_window_skips_readings_at_once() -> None:
    window = make(Window("sliding", size=2, step=3))
    pushed = [push(window, i) for i in range(1, 6)]
    assert [ready(p) for p in pushed] == [None, [1, 2], None, None, [4, 5]]
    assert [p.released for p in pushed] == [(), (1, 2), (3,), (), (4, 5)]


def test_a_window_of_one_is_no_window() -> None:
    pushed = push(make(Window("sliding", size=1)), 7)
    assert ready(pushed) == [7]
    assert pushed.released == (7,)


def test_what_was_handed_out_does_not_change_later() -> None:
    window = make(Window("sliding", size=2))
    push(window, 1)
    first = push(window, 2).ready
    push(window, 3)
    assert first is not None
    assert first["x"].tolist() == [1, 2]


def test_a_tumbling_span_ends_with_the_reading_after_it() -> None:
    window = make(Window("tumbling", span_ms=10))
    pushed = [push(window, i, t) for i, t in [(1, 0), (2, 4), (3, 9), (4, 10), (5, 19), (6, 35)]]
    assert [ready(p) for p in pushed] == [None, None, None, [1, 2, 3], None, [4, 5]]
    assert [p.released for p in pushed] == [(), (), (), (1, 2, 3), (), (4, 5)]


def test_a_sliding_span_waits_until_it_has_seen_a_whole_one() -> None:
    window = make(Window("sliding", span_ms=10))
    pushed = [push(window, i, t) for i, t in [(1, 0), (2, 5), (3, 10), (4, 11), (5, 40)]]
    assert [ready(p) for p in pushed] == [None, None, [2, 3], [2, 3, 4], [5]]
    assert [p.released for p in pushed] == [(), (), (1,), (), (2, 3, 4)]


def test_a_clock_that_is_set_back_holds_nothing_up() -> None:
    window = make(Window("tumbling", span_ms=10))
    times = [(1, 1000.0), (2, 5.0), (3, 9.0), (4, 16.0)]
    pushed = [push(window, i, t) for i, t in times]
    assert ready(pushed[-1]) == [1, 2, 3]


def test_no_clock_however_wild_stops_a_window() -> None:
    window = make(Window("tumbling", span_ms=10))
    for sequence, time in enumerate([1e308, -1e308] * 50):
        push(window, sequence, time)
    pushed = [push(window, 1000 + i, t) for i, t in enumerate([0, 5, 11, 22])]
    assert any(p.ready is not None for p in pushed)


def test_a_span_holds_a_bounded_number_of_readings() -> None:
    window = TimeWindow(VALUE, 1000.0, 1, 3, tumbling=True)
    pushed = [push(window, i) for i in range(1, 6)]
    assert [p.released for p in pushed] == [(), (), (), (1,), (2,)]
    assert sum(p.dropped for p in pushed) == 2
    assert window.held() == (3, 4, 5)


WINDOWS = st.one_of(
    st.builds(
        Window,
        kind=st.sampled_from(["sliding", "tumbling"]),
        size=st.integers(1, 9),
        step=st.integers(1, 12),
    ),
    st.builds(
        Window,
        kind=st.sampled_from(["sliding", "tumbling"]),
        span_ms=st.integers(1, 50),
        step=st.integers(1, 5),
    ),
)


@settings(max_examples=150, deadline=None)
@given(WINDOWS, st.lists(st.floats(-20, 60), max_size=80))
def test_every_message_leaves_exactly_once(window: Window, steps: list[float]) -> None:
    opened, now = make(window), 0.0
    released: Counter[int] = Counter()
    for sequence, step in enumerate(steps):
        now += step
        pushed = push(opened, sequence, now)
        released.update(pushed.released)
        rows = ready(pushed)
        if rows is not None:
            # In order, without a gap, and (but for tumbling spans) up to this reading.
            assert rows == list(range(int(rows[0]), int(rows[-1]) + 1))
            assert window.size in (None, len(rows))
            still_needed = set(map(int, rows)) - set(released)
            assert still_needed <= set(opened.held())
    assert not set(released) & set(opened.held())
    assert set(released) | set(opened.held()) == set(range(len(steps)))
    assert all(count == 1 for count in released.values())


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 60))
def test_replaying_what_was_not_released_restores_a_window(
    size: int, step: int, crash_at: int
) -> None:
    window = Window("sliding", size=size, step=min(step, size))
    untouched, crashed = make(window), make(window)
    for sequence in range(crash_at):
        push(untouched, sequence)
        push(crashed, sequence)
    restored = make(window)
    for sequence in crashed.held():
        assert push(restored, sequence).ready is None
    for sequence in range(crash_at, crash_at + 20):
        wanted, got = push(untouched, sequence), push(restored, sequence)
        assert ready(wanted) == ready(got)
        assert wanted.released == got.released


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "p"),
        ({"size": 3, "span_ms": 5}, "p"),
        ({"size": 65536}, "p.size"),
    ],
)
def test_a_window_that_cannot_be_held_is_refused(fields: dict[str, Any], path: str) -> None:
    picture = (Tensor("x", "UINT8", (128, 128, 3)),)
    with pytest.raises(DocumentError) as caught:
        compile_window(Window("sliding", **fields), picture, 64, path="p")
    assert caught.value.path == path


def test_readings_of_no_fixed_shape_are_refused() -> None:
    with pytest.raises(DocumentError, match="no free dimension"):
        compile_window(Window("sliding", size=2), (Tensor("x", "FP32", (-1,)),), 4, path="p")
