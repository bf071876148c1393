"""The far end of the spool: what it was sent, what it was told is missing, and the sum of both."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

from agent.errors import StoreError
from agent.store.messages import Entry, Kind
from agent.store.spool import Spool

KINDS = {"events": Kind.EVENT, "telemetry": Kind.TELEMETRY, "predictions": Kind.TELEMETRY}
Key = tuple[str, int]


@dataclass
class Told:
    """One gap as the consumer knows it."""

    stream: str
    numbers: set[int]
    count: int
    reason: str
    exact: bool


@dataclass
class Consumer:
    """Keeps all it receives; a message that comes again must be the same."""

    received: dict[Key, bytes] = field(default_factory=dict)
    repeats: int = 0
    order: list[Key] = field(default_factory=list)
    gaps: dict[str, Told] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        if entry.gap is not None:
            told = json.loads(entry.payload)
            numbers = set(range(told["from_seq"], told["to_seq"] + 1))
            self.gaps[told["id"]] = Told(
                told["stream"], numbers, told["count"], told["reason"], told["exact"]
            )
            return
        key = (entry.stream, entry.number)
        if key in self.received:
            assert self.received[key] == entry.payload, f"{key} was used twice"
            self.repeats += 1
        else:
            self.order.append(key)
        self.received[key] = entry.payload

    def drain(self, spool: Spool, *, acknowledge: bool = True, most: int = 10**9) -> int:
        """Take all that is pending; how much that was."""
        count = 0
        pending = spool.pending()
        while count < most and (entry := pending.take()):
            self.take(entry)
            count += 1
            if acknowledge:
                spool.acknowledge(entry.sequence)
        return count

    def copy(self) -> Consumer:
        return deepcopy(self)

    def covered(self) -> set[Key]:
        return {(gap.stream, number) for gap in self.gaps.values() for number in gap.numbers}

    def unaccounted(self, produced: dict[Key, bytes]) -> set[Key]:
        """Messages neither received nor told as missing: there must be none, ever."""
        return set(produced) - set(self.received) - self.covered()

    def assert_sums(self, produced: dict[Key, bytes]) -> None:
        """For every stream: sent and counted in gaps is what was produced."""
        assert not self.unaccounted(produced)
        sent: defaultdict[str, int] = defaultdict(int)
        for stream, _ in self.received:
            sent[stream] += 1
        for gap in self.gaps.values():
            sent[gap.stream] += gap.count
        for stream in {stream for stream, _ in produced}:
            assert sent[stream] == sum(key[0] == stream for key in produced), stream
        exact = {(gap.stream, n) for gap in self.gaps.values() if gap.exact for n in gap.numbers}
        assert not exact & set(self.received)


@dataclass
class Producer:
    """Appends numbered messages and remembers each, also those that were refused."""

    produced: dict[Key, bytes] = field(default_factory=dict)
    ts_ms: Callable[[int], int] = lambda count: 1_700_000_000_000 + count * 1000

    def append(self, spool: Spool, stream: str, size: int = 100) -> bool:
        """Append one message; False when the spool said that it was lost."""
        number = spool.next_number(stream)
        payload = f"{stream} {number} {len(self.produced)}".encode().ljust(size, b".")
        assert (stream, number) not in self.produced, "a number was given twice"
        self.produced[stream, number] = payload
        ts_ms = self.ts_ms(len(self.produced))
        try:
            assert spool.append(KINDS[stream], stream, payload, ts_ms=ts_ms) == number
        except StoreError:
            return False
        return True
