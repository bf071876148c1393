"""Gaps merge without changing what they count."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.documents.gap import Reason
from agent.store.gaps import GAPS_MAX, Gap, add, document


def gap(
    first: int, last: int, sequence: int = 1, stream: str = "s", reason: Reason = "spool_full"
) -> Gap:
    return Gap(
        sequence=sequence,
        boot="9f3c",
        stream=stream,
        from_seq=first,
        to_seq=last,
        count=last - first + 1,
        reason=reason,
        size=10 * (last - first + 1),
        first_ts_ms=first * 1000,
        last_ts_ms=last * 1000,
        synced=True,
    )


def test_a_gap_is_told_as_documented() -> None:
    assert json.loads(document(gap(1201, 4800, sequence=7))) == {
        "schema": 1,
        "kind": "gap",
        "id": "9f3c-gap-7",
        "stream": "s",
        "boot": "9f3c",
        "from_seq": 1201,
        "to_seq": 4800,
        "count": 3600,
        "bytes": 36000,
        "first_ts": "1970-01-01T00:20:01.000Z",
        "last_ts": "1970-01-01T01:20:00.000Z",
        "clock": "synced",
        "reason": "spool_full",
        "dropped": "oldest",
        "exact": True,
    }


def test_times_that_no_calendar_has_are_left_out() -> None:
    odd = Gap(1, "b", "s", 1, 1, 1, "corrupt", first_ts_ms=-(10**18), last_ts_ms=10**18)
    told = json.loads(document(odd))
    assert "first_ts" not in told
    assert "last_ts" not in told
    assert told["clock"] == "unsynced"


def test_neighbours_of_one_stream_and_reason_become_one() -> None:
    merged = add([gap(1, 3, 1)], gap(4, 4, 2))
    assert [(g.sequence, g.from_seq, g.to_seq, g.count, g.size) for g in merged] == [
        (1, 1, 4, 4, 40)
    ]
    assert (merged[0].first_ts_ms, merged[0].last_ts_ms) == (1000, 4000)


def test_a_clock_that_steps_back_does_not_disturb_merging() -> None:
    late = msgspec.structs.replace(gap(4, 4, 2), last_ts_ms=5)
    (merged,) = add([gap(1, 3, 1)], late)
    assert (merged.first_ts_ms, merged.last_ts_ms, merged.count) == (1000, 5, 4)


def test_what_differs_stays_apart() -> None:
    first = gap(1, 3, 1)
    assert len(add([first], gap(5, 5, 2))) == 2
    assert len(add([first], gap(4, 4, 2, stream="t"))) == 2
    assert len(add([first], gap(4, 4, 2, reason="corrupt"))) == 2
    assert len(add([first], gap(4, 4, 2), told={1})) == 2


def test_beyond_the_limit_the_oldest_two_of_a_stream_merge_inexactly() -> None:
    gaps: list[Gap] = []
    for number in range(GAPS_MAX + 1):
        gaps = add(gaps, gap(number * 10, number * 10, number))
    assert len(gaps) == GAPS_MAX
    assert (gaps[0].from_seq, gaps[0].to_seq, gaps[0].count, gaps[0].exact) == (0, 10, 2, False)
    assert all(other.exact for other in gaps[1:])


def test_gaps_already_told_merge_last() -> None:
    gaps = [gap(number * 10, number * 10, number) for number in range(GAPS_MAX)]
    shorter = add(gaps, gap(9999, 9999, 9999), told=set(range(10)))
    assert shorter[:10] == gaps[:10]
    assert shorter[10].sequence == 10
    everything = add(gaps, gap(9999, 9999, 9999), told=set(range(10**4)))
    assert len(everything) == GAPS_MAX


@given(
    losses=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.integers(0, 2)),
        max_size=700,
    )
)
@settings(max_examples=30, deadline=None)
def test_merging_never_changes_the_sum_and_covers_every_number(
    losses: list[tuple[str, int, int]],
) -> None:
    gaps: list[Gap] = []
    position = dict.fromkeys("abc", 1)
    lost: dict[str, set[int]] = {stream: set() for stream in "abc"}
    for sequence, (stream, length, sent) in enumerate(losses):
        first = position[stream] + sent
        position[stream] = first + length
        lost[stream] |= set(range(first, first + length))
        gaps = add(gaps, gap(first, first + length - 1, sequence, stream))
    assert len(gaps) <= GAPS_MAX
    for stream, numbers in lost.items():
        told = [g for g in gaps if g.stream == stream]
        assert sum(g.count for g in told) == len(numbers)
        covered = {n for g in told for n in range(g.from_seq, g.to_seq + 1)}
        assert covered >= numbers
        if all(g.exact for g in told):
            assert covered == numbers
