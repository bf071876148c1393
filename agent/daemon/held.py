"""How many messages of open windows may stay unacknowledged while the broker still sends."""

from __future__ import annotations

import msgspec

# With MQTT 3.1.1 a broker does not say how many messages it sends unacknowledged; mosquitto's
# default is 20, and windows may hold less than half of that.
HELD_UNKNOWN = 8
# How long a bus may be silent while windows hold messages, before the broker is suspected to wait
# for an acknowledgement; the suspicion comes ever later where it proved wrong.
SUSPECT_FIRST_S, SUSPECT_LAST_S = 10.0, 600.0
# A broker that waited sends its next message at once.
PROMPT_S = 0.5


class HeldBudget(msgspec.Struct):
    """How many unacknowledged messages a slot's open windows may hold.

    A broker sends only so many messages before the first is acknowledged; windows that held them
    all would wait for ever for the next. Some brokers send fewer ahead than they were offered
    (ejabberd one, RabbitMQ ten) and do not say so: they are found out by giving them room.

    `now` is monotonic seconds throughout.
    """

    limit: int = HELD_UNKNOWN
    used: int = 0
    _heard_at: float = 0.0
    _suspect_after_s: float = SUSPECT_FIRST_S
    # When the broker was given room, and how many messages were held until then.
    _given_room: tuple[float, int] | None = None

    def granted(self, receive_maximum: int | None) -> None:
        """Learn how many messages the broker sends before the first is acknowledged.

        Args:
            receive_maximum: As MQTT 5 settles it; None with 3.1.1, where the broker does not say.
        """
        self.limit = HELD_UNKNOWN if receive_maximum is None else receive_maximum // 2

    def heard(self, now: float) -> None:
        """A message came: where room was given just before, the broker had waited for it."""
        self._heard_at = now
        if self._given_room is not None:
            given_at, used = self._given_room
            self._given_room = None
            if now - given_at <= PROMPT_S:
                self.limit = min(self.limit, used - 1)
                self._suspect_after_s = SUSPECT_FIRST_S

    def gives_room(self, now: float) -> bool:
        """Whether to acknowledge one held message now, since the broker may be waiting for it.

        Ask every second or so.
        """
        if self._given_room is not None and now - self._given_room[0] > PROMPT_S:
            self._given_room = None  # it had nothing to send
            self._suspect_after_s = min(SUSPECT_LAST_S, 2 * self._suspect_after_s)
        silent = now - self._heard_at >= self._suspect_after_s
        if not (silent and self.used and self._given_room is None):
            return False
        self._given_room = (now, self.used)
        self._heard_at = now
        return True
