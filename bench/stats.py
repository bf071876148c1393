"""Numbers from numbers: percentiles, ratios of rounds, silences. No clock, no files."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

STALL_US = 30_000.0


class LoadReport(msgspec.Struct, frozen=True):
    """What a load generator saw; times in µs are since `started_s` (monotonic clock, seconds)."""

    sent: int
    answered: int
    # Answers to a message that had one; `split`: of another model version than the first.
    duplicates: int
    split: int
    # Answers to nothing that this run has sent.
    stray: int
    # Answers whose values are not the model's.
    wrong: int
    # First answers that came after the answer to a later message.
    disordered: int
    started_s: float
    wall_s: float
    cpu_s: float
    # By message; on a schedule, since the time at which it should have been sent.
    latency_us: tuple[float | None, ...]
    # On a schedule only.
    sent_us: tuple[float, ...] = ()
    versions: str = ""

    @property
    def lost(self) -> int:
        return self.sent - self.answered

    @property
    def latencies_us(self) -> list[float]:
        """Of the messages that were answered, ascending."""
        return sorted(value for value in self.latency_us if value is not None)

    @property
    def arrivals(self) -> list[tuple[float, int]]:
        """(seconds on the monotonic clock, message) of each first answer, in order of arrival."""
        pairs = zip(self.sent_us, self.latency_us, strict=True)
        return sorted(
            (self.started_s + (sent + latency) / 1e6, number)
            for number, (sent, latency) in enumerate(pairs)
            if latency is not None
        )


class Spread(NamedTuple):
    """A value of several rounds."""

    median: float
    low: float
    high: float


def parse_report(text: bytes) -> LoadReport:
    """Read a load generator's output.

    Raises:
        msgspec.DecodeError: It is not a report.
    """
    return msgspec.json.decode(text, type=LoadReport)


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The value below or at which `percent` of the values lie (nearest rank).

    Raises:
        ValueError: There are no values.
    """
    if not ascending:
        raise ValueError("no values")
    rank = math.ceil(percent / 100 * len(ascending))
    return ascending[max(0, rank - 1)]


def spread(values: Sequence[float]) -> Spread:
    """Median, least and largest."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread | None:
    """The spread of round-by-round ratios; None where no round has both."""
    each = [our / their for our, their in zip(ours, theirs, strict=False) if their > 0]
    return spread(each) if each else None


def stalls(report: LoadReport) -> int:
    """How many answers took as long as a delayed acknowledgement makes them take (40 ms)."""
    return sum(value > STALL_US for value in report.latencies_us)


def next_answer_ms(report: LoadReport, event_s: float) -> float:
    """From an event to the first answer to a message that was sent after it.

    Args:
        report: Of a run on a schedule.
        event_s: On the monotonic clock.

    Raises:
        ValueError: No message was answered after it.
    """
    later = (
        at
        for at, number in report.arrivals
        if at > event_s and report.started_s + report.sent_us[number] / 1e6 > event_s
    )
    return (min(later, default=math.nan) - event_s) * 1e3 if report.sent else math.nan


def longest_silence_ms(report: LoadReport, since_s: float, until_s: float) -> float:
    """The longest time without an answer that touches an interval of the monotonic clock."""
    times = [at for at, _ in report.arrivals]
    gaps = [
        later - earlier
        for earlier, later in itertools.pairwise(times)
        if later > since_s and earlier < until_s
    ]
    return max(gaps, default=math.nan) * 1e3


class Switch(NamedTuple):
    """How one model took over from another."""

    # From the last answer of the old to the first of the new; the silence a consumer sees.
    pause_ms: float
    # Longest silence from the order until half a second after the first answer of the new one.
    silence_ms: float
    # From the order to the first answer of the new one.
    order_to_new_s: float
    # Answers of the old one after the first of the new one.
    mixed: int


def switch(report: LoadReport, ordered_s: float, old: str, new: str) -> Switch | None:
    """Find the change of version in a run on a schedule; None when the new one never answered."""
    first_new = next((at for at, n in report.arrivals if report.versions[n] == new), None)
    if first_new is None:
        return None
    old_times = [at for at, n in report.arrivals if report.versions[n] == old]
    before = [at for at in old_times if at < first_new]
    return Switch(
        pause_ms=(first_new - max(before)) * 1e3 if before else math.nan,
        silence_ms=longest_silence_ms(report, ordered_s, first_new + 0.5),
        order_to_new_s=first_new - ordered_s,
        mixed=len(old_times) - len(before),
    )
