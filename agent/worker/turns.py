"""Whose turn it is on a device that several slots share: start-time fair queueing by the time that
runs really took, below priorities and above quotas. Pure: time is an argument.

Every slot has one request at a time, so whoever was just answered is never among those that wait.
Where it would be its turn again, the device is kept idle for it for a moment; else a slot with long
runs would have most of the time, and a priority no effect.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec

from agent.documents.deployment import Share

# How far ahead of its quota a slot may be: so much of a second times the quota.
BURST_S = 0.1
# How long the device is kept for the next request: at most this, and this share of the last run.
KEPT_S, KEPT_SHARE = 0.001, 0.5


class _Account(msgspec.Struct):
    share: Share
    # The virtual time at which its next run starts: how much it has had, as the others count.
    due: float = 0.0
    # What it has had beyond its quota, in seconds of the device, when this was last looked at.
    ahead_s: float = 0.0
    at_s: float = 0.0

    def drained(self, now_s: float) -> float:
        return max(0.0, self.ahead_s - self.share.quota * (now_s - self.at_s))

    def wait_s(self, now_s: float) -> float:
        over = self.drained(now_s) - BURST_S * self.share.quota
        return max(0.0, over / self.share.quota)

    @property
    def rank(self) -> tuple[int, float]:
        """The least goes first."""
        return -self.share.priority, self.due


class Turns:
    """The slots that share one device, by number."""

    def __init__(self) -> None:
        self._accounts: dict[int, _Account] = {}
        self._now = 0.0
        # Who had the last turn, and until when the device may be kept for it.
        self._last, self._kept_until_s = 0, 0.0

    def join(self, number: int, share: Share, now_s: float) -> None:
        """Take part from now on, or with another share."""
        known = self._accounts.get(number)
        if known is None:
            self._accounts[number] = _Account(share, self._now, 0.0, now_s)
        else:
            known.share = share

    def leave(self, number: int) -> None:
        """Be forgotten."""
        self._accounts.pop(number, None)

    def ask(self, number: int) -> None:
        """Want a turn. Time in which nothing was wanted is not saved up."""
        account = self._accounts[number]
        account.due = max(account.due, self._now)

    def next(self, waiting: Collection[int], now_s: float) -> int | None:
        """Return who of those waiting is to go; None: nobody may yet (see `wait_s`)."""
        chosen = self._first(waiting, now_s)
        if chosen is None or self._kept_from(chosen, waiting, now_s):
            return None
        self._now = max(self._now, self._accounts[chosen].due)
        return chosen

    def took(self, number: int, seconds: float, now_s: float) -> None:
        """Count what a turn that has just ended took."""
        account = self._accounts[number]
        account.due += seconds
        before = account.drained(now_s - seconds)
        account.ahead_s = before + seconds * (1.0 - account.share.quota)
        account.at_s = now_s
        self._last, self._kept_until_s = number, now_s + min(KEPT_S, KEPT_SHARE * seconds)

    def wait_s(self, waiting: Collection[int], now_s: float) -> float:
        """Return how long until somebody may go; infinity where nobody waits."""
        chosen = self._first(waiting, now_s)
        if chosen is None:
            return min((self._accounts[n].wait_s(now_s) for n in waiting), default=math.inf)
        if self._kept_from(chosen, waiting, now_s):
            return self._kept_until_s - now_s
        return 0.0

    def _first(self, waiting: Collection[int], now_s: float) -> int | None:
        able = [n for n in waiting if self._accounts[n].wait_s(now_s) <= 0.0]
        return min(able, key=lambda n: self._accounts[n].rank, default=None)

    def _kept_from(self, chosen: int, waiting: Collection[int], now_s: float) -> bool:
        last = self._accounts.get(self._last)
        if last is None or self._last in waiting or now_s >= self._kept_until_s:
            return False
        return last.wait_s(now_s) <= 0.0 and last.rank < self._accounts[chosen].rank
