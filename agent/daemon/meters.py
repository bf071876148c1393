"""Counters and latency sketches of one slot: cheap per message, summarised per telemetry window."""

from __future__ import annotations

from collections import Counter

import msgspec

from agent.wire import frames

MAX_CLASSES = 65_536


# Buckets grow by 2^(1/8), 9 % a step, from 1 µs to over an hour: quantiles within 4.5 %.
BUCKETS = 40 * 8


def _bucket(microseconds: int) -> int:
    """The top bit gives the doubling, the next three the step in it: no logarithm."""
    us = microseconds if microseconds > 0 else 1
    top = us.bit_length() - 1
    step = (us >> (top - 3)) & 7 if top >= 3 else (us << (3 - top)) & 7
    return min((top << 3) | step, BUCKETS - 1)


# Most messages take less than 4 ms: their bucket is looked up.
_SHORT = tuple(map(_bucket, range(4096)))


class LatencySketch:
    """A histogram of microseconds in logarithmic buckets; bounded, no floats kept."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS

    def add(self, microseconds: int) -> None:
        short = 0 <= microseconds < 4096
        self.counts[_SHORT[microseconds] if short else _bucket(microseconds)] += 1

    def quantile_ms(self, q: float) -> float | None:
        """The q-quantile in milliseconds, or None where nothing was counted."""
        count = sum(self.counts)
        if not count:
            return None
        rank = q * (count - 1)
        seen = 0
        for bucket, number in enumerate(self.counts):
            seen += number
            if seen > rank:
                low = (1 << (bucket >> 3)) * (1 + (bucket & 7) / 8)
                return round(low * (1 + 0.5 / 8) / 1000, 4)
        return None


class SlotMeters(msgspec.Struct):
    """What happened in one slot since it began (the counters) and since the last telemetry
    document (`window`)."""

    received: int = 0
    unrouted: int = 0
    predictions: int = 0
    absorbed: int = 0
    rejected: int = 0
    sent: int = 0
    unsent: int = 0
    dropped: int = 0
    skipped: int = 0
    redelivered: int = 0
    retried: int = 0
    bad_outputs: int = 0
    dead_letters: int = 0
    acknowledged_early: int = 0
    worker_restarts: int = 0
    state_lost: int = 0
    classes: Counter[int] = msgspec.field(default_factory=Counter)
    total: LatencySketch = msgspec.field(default_factory=LatencySketch)
    queue: LatencySketch = msgspec.field(default_factory=LatencySketch)
    decode: LatencySketch = msgspec.field(default_factory=LatencySketch)
    run: LatencySketch = msgspec.field(default_factory=LatencySketch)
    encode: LatencySketch = msgspec.field(default_factory=LatencySketch)

    def answered(self, outcome: int, result: frames.Result, total_s: float) -> None:
        """Count one answer, so many seconds after its message came."""
        decode_us, run_us, encode_us, class_index, _, _, _ = result
        total_us = int(total_s * 1e6)
        if outcome == frames.PREDICTION:
            self.predictions += 1
            self.run.add(run_us)
            self.encode.add(encode_us)
            # A worker is not trusted to name classes that exist.
            if 0 <= class_index < MAX_CLASSES:
                self.classes[class_index] += 1
        elif outcome == frames.ABSORBED:
            self.absorbed += 1
        else:
            self.rejected += 1
        self.decode.add(decode_us)
        self.total.add(total_us)
        self.queue.add(total_us - decode_us - run_us - encode_us)

    @property
    def answers(self) -> int:
        """Messages that workers have answered, in whatever way."""
        return self.predictions + self.absorbed + self.rejected

    def new_window(self) -> None:
        """Start the next telemetry window: sketches and classes begin anew, counters go on."""
        self.classes = Counter()
        self.total, self.queue = LatencySketch(), LatencySketch()
        self.decode, self.run, self.encode = LatencySketch(), LatencySketch(), LatencySketch()
