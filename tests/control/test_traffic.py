"""How much of the network fetching may take, and when."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control.traffic import (
    KIB,
    METERED_KIB_S,
    STALL_WINDOW_S,
    Bucket,
    Go,
    Hold,
    StallWatch,
    Surroundings,
    Turn,
    judge,
    may_run,
    minute_of,
    share_of,
)
from agent.documents.settings import FetchSettings


def at(time: str) -> Surroundings:
    return Surroundings(minute=minute_of(time))


@pytest.mark.parametrize(
    ("window", "time", "inside"),
    [
        ("01:00-05:00", "00:59", False),
        ("01:00-05:00", "01:00", True),
        ("01:00-05:00", "04:59", True),
        ("01:00-05:00", "05:00", False),
        ("22:30-04:00", "23:00", True),
        ("22:30-04:00", "03:59", True),
        ("22:30-04:00", "12:00", False),
        ("06:00-06:00", "18:00", True),
        ("", "18:00", True),
    ],
)
def test_packs_come_within_the_window_only(window: str, time: str, inside: bool) -> None:
    verdict = judge(FetchSettings(window=window), at(time))
    assert isinstance(verdict, Go if inside else Hold)
    if isinstance(verdict, Hold):
        assert window in verdict.reason


def test_while_the_clock_is_unset_there_is_no_window() -> None:
    assert judge(FetchSettings(window="01:00-05:00"), Surroundings(minute=None)) == Go()


def test_a_metered_connection_is_used_as_the_settings_say() -> None:
    metered = Surroundings(metered=True)
    assert isinstance(judge(FetchSettings(metered="refuse"), metered), Hold)
    assert judge(FetchSettings(metered="slow"), metered) == Go(METERED_KIB_S)
    assert judge(FetchSettings(metered="slow", max_kib_s=8), metered) == Go(8)
    assert judge(FetchSettings(metered="slow", max_kib_s=800), metered) == Go(METERED_KIB_S)
    assert judge(FetchSettings(metered="allow"), metered) == Go()
    for policy in ("refuse", "slow", "allow"):
        assert judge(FetchSettings(metered=policy), Surroundings()) == Go()


def test_fetches_share_a_limit() -> None:
    assert share_of(100, 1) == 100
    assert share_of(100, 3) == 33
    assert share_of(1, 5) == 1
    assert share_of(0, 5) == 0


def test_what_a_slot_waits_for_that_serves_nothing_goes_first() -> None:
    urgent, patient, local = Turn(True), Turn(False), Turn(False, local=True)
    assert may_run(patient, [patient, patient])
    assert not may_run(patient, [patient, urgent])
    assert may_run(urgent, [patient, urgent, urgent])
    assert may_run(local, [local, urgent])
    assert may_run(patient, [patient, Turn(True, local=True)])


@given(st.integers(1, 5000), st.lists(st.floats(0, 3), min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_a_bucket_never_gives_more_than_its_rate_and_one_burst(
    kib_s: int, pauses: list[float]
) -> None:
    now, read = 0.0, 0
    bucket = Bucket(kib_s, now)
    for pause in pauses:
        now += pause
        now += bucket.take(bucket.read_bytes, now)
        read += bucket.read_bytes
        assert read <= kib_s * KIB * now + max(64 * KIB, kib_s * KIB) + 1


@pytest.mark.parametrize("kib_s", [1, 64, 1000])
def test_a_bucket_that_is_used_without_a_pause_keeps_its_rate(kib_s: int) -> None:
    now, read = 0.0, 0
    bucket = Bucket(kib_s, now)
    while now < 5.0:
        now += bucket.take(bucket.read_bytes, now)
        read += bucket.read_bytes
    assert read / now == pytest.approx(kib_s * KIB, rel=0.1)


def test_tokens_of_bytes_that_did_not_come_are_given_back() -> None:
    bucket = Bucket(64, 0.0)
    first = bucket.take(8 * KIB, 0.0)
    bucket.give_back(8 * KIB)
    assert bucket.take(8 * KIB, 0.0) == first == pytest.approx(0.125)


def test_without_a_limit_nothing_waits_and_the_kernel_does_as_it_likes() -> None:
    bucket = Bucket(0, 0.0)
    assert bucket.take(1 << 30, 0.0) == 0.0
    assert (bucket.read_bytes, bucket.socket_bytes) == (64 * KIB, 0)
    assert Bucket(1, 0.0).socket_bytes == 16 * KIB
    assert Bucket(10_000, 0.0).socket_bytes == 256 * KIB


def test_a_server_that_trickles_is_seen_after_a_minute_and_a_slow_one_is_not() -> None:
    trickle, slow = StallWatch(0.0), StallWatch(0.0)
    seen = [trickle.received(1000, float(second)) for second in range(1, 62)]
    assert [few for few in seen if few is not None] == [60_000]
    assert all(slow.received(1100, float(second)) is None for second in range(1, 300))


def test_a_rate_that_we_ask_for_ourselves_is_no_stall() -> None:
    watch = StallWatch(0.0, kib_s=1)
    assert all(watch.received(1000, float(second)) is None for second in range(1, 200))
    assert StallWatch(0.0, kib_s=1).received(10, STALL_WINDOW_S) == 10
