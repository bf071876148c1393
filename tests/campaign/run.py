"""Runs a campaign: hands numbers to lanes, watches that each is answered in time, adds up."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from tests.campaign.course import ALL_DEADLINES_S
from tests.campaign.lane import Order, current
from tests.campaign.outcome import Outcome
from tests.campaign.sources import Source

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LANES = 2
_END_DEADLINE_S = 10.0


class _Lane:
    """One process that takes files their way, and the order that it is at work on."""

    def __init__(self, folder: Path) -> None:
        with (folder / "lanes.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.campaign.lane", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=REPOSITORY,
                # Nothing may depend on the order of a set: the same seed gives the same files.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        self.order: Order | None = None
        self.since = 0.0

    def give(self, order: Order) -> None:
        assert self.process.stdin is not None
        self.order, self.since = order, time.monotonic()
        self.process.stdin.write(msgspec.json.encode(order) + b"\n")
        self.process.stdin.flush()

    def take(self) -> Outcome | None:
        """Return the answer; None: the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return msgspec.json.decode(line, type=Outcome) if line.endswith(b"\n") else None

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(_END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Campaign:
    """Files of one seed, taken their way by a few lanes at once.

    Args:
        sources: The valid models.
        folder: For packs in the making and for the files that must be kept.
        told: Is called with each outcome.
    """

    def __init__(
        self, sources: Iterable[Source], folder: Path, told: Callable[[Outcome], None]
    ) -> None:
        self._folder = folder
        self._told = told
        self.outcomes: list[Outcome] = []
        (folder / "sources.json").write_bytes(msgspec.json.encode(list(sources)))
        self.kept = folder / "offenders"
        self.kept.mkdir(exist_ok=True)

    def run(self, orders: Iterable[Order], *, lanes: int = LANES, until: float = 0.0) -> None:
        """Take all files their way.

        Args:
            orders: What to do.
            lanes: How many at once.
            until: By `time.monotonic`: no file is begun after that; 0: no such time.
        """
        waiting = deque(orders)
        selector = selectors.DefaultSelector()
        for _ in range(min(lanes, len(waiting))):
            self._begin(selector, waiting)
        while selector.get_map():
            ready = [key for key, _ in selector.select(1.0)]
            for key in ready or self._late(selector):
                lane: _Lane = key.data
                selector.unregister(key.fileobj)
                if not ready:
                    lane.process.kill()
                if until and time.monotonic() > until:
                    waiting.clear()
                self._answered(lane, lane.take())
                if lane.order is not None:
                    lane.end()
                    self._begin(selector, waiting)
                elif waiting:
                    lane.give(waiting.popleft())
                    selector.register(key.fileobj, selectors.EVENT_READ, lane)
                else:
                    lane.end()
        selector.close()

    def _begin(self, selector: selectors.BaseSelector, waiting: deque[Order]) -> None:
        if waiting:
            lane = _Lane(self._folder)
            lane.give(waiting.popleft())
            assert lane.process.stdout is not None
            selector.register(lane.process.stdout, selectors.EVENT_READ, lane)

    def _late(self, selector: selectors.BaseSelector) -> list[selectors.SelectorKey]:
        limit = time.monotonic() - ALL_DEADLINES_S
        return [key for key in selector.get_map().values() if key.data.since < limit]

    def _answered(self, lane: _Lane, found: Outcome | None) -> None:
        order = lane.order
        assert order is not None
        if found is None:
            found = _lost(order, lane)
        else:
            lane.order = None
        self.outcomes.append(found)
        if found.offences:
            self._keep(lane, found)
        self._told(found)

    def _keep(self, lane: _Lane, found: Outcome) -> None:
        """Save an offender, so that it can be replayed."""
        words = msgspec.json.format(msgspec.json.encode(found), indent=1)
        (self.kept / f"{found.id}.json").write_bytes(words)
        shutil.copyfile(current(self._folder, lane.process.pid), self.kept / f"{found.id}.model")


def _lost(order: Order, lane: _Lane) -> Outcome:
    """Return the outcome of a file that the lane itself did not live through."""
    waited_s = time.monotonic() - lane.since
    how = "hung" if waited_s > ALL_DEADLINES_S else "ended"
    return Outcome(
        id=f"{order.seed}-{order.number}",
        source=order.source,
        format="",
        mutation=order.mutation,
        bytes=0,
        digest="",
        end="lost",
        offences=(f"the parent of the workers {how} after {waited_s:.1f} s",),
    )


def replay(folder: Path, name: str) -> Order:
    """Return the order to take a file its way again, by its id (`SEED-NUMBER`).

    An offender's own bytes are used where they were kept; any other file is made again.
    """
    seed, _, number = name.rpartition("-")
    kept = folder / "offenders" / f"{name}.model"
    if not kept.exists():
        return Order(int(seed), int(number))
    told = msgspec.json.decode(kept.with_suffix(".json").read_bytes(), type=Outcome)
    return Order(int(seed), int(number), str(kept), told.source, told.mutation)
