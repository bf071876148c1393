"""Our QoS 1 messages from the call to publish until the broker has them."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import Any

import msgspec

from agent.errors import QueueFull
from agent.wire.mqtt.options import ConnectOptions


class Outgoing(msgspec.Struct, eq=False):
    """One message of ours at QoS 1.

    Args:
        field: Topic name, encoded.
        payload: Its bytes.
        retain: As asked for.
        block: Its MQTT 5 properties, encoded.
        token: Comes back in `Published`.
        size: Bytes of all that varies.
        packet_id: 0 until it is first sent in the broker's present session.
    """

    field: bytes
    payload: bytes
    retain: bool
    block: bytes
    token: Any
    size: int
    packet_id: int = 0


class Outbox:
    """Keeps the order of publishing, through any number of connections, within fixed bounds.

    A message waits, is in flight under a packet identifier, and is gone when the broker
    acknowledges it. What was in flight when a connection ended waits again, ahead of the rest.
    """

    def __init__(self, options: ConnectOptions) -> None:
        self.inflight: dict[int, Outgoing] = {}
        self.waiting: deque[Outgoing] = deque()
        self.bytes = 0
        self._max_waiting = options.max_queued
        self._max_bytes = options.max_queued_bytes
        self._interrupted: set[int] = set()
        self._last_id = 0

    def __len__(self) -> int:
        return len(self.inflight) + len(self.waiting)

    def take(self, size: int) -> None:
        """Make room for a message.

        Raises:
            QueueFull: There is none.
        """
        if self.bytes + size > self._max_bytes:
            raise QueueFull(
                f"{self.bytes} bytes wait for the broker, {size} more pass {self._max_bytes}"
            )
        self.bytes += size

    def wait(self, item: Outgoing) -> None:
        """Take a message in that cannot be sent yet.

        Raises:
            QueueFull: Too many wait.
        """
        if len(self.waiting) >= self._max_waiting:
            raise QueueFull(f"{len(self.waiting)} messages wait for the broker")
        self.take(item.size)
        self.waiting.append(item)

    def resend(self, item: Outgoing) -> None:
        """Put a message back in flight that a connection's end had interrupted."""
        self._interrupted.discard(item.packet_id)
        self.inflight[item.packet_id] = item

    def new_id(self, others: Container[int]) -> int:
        """Choose a packet identifier that nothing in flight or interrupted has.

        Args:
            others: Packet identifiers in use for something else.
        """
        number = self._last_id
        while True:
            number = number % 0xFFFF + 1
            if not (number in self.inflight or number in others or number in self._interrupted):
                self._last_id = number
                return number

    def done(self, packet_id: int) -> Outgoing | None:
        """Take out what the broker acknowledged; None when nothing has that identifier."""
        item = self.inflight.pop(packet_id, None)
        if item is not None:
            self.bytes -= item.size
        return item

    def interrupt(self) -> None:
        """The connection is gone: what was in flight waits again, in front and in order."""
        self._interrupted.update(self.inflight)
        self.waiting.extendleft(reversed(self.inflight.values()))
        self.inflight.clear()

    def restart(self) -> None:
        """The broker has no session of ours: everything is to be sent as new."""
        for item in self.waiting:
            item.packet_id = 0
        self._interrupted.clear()

    def clear(self) -> list[Outgoing]:
        """Give everything up and return it."""
        rest = [*self.inflight.values(), *self.waiting]
        self.inflight.clear()
        self.waiting.clear()
        self._interrupted.clear()
        self.bytes = 0
        return rest
