"""Whose turn it is on a device that several slots share: start-time fair queueing by the time that
runs really took, below priorities and above quotas. Pure: time is an argument."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from agent.documents.deployment import Share

# How far ahead of its quota a slot may be: so much of a second times the quota.
BURST_S = 0.1


@dataclass
class _Account:
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


class Turns:
    """The slots that share one device, by number."""

    def __init__(self) -> None:
        self._accounts: dict[int, _Account] = {}
        self._now = 0.0

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
        able = [n for n in waiting if self._accounts[n].wait_s(now_s) <= 0.0]
        if not able:
            return None
        chosen = min(able, key=lambda n: (-self._accounts[n].share.priority, self._accounts[n].due))
        self._now = max(self._now, self._accounts[chosen].due)
        return chosen

    def took(self, number: int, seconds: float, now_s: float) -> None:
        """Count what a turn that has just ended took."""
        account = self._accounts[number]
        account.due += seconds
        account.ahead_s, account.at_s = account.drained(now_s) + seconds, now_s

    def wait_s(self, waiting: Collection[int], now_s: float) -> float:
        """Return how long until somebody may go; infinity where nobody waits."""
        return min((self._accounts[n].wait_s(now_s) for n in waiting), default=math.inf)
