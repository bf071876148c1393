"""A bus over a plain MQTT connection, as the router wants it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast

from agent.daemon.lane import Done, Handed, Inbound
from agent.errors import LinkError
from agent.links.mqtt import MqttLink
from agent.wire.mqtt.errors import QueueFull
from agent.wire.mqtt.packets import Message
from agent.wire.mqtt.properties import Properties


class Publication(NamedTuple):
    """One prediction on its way to the broker."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    correlation_data: bytes | None
    done: Done


class MqttBus:
    """Publishes predictions and acknowledges messages on one `MqttLink`.

    What the connection's queue cannot take waits here, in order; meanwhile the bus is congested
    and the lanes give their workers nothing more, so that what waits stays bounded by what was in
    flight.
    """

    def __init__(self, link: MqttLink) -> None:
        self._link = link
        self._waiting: deque[Publication] = deque()
        self._on_room: Callable[[], None] = lambda: None
        self.stopping = False

    @property
    def congested(self) -> bool:
        return bool(self._waiting)

    def when_room(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever the congestion ends."""
        self._on_room = call

    def publish(
        self,
        topic: str,
        payload: bytes,
        done: Done,
        *,
        qos: int = 0,
        retain: bool = False,
        correlation_data: bytes | None = None,
    ) -> None:
        """Publish; `done` is called once, at once or later."""
        publication = Publication(topic, payload, qos, retain, correlation_data, done)
        if self._waiting or not self._try(publication):
            self._waiting.append(publication)

    def pump(self) -> None:
        """Give the connection what waits, as far as it takes it."""
        if not self._waiting:
            return
        while self._waiting and self._try(self._waiting[0]):
            self._waiting.popleft()
        if not self._waiting:
            self._on_room()

    def hold(self) -> None:
        """Write nothing until `release`: what comes in between goes out in one write."""
        self._link.hold()

    def release(self) -> None:
        self._link.release()

    def subscribe(self, filters: list[tuple[str, int]]) -> None:
        self._link.subscribe(filters)

    def unsubscribe(self, filters: list[str]) -> None:
        self._link.unsubscribe(filters)

    def acknowledge(self, message: Inbound) -> None:
        self._link.ack(cast(Message, message))

    def forget(self, message: Inbound) -> None:
        self._link.forget(cast(Message, message))

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
            self.pump()

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
