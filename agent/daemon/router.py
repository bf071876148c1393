"""From topics to lanes and back: which slot a message is for, and when it is acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from agent.daemon.lane import Done, HeldBudget, Inbound, Lane, Pending
from agent.wire import topics

# How long a bus may be silent while windows hold messages, before the broker is suspected to wait
# for an acknowledgement; the suspicion comes ever later where it proved wrong.
SUSPECT_FIRST_S, SUSPECT_LAST_S = 10.0, 600.0
# A broker that waited sends its next message at once.
PROMPT_S = 0.5
# With MQTT 3.1.1 a broker does not say how many messages it sends unacknowledged; mosquitto's
# default is 20, and windows may hold less than half of that.
HELD_UNKNOWN = 8


class Bus(Protocol):
    """What the router needs of a bus; `agent.daemon.bus.MqttBus` is one."""

    @property
    def congested(self) -> bool: ...

    def when_room(self, call: Callable[[], None]) -> None: ...

    def publish(
        self,
        topic: str,
        payload: bytes,
        done: Done,
        *,
        qos: int = 0,
        retain: bool = False,
        correlation_data: bytes | None = None,
    ) -> None: ...

    def hold(self) -> None: ...

    def release(self) -> None: ...

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
        # Lanes that still work on a message which went to several, and whether one gave it up.
        self._shared: dict[int, tuple[int, bool]] = {}
        self.budget = HeldBudget(HELD_UNKNOWN)
        self._arrived_at = clock()
        self._suspect_after_s = SUSPECT_FIRST_S
        # When the broker was given room, and how many messages were held until then.
        self._given_room: tuple[float, int] | None = None
        self.unrouted = 0
        bus.when_room(self._room)

    def window(self, receive_maximum: int | None) -> None:
        """Learn how many messages the broker sends before the first is acknowledged.

        Args:
            receive_maximum: As MQTT 5 settles it; None with 3.1.1, where the broker does not say.
        """
        self.budget.limit = HELD_UNKNOWN if receive_maximum is None else receive_maximum // 2

    def look_for_stall(self, now: float) -> None:
        """Give a broker room that may be waiting for it; call this every second or so.

        Some brokers send fewer messages ahead than they were offered (ejabberd one, RabbitMQ ten),
        and none says so. Where windows hold all of them, nothing would ever come again.
        """
        if self._given_room is not None and now - self._given_room[0] > PROMPT_S:
            self._given_room = None  # it had nothing to send
            self._suspect_after_s = min(SUSPECT_LAST_S, 2 * self._suspect_after_s)
        silent = now - self._arrived_at >= self._suspect_after_s
        if silent and self.budget.used and self._given_room is None:
            used = self.budget.used
            # From the slot that holds most: it has least to lose by one.
            lanes = sorted(self._lanes.values(), key=lambda lane: -len(lane.held))
            if any(lane.acknowledge_oldest_held() for lane in lanes):
                self._given_room = (now, used)
                self._arrived_at = now

    def _heard(self, now: float) -> None:
        self._arrived_at = now
        if self._given_room is not None:
            given_at, used = self._given_room
            self._given_room = None
            if now - given_at <= PROMPT_S:
                self.budget.limit = min(self.budget.limit, used - 1)
                self._suspect_after_s = SUSPECT_FIRST_S

    def connect(self, lane: Lane) -> None:
        """Wire a lane to the bus; it gets no messages before `add`."""
        bus, effects = self._bus, lane.effects

        def publish(topic: str, payload: bytes, pending: Pending, retain: bool, done: Done) -> None:
            bus.publish(
                topic,
                payload,
                done,
                qos=lane.spec.output.qos,
                retain=retain,
                correlation_data=pending.message.correlation_data,
            )

        effects.publish = publish
        effects.acknowledge = self._acknowledge
        effects.forget = self._forget
        effects.congested = lambda: bus.congested
        effects.hold, effects.release = bus.hold, bus.release
        lane.budget = self.budget

    def add(self, lane: Lane) -> None:
        """Subscribe to what a lane listens to, or to what it listens to from now on."""
        self._lanes[lane.name] = lane
        self._filters[lane.name] = (lane.spec.input.topic, lane.spec.input.qos)
        self._known.clear()
        self._subscribe()

    def leave(self, name: str) -> None:
        """Ask for nothing more for a lane; what was asked for may still come."""
        self._filters.pop(name, None)
        self._subscribe()

    def remove(self, lane: Lane) -> None:
        """Give a lane nothing more."""
        if self._lanes.get(lane.name) is lane:
            del self._lanes[lane.name]
            self._filters.pop(lane.name, None)
            self._known.clear()
            self._subscribe()

    def _room(self) -> None:
        now = self._clock()
        for lane in self._lanes.values():
            lane.flush(now)

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
        self._heard(now)
        known = self._known
        if len(messages) == 1:
            only = known.get(messages[0].topic, ())
            if len(only) == 1:
                # What a quiet sensor sends needs none of the bookkeeping below.
                only[0].arrived(messages[0], now)
                only[0].flush(now)
                return
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
                self._shared[id(message)] = (len(lanes), False)
            for lane in lanes:
                lane.arrived(message, now)
                touched[lane.name] = lane
        for lane in touched.values():
            lane.flush(now)

    def _lookup(self, topic: str) -> tuple[Lane, ...]:
        found = tuple(
            lane
            for lane in self._lanes.values()
            if topics.match(lane.spec.input.topic, topic) is not None
        )
        topics.remember(self._known, topic, found)
        return found

    def _acknowledge(self, message: Inbound) -> None:
        if message.qos:
            self._settle(message, given_up=False)

    def _forget(self, message: Inbound) -> None:
        if message.qos:
            self._settle(message, given_up=True)

    def _settle(self, message: Inbound, *, given_up: bool) -> None:
        """A lane is done with a message; the last one of them settles it with the bus."""
        shared = self._shared.pop(id(message), None) if self._shared else None
        if shared is not None:
            left, given_up_before = shared
            given_up = given_up or given_up_before
            if left > 1:
                self._shared[id(message)] = (left - 1, given_up)
                return
        if given_up:
            self._bus.forget(message)
        else:
            self._bus.acknowledge(message)
