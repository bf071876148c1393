"""Which way a file comes, by sizes alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control.shipping import WORTH_BYTES, Way, choose, is_worth

MB = 1_000_000


def test_the_smallest_way_comes_first_and_the_whole_file_last() -> None:
    assert choose(9 * MB, 5 * MB, [(0, 4 * MB), (1, 3 * MB)]) == (
        Way("delta", 3 * MB, 1),
        Way("delta", 4 * MB, 0),
        Way("chunks", 5 * MB),
        Way("whole", 9 * MB),
    )


def test_chunks_win_over_a_delta_of_the_same_size() -> None:
    assert [way.kind for way in choose(9 * MB, MB, [(0, MB)])] == ["chunks", "delta", "whole"]


def test_without_a_list_and_a_delta_the_whole_file_comes() -> None:
    assert choose(9 * MB, None, []) == (Way("whole", 9 * MB),)


@pytest.mark.parametrize(
    ("wire_bytes", "otherwise_bytes", "worth"),
    [
        (8 * MB, 10 * MB, True),
        (8 * MB + 1, 10 * MB, False),
        (0, WORTH_BYTES, True),
        (0, WORTH_BYTES - 1, False),
        (11 * MB, 10 * MB, False),
        (0, 0, False),
    ],
)
def test_a_small_saving_is_not_worth_it(wire_bytes: int, otherwise_bytes: int, worth: bool) -> None:
    assert is_worth(wire_bytes, otherwise_bytes) is worth


@given(
    st.integers(0, 1 << 34),
    st.none() | st.integers(0, 1 << 34),
    st.lists(st.integers(0, 1 << 34), max_size=16),
)
@settings(max_examples=100, deadline=None)
def test_no_way_sends_more_than_the_whole_file(
    whole: int, chunks: int | None, deltas: list[int]
) -> None:
    ways = choose(whole, chunks, enumerate(deltas))
    assert ways[-1] == Way("whole", whole)
    assert all(way.wire_bytes <= whole for way in ways)
    assert list(ways) == sorted(ways, key=lambda way: way.wire_bytes)
