"""Which version of MQTT to speak with a broker that may not know 5."""

from __future__ import annotations

from typing import Final, Literal

from agent.wire.mqtt.packets import Version

# Some brokers that do not know MQTT 5 wait for more of its CONNECT, for ever.
_ANSWER_TO_5_WITHIN_S: Final = 5.0
_FALLBACKS_THAT_SETTLE: Final = 2


class Versions:
    """The version of each connection, one after another.

    With "auto" each connection tries 5 first. A broker that says it does not know 5 is believed
    from then on. One that closes or is silent may also have been restarting: 3.1.1 is tried at
    once, and 5 gets another chance, until 3.1.1 has worked in its place twice in a row.
    """

    def __init__(self, wanted: Literal[4, 5, "auto"]) -> None:
        self.current: Version = 5 if wanted == "auto" else wanted
        self._settled = wanted != "auto"
        self._falls_back = False
        self._fell_back = 0

    def opened(self) -> None:
        """A connection with the current version begins."""
        self._falls_back = False

    def answer_within_s(self, patience_s: float) -> float:
        """How long the broker may take for CONNACK."""
        if self._settled or self.current == 4:
            return patience_s
        return min(patience_s, _ANSWER_TO_5_WITHIN_S)

    def accepted(self) -> None:
        """The broker took the current version."""
        if not self._settled:
            self._fell_back = self._fell_back + 1 if self.current == 4 else 0
            self._settled = self._fell_back == _FALLBACKS_THAT_SETTLE

    def refused(self, *, by_name: bool) -> bool:
        """The broker did not take the current version, as far as one can tell.

        Args:
            by_name: It said so.

        Returns:
            Whether it makes sense to try again at once.
        """
        if self._settled or self.current == 4:
            return False
        self.current = 4
        self._settled = by_name
        self._falls_back = True
        return True

    def closed(self) -> None:
        """The connection is over; choose the version of the next."""
        if not (self._settled or self._falls_back):
            self.current = 5
