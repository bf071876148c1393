"""What is to be reached: the rows of the table, each with its limits."""

from __future__ import annotations

from dataclasses import dataclass

from bench.stats import Spread


@dataclass(frozen=True)
class Limit:
    """A bound; `at_most` false: the value must be at least it."""

    bound: float
    at_most: bool = True

    def holds(self, value: float) -> bool:
        """Whether a value keeps it; not a number keeps nothing."""
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """One measure.

    Args:
        scenario: Where it was measured.
        figure: Its name among the figures.
        title: For people.
        unit: Of the three values; empty: a count.
        expert, plain: Limits of the ratio of the agent's value to that script's, median of rounds.
        own: Limit of the agent's own value: the median, or with `every` each round's.
    """

    scenario: str
    figure: str
    title: str
    unit: str
    expert: Limit | None = None
    plain: Limit | None = None
    own: Limit | None = None
    every: bool = False

    def own_holds(self, values: Spread) -> bool | None:
        """Whether the agent's own value keeps its limit; None without one."""
        if self.own is None:
            return None
        worst = values.high if self.own.at_most else values.low
        return self.own.holds(worst if self.every else values.median)


def at_least(bound: float) -> Limit:
    """A limit from below."""
    return Limit(bound, at_most=False)


def _zero(scenario: str, figure: str, title: str) -> Row:
    return Row(scenario, figure, title, "", own=Limit(0), every=True)


def _window(
    scenario: str, w1: tuple[Limit | None, ...], w64: tuple[Limit | None, ...]
) -> list[Row]:
    """Rows of a steady scenario; limits: expert and plain, of time or rate, then of CPU."""
    return [
        Row(scenario, "w1_p50_us", "window 1: p50", "µs", w1[0], w1[1]),
        Row(scenario, "w1_p99_us", "window 1: p99", "µs"),
        Row(scenario, "w1_cpu_us", "window 1: CPU a message", "µs", w1[2], w1[3]),
        Row(scenario, "w64_rate", "64 in flight: messages/s", "", w64[0], w64[1]),
        Row(scenario, "w64_p99_us", "64 in flight: p99", "µs"),
        Row(scenario, "w64_cpu_us", "64 in flight: CPU a message", "µs", w64[2], w64[3]),
    ]


_QOS_1_W1 = (Limit(1.1), Limit(1.0), Limit(1.05), Limit(0.9))
_QOS_1_W64 = (at_least(1.6), at_least(5), Limit(0.6), Limit(0.45))
_BIG_W1 = (Limit(1.25), None, None, None)
_BIG_W64 = (at_least(1.1), at_least(1.0), None, None)

# Headings, and what stands below each.
SECTIONS: dict[str, tuple[Row, ...]] = {
    "tab, QoS 0": (
        *_window(
            "tab-0",
            (Limit(1.2), Limit(0.95), Limit(1.15), Limit(0.9)),
            (at_least(1.25), at_least(1.8), Limit(0.7), Limit(0.5)),
        ),
        Row("tab-0", "open_p50_us", "500 messages/s: p50", "µs"),
        Row("tab-0", "open_p99_us", "500 messages/s: p99", "µs"),
    ),
    "tab, QoS 1": (
        *_window("tab-1", _QOS_1_W1, _QOS_1_W64),
        _zero("tab-1", "w1_stalls", "window 1: answers after 30 ms or more"),
    ),
    "tab, QoS 1, on a broker that was not told to set_tcp_nodelay": (
        Row("tab-1-default", "w1_p50_us", "window 1: p50", "µs", _QOS_1_W1[0], _QOS_1_W1[1]),
        Row("tab-1-default", "w1_cpu_us", "window 1: CPU a message", "µs", *_QOS_1_W1[2:]),
        _zero("tab-1-default", "w1_stalls", "window 1: answers after 30 ms or more"),
        Row("tab-1-default", "w64_rate", "64 in flight: messages/s", ""),
    ),
    "kws, QoS 0": (*_window("kws-0", _BIG_W1, _BIG_W64),),
    "img, QoS 0": (*_window("img-0", _BIG_W1, _BIG_W64),),
    "memory (PSS) and start: tab, QoS 0": (
        Row("tab-0", "tree_mb", "all processes, after load", "MB", Limit(1.35)),
        Row("tab-0", "alone_mb", "the same, were nothing else running", "MB", Limit(1.35)),
        Row("tab-0", "root_mb", "the daemon, serving", "MB", own=Limit(30)),
        Row("idle", "idle_mb", "the daemon, idle", "MB", own=Limit(30)),
        Row("tab-0", "start_ms", "start to first prediction", "ms", Limit(1.5)),
    ),
    "what holds the model is killed: tab, QoS 1, 200 messages/s": (
        Row("kill", "next_ms", "next prediction after", "ms", own=Limit(250)),
        _zero("kill", "lost", "lost of 1,000"),
        Row("kill", "duplicates", "answered twice", ""),
    ),
    "another version takes over: tab, QoS 1, 200 messages/s": (
        Row(
            "switch",
            "pause_ms",
            "from the last answer of the old to the first of the new",
            "ms",
            own=Limit(20),
        ),
        Row("switch", "silence_ms", "longest silence, loading included", "ms"),
        _zero("switch", "lost", "lost of 1,000"),
        _zero("switch", "split", "answered by both"),
        _zero("switch", "mixed", "answered by the old after the new"),
        _zero("switch", "disordered", "out of order"),
    ),
}
