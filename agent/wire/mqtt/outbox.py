"""Our QoS 1 messages from the call to publish until the broker has them."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import Any

import msgspec

from agent.wire.mqtt.errors import QueueFull
from agent.wire.mqtt.options import ConnectOptions


class Outgoing(msgspec.Struct):
    """One message of ours at QoS 1.

    Args:
        field: Topic name, encoded.
        payload: Its bytes.
        retain: As asked for.
        block: Its MQTT 5 properties, encoded.
        token: Comes back in `Published`.
        packet_id: 0 until it is first sent in the broker's present session.
    """

    field: bytes
    payload: bytes
    retain: bool
    block: bytes
    token: Any
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

    def add(self, item: Outgoing, *, at_once: bool) -> None:
        """Take a message in; it waits unless it can be sent `at_once`.

        Raises:
            QueueFull: It would pass one of the bounds.
        """
        size = len(item.payload) + len(item.field)
        if self.bytes + size > self._max_bytes:
            raise QueueFull(
                f"{self.bytes} bytes wait for the broker, {size} more pass {self._max_bytes}"
            )
        if not at_once:
            if len(self.waiting) >= self._max_waiting:
                raise QueueFull(f"{len(self.waiting)} messages wait for the broker")
            self.waiting.append(item)
        self.bytes += size

    def send(self, item: Outgoing, others: Container[int]) -> bool:
        """Put a message in flight under its own or a new packet identifier.

        Args:
            item: Not waiting any more.
            others: Packet identifiers in use for something else.

        Returns:
            Whether it may have been sent before in this session of the broker (DUP).
        """
        repeated = item.packet_id != 0
        if repeated:
            self._interrupted.discard(item.packet_id)
        else:
            item.packet_id = self.new_id(others)
        self.inflight[item.packet_id] = item
        return repeated

    def new_id(self, others: Container[int]) -> int:
        """Choose a packet identifier that nothing in flight or interrupted has."""
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
            self.forget(item)
        return item

    def forget(self, item: Outgoing) -> None:
        """Give back the room of a message that is in no queue any more."""
        self.bytes -= len(item.payload) + len(item.field)

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
