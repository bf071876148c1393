"""What a cloud's dialect must say: the topics and envelopes of one cloud, without a socket."""

from __future__ import annotations

from typing import Protocol

import msgspec


class Publication(msgspec.Struct, frozen=True):
    """Something to publish on the link."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False


class Desired(msgspec.Struct, frozen=True):
    """A desired document, as bytes; empty where it was taken away."""

    payload: bytes


class Command(msgspec.Struct, frozen=True):
    """Somebody asks for something and may want an answer."""

    name: str
    payload: bytes
    response_topic: str | None
    correlation_data: bytes | None


class Block(msgspec.Struct, frozen=True):
    """A message of the block protocol, for the fetcher."""

    topic: str
    payload: bytes


class Metered(msgspec.Struct, frozen=True):
    """Somebody says whether each byte costs money now."""

    on: bool


class Stale(msgspec.Struct, frozen=True):
    """A message for the agent that says nothing now: it was meant for another time."""

    topic: str


FromCloud = Desired | Command | Block | Metered | Stale


class Dialect(Protocol):
    """One cloud. Every method is pure; the link carries out what they return."""

    def subscriptions(self) -> tuple[tuple[str, int], ...]:
        """Topic filters and QoS that the link needs at all times."""

    def receive(
        self,
        topic: str,
        payload: bytes,
        response_topic: str | None,
        correlation_data: bytes | None,
        *,
        retain: bool = False,
    ) -> FromCloud | None:
        """What a message on the link means; None where it is not for the agent itself.

        Args:
            topic: Where it was published.
            payload: As it came.
            response_topic: Of MQTT 5.
            correlation_data: Of MQTT 5.
            retain: The broker had it stored: it comes again with every new subscription.
        """

    def online(self) -> Publication:
        """Said after each connect."""

    def offline(self) -> Publication:
        """The last will, and said on an orderly stop."""

    def reported(self, report: bytes) -> Publication: ...

    def telemetry(self, document: bytes) -> Publication: ...

    def event(self, document: bytes) -> Publication: ...

    def dead_letter(self, slot: str, document: bytes) -> Publication: ...
