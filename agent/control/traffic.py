"""How much of the network fetching may take, and when: limits, windows, metered connections, turns.

Times are monotonic seconds, rates KiB a second.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agent.documents.settings import FetchSettings

KIB = 1024
# What `metered = "slow"` leaves.
METERED_KIB_S = 32
# Longer than this no fetch waits for another.
PATIENCE_S = 600.0
# A server that sends less than this is treated as one that sends nothing.
STALL_BYTES_PER_S, STALL_WINDOW_S = 1024, 60.0
BURST_BYTES_MIN = 64 * KIB
READ_BYTES = 64 * KIB
# Less could not be read in pieces that are worth a system call.
READ_BYTES_MIN = 1024
SOCKET_BYTES_MIN, SOCKET_BYTES_MAX = 16 * KIB, 256 * KIB


class Surroundings(msgspec.Struct, frozen=True):
    """What the decision rests on, beside the settings.

    Attributes:
        minute: Of the day, by local time; None while the clock is unset.
        metered: Somebody said that each byte costs money now.
    """

    minute: int | None = None
    metered: bool = False


class Go(msgspec.Struct, frozen=True):
    """Fetch; at most so fast, all fetches together. 0: as fast as it goes."""

    max_kib_s: int = 0


class Hold(msgspec.Struct, frozen=True):
    """Do not fetch over a network now."""

    reason: str
    hint: str


def judge(settings: FetchSettings, here: Surroundings) -> Go | Hold:
    """Whether the settings let anything be fetched over a network now, and how fast."""
    if here.metered and settings.metered == "refuse":
        return Hold(
            "the connection is metered, and packs do not come over such a one",
            'see [fetch] metered, and whoever publishes "metered"',
        )
    if settings.window and not _inside(settings.window, here.minute):
        return Hold(f"packs come from {settings.window} only", "see [fetch] window")
    slow = here.metered and settings.metered == "slow"
    limits = (settings.max_kib_s, METERED_KIB_S if slow else 0)
    return Go(min((limit for limit in limits if limit), default=0))


def share_of(max_kib_s: int, fetches: int) -> int:
    """What one of several fetches may take of a limit; 0 where there is none."""
    return max(1, max_kib_s // max(1, fetches)) if max_kib_s else 0


class Turn(msgspec.Struct, frozen=True):
    """One fetch that runs or would like to.

    Attributes:
        urgent: A slot waits for it that serves nothing.
        local: It needs no network, as from a medium of this machine.
        waited_s: How long ago it began, or would have.
    """

    urgent: bool
    local: bool = False
    waited_s: float = 0.0


def may_run(one: Turn, all_turns: Iterable[Turn]) -> bool:
    """Whether a fetch may take the line: what a slot waits for that serves nothing goes first, but
    its source may be slow for ever, so the others do not wait for ever."""
    if one.local or one.urgent or one.waited_s >= PATIENCE_S:
        return True
    return not any(other.urgent and not other.local for other in all_turns)


def minute_of(window_time: str) -> int:
    """Minute of the day of `HH:MM`."""
    hours, _, minutes = window_time.partition(":")
    return int(hours) * 60 + int(minutes)


def _inside(window: str, minute: int | None) -> bool:
    if minute is None:
        return True  # a clock that is unset says nothing of the time of day
    begin, end = map(minute_of, window.split("-"))
    if begin <= end:
        return begin <= minute < end or begin == end
    return minute >= begin or minute < end


class Bucket:
    """A token bucket of bytes. Plain code without a clock; not for several threads at once.

    It begins empty, so that many short connections take no more than one long one.
    """

    def __init__(self, kib_s: int, now: float) -> None:
        """
        Args:
            kib_s: The rate; 0: no limit.
        """
        self._rate = kib_s * KIB
        self._capacity = max(BURST_BYTES_MIN, self._rate)
        self._tokens = 0.0
        self._at = now

    @property
    def read_bytes(self) -> int:
        """How much to read at a time, so that a slow line flows and does not jump."""
        if not self._rate:
            return READ_BYTES
        return max(READ_BYTES_MIN, min(READ_BYTES, self._rate // 8))

    @property
    def socket_bytes(self) -> int:
        """How much the kernel should take on its own; 0: as much as it likes."""
        return max(SOCKET_BYTES_MIN, min(SOCKET_BYTES_MAX, self._rate)) if self._rate else 0

    def take(self, count: int, now: float) -> float:
        """Take tokens for a read; returns how many seconds to wait before it."""
        if not self._rate:
            return 0.0
        gained = (now - self._at) * self._rate
        self._tokens = min(self._capacity, self._tokens + gained) - count
        self._at = now
        return max(0.0, -self._tokens / self._rate)

    def give_back(self, count: int) -> None:
        """Return the tokens of bytes that did not come."""
        if self._rate:
            self._tokens += count


class StallWatch:
    """Sees a server that trickles; one that says nothing at all is seen by the read's time-out."""

    def __init__(self, now: float, kib_s: int = 0) -> None:
        """
        Args:
            kib_s: The rate that we ask for ourselves; 0: no limit.
        """
        self._least = min(STALL_BYTES_PER_S, kib_s * KIB // 4 or STALL_BYTES_PER_S)
        self._began, self._received = now, 0

    def received(self, count: int, now: float) -> int | None:
        """Note what came.

        Returns:
            How many bytes came in the last window, where those are too few.
        """
        self._received += count
        if now - self._began < STALL_WINDOW_S:
            return None
        seen, least = self._received, self._least * (now - self._began)
        self._began, self._received = now, 0
        return seen if seen < least else None
