"""A bus over a plain MQTT connection, as the router wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from agent.daemon.lane import Inbound
from agent.errors import LinkError
from agent.links.mqtt import MqttLink
from agent.wire.mqtt.packets import Message
from agent.wire.mqtt.properties import Properties


class MqttBus:
    """Publishes predictions and acknowledges messages on one `MqttLink`."""

    def __init__(self, link: MqttLink) -> None:
        self._link = link

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        correlation_data: bytes | None = None,
        on_done: Callable[[bool, str], None] | None = None,
    ) -> None:
        properties = None
        if correlation_data is not None:
            properties = Properties(correlation_data=correlation_data)
        try:
            self._link.publish(
                topic, payload, qos=qos, retain=retain, properties=properties, on_done=on_done
            )
        except LinkError as error:
            if on_done is not None:
                on_done(False, str(error))

    def subscribe(self, filters: list[tuple[str, int]]) -> None:
        self._link.subscribe(filters)

    def unsubscribe(self, filters: list[str]) -> None:
        self._link.unsubscribe(filters)

    def acknowledge(self, message: Inbound) -> None:
        self._link.ack(cast(Message, message))

    def forget(self, message: Inbound) -> None:
        self._link.forget(cast(Message, message))
