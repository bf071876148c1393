"""The dialect of a plain MQTT broker: topics below one prefix, retained documents."""

from __future__ import annotations

import msgspec

from agent.clouds.dialect import (
    Block,
    Command,
    Desired,
    FromCloud,
    Metered,
    Publication,
    Stale,
)

# What says that a connection is metered; anything else says that it is not.
_YES = (b"true", b"1", b"on", b"yes")


class PlainMqtt(msgspec.Struct, frozen=True):
    """Topics under `prefix`, which ends in a slash (default `edgeward/{device_id}/`)."""

    prefix: str

    def subscriptions(self) -> tuple[tuple[str, int], ...]:
        # What is retained comes in this order: first how packs may come, then which.
        kinds = ("metered", "desired", "command/+")
        return tuple((f"{self.prefix}{kind}", 1) for kind in kinds)

    def receive(
        self,
        topic: str,
        payload: bytes,
        response_topic: str | None,
        correlation_data: bytes | None,
        *,
        retain: bool = False,
    ) -> FromCloud | None:
        if not topic.startswith(self.prefix):
            return None
        kind, _, rest = topic[len(self.prefix) :].partition("/")
        if kind == "desired" and not rest:
            return Desired(payload)
        if kind == "metered" and not rest:
            return Metered(payload.strip().lower() in _YES)
        is_command = kind == "command" and rest and "/" not in rest
        if retain and (is_command or kind == "blocks"):
            # A stored command would be carried out again at every start.
            return Stale(topic)
        if is_command:
            return Command(rest, payload, response_topic, correlation_data)
        if kind == "blocks":
            return Block(topic, payload)
        return None

    def online(self) -> Publication:
        return Publication(f"{self.prefix}status", b"online", qos=1, retain=True)

    def offline(self) -> Publication:
        return Publication(f"{self.prefix}status", b"offline", qos=1, retain=True)

    def reported(self, report: bytes) -> Publication:
        return Publication(f"{self.prefix}reported", report, qos=1, retain=True)

    def telemetry(self, document: bytes) -> Publication:
        return Publication(f"{self.prefix}telemetry", document)

    def event(self, document: bytes) -> Publication:
        return Publication(f"{self.prefix}events", document)

    def dead_letter(self, slot: str, document: bytes) -> Publication:
        return Publication(f"{self.prefix}dead-letter/{slot}", document)
