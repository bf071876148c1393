"""From topics to lanes and back: which slot a message is for, and when it is acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from agent.daemon.lane import Effects, Inbound, Lane, Pending
from agent.documents.deployment import Slot
from agent.wire import topics

MAX_TOPICS_CACHED = 4096


class Bus(Protocol):
    """What the router needs of a bus; `agent.links.mqtt.MqttLink` is one."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        correlation_data: bytes | None = None,
        on_done: Callable[[bool, str], None] | None = None,
    ) -> None: ...

    def subscribe(self, filters: list[tuple[str, int]]) -> None: ...

    def unsubscribe(self, filters: list[str]) -> None: ...

    def acknowledge(self, message: Inbound) -> None: ...

    def forget(self, message: Inbound) -> None: ...


class Router:
    """Hands each message of the bus to every lane whose filter matches it."""

    def __init__(self, bus: Bus, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._filters: dict[str, tuple[str, int]] = {}
        # What the bus was asked for.
        self._subscribed: dict[str, int] = {}
        self._known: dict[str, tuple[Lane, ...]] = {}
        # Lanes that still work on a message which went to several.
        self._shared: dict[int, int] = {}
        self.unrouted = 0

    def effects(self, lane_name: str, dead_letter: Callable[..., None]) -> Effects:
        """The bus side of a new lane's effects; its worker side is wired by its server."""
        bus = self._bus

        def publish(
            topic: str, payload: bytes, pending: Pending, done: Callable[[bool, str], None]
        ) -> None:
            output = self._lanes[lane_name].spec.output
            bus.publish(
                topic,
                payload,
                qos=output.qos,
                retain=output.retain,
                correlation_data=pending.message.correlation_data,
                on_done=done,
            )

        return Effects(
            send=lambda data: None,
            publish=publish,
            acknowledge=self._acknowledge,
            forget=self._forget,
            dead_letter=dead_letter,
            replace_worker=lambda why: None,
            flush_soon=lambda: None,
        )

    def add(self, lane: Lane) -> None:
        self._lanes[lane.name] = lane
        self.follow(lane.name, lane.spec)

    def follow(self, name: str, spec: Slot) -> None:
        """Subscribe to a slot's input, and leave the filter it had before."""
        self._filters[name] = (spec.input.topic, spec.input.qos)
        self._known.clear()
        self._subscribe()

    def remove(self, name: str) -> None:
        self._lanes.pop(name, None)
        self._filters.pop(name, None)
        self._known.clear()
        self._subscribe()

    def _subscribe(self) -> None:
        """Ask for what all slots need, once: where filters overlap, some brokers send a message
        as often as it matches."""
        wanted = topics.widest(self._filters.values())
        new = [row for row in wanted.items() if row not in self._subscribed.items()]
        left = [topic_filter for topic_filter in self._subscribed if topic_filter not in wanted]
        self._subscribed = wanted
        # In this order: a repeat in between is better than a loss.
        if new:
            self._bus.subscribe(new)
        if left:
            self._bus.unsubscribe(left)

    def deliver(self, messages: Sequence[Inbound]) -> None:
        """Give the messages of one read to their lanes, then let each lane send once."""
        now = self._clock()
        known = self._known
        touched: dict[str, Lane] = {}
        for message in messages:
            lanes = known.get(message.topic)
            if lanes is None:
                lanes = self._lookup(message.topic)
            if not lanes:
                self.unrouted += 1
                self._bus.acknowledge(message)
                continue
            if len(lanes) > 1 and message.qos:
                self._shared[id(message)] = len(lanes)
            for lane in lanes:
                lane.arrived(message, now)
                touched[lane.name] = lane
        for lane in touched.values():
            lane.flush(now)

    def _lookup(self, topic: str) -> tuple[Lane, ...]:
        found = tuple(
            lane
            for lane in self._lanes.values()
            if topics.match(self._filters[lane.name][0], topic) is not None
        )
        if len(self._known) >= MAX_TOPICS_CACHED:
            self._known.clear()
        self._known[topic] = found
        return found

    def _acknowledge(self, message: Inbound) -> None:
        if message.qos == 0:
            return
        if self._shared and not self._last_of(message):
            return
        self._bus.acknowledge(message)

    def _forget(self, message: Inbound) -> None:
        if message.qos == 0:
            return
        self._shared.pop(id(message), None)
        self._bus.forget(message)

    def _last_of(self, message: Inbound) -> bool:
        left = self._shared.get(id(message))
        if left is None:
            return True
        if left > 1:
            self._shared[id(message)] = left - 1
            return False
        del self._shared[id(message)]
        return True
