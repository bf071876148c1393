"""One slot's connection to the broker of the sensors: messages to its lane, predictions back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, cast

from agent.daemon.lane import Done, Handed, Inbound, Lane, Pending
from agent.errors import LinkError, QueueFull
from agent.links.mqtt_options import RECEIVE_MAXIMUM, LinkState
from agent.wire.mqtt.events import Subscribed
from agent.wire.mqtt.packets import Message, Oversized
from agent.wire.mqtt.properties import Properties


class Connection(Protocol):
    """What a bus needs of a connection; `agent.links.mqtt.MqttLink` is one."""

    @property
    def state(self) -> LinkState: ...

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
        on_done: Callable[[bool, str], None] | None = None,
    ) -> None: ...

    def hold(self) -> None: ...

    def release(self) -> None: ...

    def subscribe(self, filters: Iterable[tuple[str, int]]) -> None: ...

    def unsubscribe(self, filters: Iterable[str]) -> None: ...

    def ack(self, message: Message) -> None: ...

    def forget(self, message: Message) -> None: ...

    def reconnect(self) -> None: ...

    async def run(self) -> None: ...

    async def stop(self) -> None: ...


# Makes a connection from what it calls: `on_messages`, `on_state`, `on_subscribed`, `on_oversized`.
Connect = Callable[..., Connection]


class Publication(NamedTuple):
    """One prediction on its way to the broker."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    correlation_data: bytes | None
    done: Done


class Bus:
    """A connection that one slot has to itself, wired to the slot's lane.

    A broker sends only so many messages before the first is acknowledged. On a connection that
    slots shared, those that wait for one slot's worker would keep all others from theirs.

    What the connection's queue cannot take waits here, in order; meanwhile the bus is congested
    and the lane gives its worker nothing more, so that what waits stays bounded by what was in
    flight.
    """

    def __init__(
        self,
        lane: Lane,
        connect: Connect,
        *,
        clock: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        changed: Callable[[], None],
    ) -> None:
        """Prepare a bus; the first `listen` connects it.

        Args:
            lane: Whose messages come here.
            connect: Makes the connection.
            clock: Monotonic seconds.
            spawn: Runs the connection beside everything else.
            changed: Called when `state` or `trouble` may be another.
        """
        self.lane = lane
        self.stopping = False
        self._clock = clock
        self._spawn = spawn
        self._changed = changed
        self._asked: tuple[str, int] | None = None
        self._answered = asyncio.Event()
        self._refusal: LinkError | None = None
        self._started = False
        self._waiting: deque[Publication] = deque()
        self._link = connect(
            on_messages=self.deliver,
            on_state=self._on_state,
            on_subscribed=self._on_subscribed,
            on_oversized=self._too_large,
        )
        effects = lane.effects
        effects.publish = self._publish
        effects.acknowledge = self._acknowledge
        effects.forget = self._forget
        effects.congested = lambda: bool(self._waiting)
        effects.hold, effects.release = self._link.hold, self._link.release
        effects.ask_again = self._link.reconnect

    # -- the connection -------------------------------------------------------------------------

    @property
    def state(self) -> LinkState:
        return self._link.state

    @property
    def trouble(self) -> LinkError | None:
        """Why no messages can come."""
        state = self._link.state
        if state.phase != "connected" and state.last_error is not None:
            return LinkError(f"no connection for sensor messages: {state.last_error}")
        return self._refusal

    def listen(self, *, former: Iterable[str] = ()) -> None:
        """Subscribe to what the lane's slot says, and to nothing else from now on.

        Args:
            former: Filters that an earlier run may have left in the broker's session.
        """
        asked = (self.lane.spec.input.topic, self.lane.spec.input.qos)
        left = {*former} - {asked[0]}
        if asked != self._asked:
            if self._asked is not None and self._asked[0] != asked[0]:
                left.add(self._asked[0])
            self._asked = asked
            self._answered.clear()
            # In this order: a repeat in between is better than a loss.
            self._link.subscribe([asked])
        if left:
            self._link.unsubscribe(left)
        if not self._started:
            self._started = True
            self._spawn(self._link.run())

    async def listening(self, within_s: float) -> None:
        """Return when the broker has answered the subscription, or after a while without."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._answered.wait(), within_s)

    def leave(self) -> None:
        """Ask for nothing more; what was asked for may still come."""
        if self._asked is not None:
            self._link.unsubscribe([self._asked[0]])
            self._asked = None

    async def stop(self) -> None:
        """Hand over what waits, and disconnect."""
        self.stopping = True
        await self._link.stop()

    def _on_state(self, state: LinkState) -> None:
        if state.granted is not None:
            self.lane.budget.granted(RECEIVE_MAXIMUM if state.granted.version == 5 else None)
        self._changed()

    def _on_subscribed(self, answer: Subscribed) -> None:
        for result in answer.results:
            if self._asked is not None and result.filter == self._asked[0]:
                self._refusal = None
                if result.granted_qos is None:
                    told = f"the broker refused to subscribe to {result.reason}"
                    self._refusal = LinkError(told)
                self._answered.set()
        self._changed()

    # -- messages in ----------------------------------------------------------------------------

    def deliver(self, messages: Sequence[Inbound]) -> None:
        """Give the messages of one read to the lane, which then sends once."""
        now = self._clock()
        lane = self.lane
        lane.budget.heard(now)
        for message in messages:
            lane.arrived(message, now)
        lane.flush(now)

    def _too_large(self, message: Oversized) -> None:
        self.lane.too_large(message.topic, message.size_bytes)

    def look_for_stall(self) -> None:
        """Give a broker room that may be waiting for it, or ask for what was left to it; call this
        every second or so."""
        if self.lane.budget.gives_room(self._clock()):
            self.lane.acknowledge_oldest_held()
        self.lane.ask_again_if_idle()

    def _acknowledge(self, message: Inbound) -> None:
        if message.qos:
            self._link.ack(cast(Message, message))

    def _forget(self, message: Inbound) -> None:
        if message.qos:
            self._link.forget(cast(Message, message))

    # -- predictions out ------------------------------------------------------------------------

    def _publish(
        self, topic: str, payload: bytes, answered: Pending, retain: bool, done: Done
    ) -> None:
        """Publish; `done` is called once, at once or later."""
        qos, correlation = self.lane.spec.output.qos, answered.message.correlation_data
        publication = Publication(topic, payload, qos, retain, correlation, done)
        if self._waiting or not self._try(publication):
            self._waiting.append(publication)

    def _pump(self) -> None:
        """Give the connection what waits, as far as it takes it."""
        if not self._waiting:
            return
        while self._waiting and self._try(self._waiting[0]):
            self._waiting.popleft()
        if not self._waiting:
            self.lane.flush(self._clock())

    def _try(self, publication: Publication) -> bool:
        """Hand one prediction to the connection; False where its queue is full."""
        properties = None
        if publication.correlation_data is not None:
            properties = Properties(correlation_data=publication.correlation_data)
        qos, done = publication.qos, publication.done

        def told(ok: bool, reason: str) -> None:
            if ok:
                done(Handed.SENT, reason)
            else:
                # At QoS 1 only a broker's refusal, or our own stop, ends a message so.
                lost = qos == 0 or self.stopping
                done(Handed.LOST if lost else Handed.REFUSED, reason)
            self._pump()

        try:
            self._link.publish(
                publication.topic,
                publication.payload,
                qos=qos,
                retain=publication.retain,
                properties=properties,
                on_done=told,
            )
        except QueueFull:
            return False
        except LinkError as error:
            # Too large for this broker, or no topic: it would not take it another time either.
            done(Handed.REFUSED, str(error))
        return True
