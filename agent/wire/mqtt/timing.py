"""When a connection has to be pinged, and when a broker is given up."""

from __future__ import annotations

from typing import Final

# Before the keep alive is over, so that a slow network does not make it late.
_PING_AFTER: Final = 0.75


class Timing:
    """The times of one connection, in monotonic seconds.

    Args:
        now: When its transport was opened.
        keep_alive_s: Longest silence; 0: never ping.
        answer_within_s: How long the broker may take for CONNACK and PINGRESP.
    """

    def __init__(self, now: float, keep_alive_s: float, answer_within_s: float) -> None:
        self.opened_at = now
        self.last_in = now
        self.last_out = now
        self.pinged_at: float | None = None
        self.keep_alive_s = keep_alive_s
        self.answer_within_s = answer_within_s

    def connack_due(self) -> float:
        """When the broker must have answered CONNECT."""
        return self.opened_at + self.answer_within_s

    def due(self) -> float | None:
        """When to ping, or while a ping is under way when to give the broker up."""
        if not self.keep_alive_s:
            return None
        if self.pinged_at is None:
            # Silence of ours the broker would not bear, silence of its own may be death.
            return min(self.last_in, self.last_out) + self.keep_alive_s * _PING_AFTER
        # On a slow network the answer may queue behind messages: any byte is a sign of life.
        last_sign = max(self.pinged_at, self.last_in) + self.answer_within_s
        return min(last_sign, self.pinged_at + 2 * self.keep_alive_s + self.answer_within_s)
