"""What we want to receive, against what the broker's session has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from agent.errors import UsageError
from agent.wire.mqtt.events import FilterResult, Subscribed
from agent.wire.mqtt.options import QOS_2, Granted
from agent.wire.mqtt.packets import encode_topic_filter
from agent.wire.mqtt.reasons import sentence

Filters = tuple[tuple[str, int], ...]

# Some brokers take no more filters than this in one SUBSCRIBE.
_FILTERS_AT_ONCE: Final = 8
_HEAD_AT_MOST: Final = 8
_PACKET_TOO_LARGE: Final = 0x95
_WILDCARDS_UNAVAILABLE: Final = 0xA2


class Subscriptions:
    """Remembers filters over connections and says which requests are due."""

    def __init__(self, max_topic_bytes: int) -> None:
        self._max_topic_bytes = max_topic_bytes
        self._wanted: dict[str, int] = {}
        self._standing: set[str] = set()
        self._leaving: dict[str, None] = {}

    def want(self, filters: Iterable[tuple[str, int]]) -> Filters:
        """Remember filters; all or none.

        Returns:
            Those to ask for now.

        Raises:
            InvalidTopic: A filter that MQTT forbids.
            TopicTooLong: Above the limit that was set.
            UsageError: QoS 2.
        """
        asked = tuple(filters)
        for topic, qos in asked:
            encode_topic_filter(topic, self._max_topic_bytes)
            if qos not in {0, 1}:
                raise UsageError(f"subscribing to {topic!r}: {QOS_2}")
        for topic, qos in asked:
            self._wanted[topic] = qos
            self._standing.discard(topic)
            self._leaving.pop(topic, None)
        return asked

    def leave(self, filters: Iterable[str]) -> tuple[str, ...]:
        """Forget filters; those that were never asked for are taken too, to clear old sessions.

        Raises:
            InvalidTopic: A filter that MQTT forbids.
        """
        left = tuple(filters)
        for topic in left:
            encode_topic_filter(topic, self._max_topic_bytes)
        for topic in left:
            self._wanted.pop(topic, None)
            self._standing.discard(topic)
            self._leaving[topic] = None
        return left

    def due(self, *, session_present: bool) -> tuple[Filters, tuple[str, ...]]:
        """Say what a new connection has to subscribe to and to unsubscribe from."""
        if not session_present:
            self._standing.clear()
            self._leaving.clear()
        wanted = tuple(row for row in self._wanted.items() if row[0] not in self._standing)
        return wanted, tuple(self._leaving)

    def left(self, filters: Iterable[str]) -> None:
        """The broker confirmed that filters are gone."""
        for topic in filters:
            self._leaving.pop(topic, None)

    def answered(self, asked: Filters, codes: bytes, from_broker: str) -> Subscribed:
        """Turn a SUBACK's codes, one for each filter, into results."""
        results = []
        for (topic, qos), code in zip(asked, codes, strict=True):
            if code >= 0x80:
                results.append(refused(topic, code, from_broker))
                continue
            if self._wanted.get(topic) == qos:
                self._standing.add(topic)
            results.append(FilterResult(topic, code))
        return Subscribed(tuple(results))


def refused(topic: str, code: int, from_broker: str = "") -> FilterResult:
    """Say that a filter was refused, and why."""
    # 0x80 is all that 3.1.1 can say.
    why = "the broker does not grant it: check this client's rights" if code == 0x80 else ""
    if from_broker or not why:
        why = sentence(code, from_broker)
    return FilterResult(topic, None, f"{topic!r}: {why}")


def split(asked: Filters, granted: Granted) -> tuple[dict[str, int], tuple[FilterResult, ...]]:
    """Tell what the broker can be asked from what it said it does not take."""
    sendable: dict[str, int] = {}
    denied: list[FilterResult] = []
    for topic, qos in asked:
        if not granted.wildcard_available and ("+" in topic or "#" in topic):
            denied.append(refused(topic, _WILDCARDS_UNAVAILABLE))
        elif _size(topic) + _HEAD_AT_MOST > granted.max_packet_size:
            denied.append(refused(topic, _PACKET_TOO_LARGE))
        else:
            sendable[topic] = qos
    return sendable, tuple(denied)


def batches(filters: Iterable[str], max_packet_size: int) -> Iterator[tuple[str, ...]]:
    """Cut filters into lots for one packet each."""
    lot: list[str] = []
    room = max_packet_size - _HEAD_AT_MOST
    for topic in filters:
        size = _size(topic)
        if lot and (len(lot) == _FILTERS_AT_ONCE or size > room):
            yield tuple(lot)
            lot = []
            room = max_packet_size - _HEAD_AT_MOST
        lot.append(topic)
        room -= size
    if lot:
        yield tuple(lot)


def _size(topic: str) -> int:
    return len(topic.encode()) + 3
