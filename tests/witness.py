"""paho-mqtt as the independent other end, so that our client never only talks to itself."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho

_WITHIN_S = 10.0


class Witness:
    """A paho client in its own thread.

    Args:
        port: Of a broker on the loopback.
        client_id: Its own by default.
        version: 4 or 5.
        setup: Called with the paho client before it connects.
    """

    def __init__(
        self,
        port: int,
        client_id: str = "witness",
        *,
        version: int = 5,
        setup: Callable[[Any], None] | None = None,
    ) -> None:
        arguments: dict[str, Any] = {"client_id": client_id, "protocol": version}
        if hasattr(paho, "CallbackAPIVersion"):  # paho-mqtt 2
            arguments["callback_api_version"] = paho.CallbackAPIVersion.VERSION2
        if version == 4:
            arguments["clean_session"] = True
        self.client: Any = paho.Client(**arguments)
        self.messages: queue.Queue[Any] = queue.Queue()
        self._connected = threading.Event()
        self._subscribed = threading.Event()
        self.client.on_message = lambda client, data, message: self.messages.put(message)
        self.client.on_connect = lambda *_: self._connected.set()
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        if setup is not None:
            setup(self.client)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        if not self._connected.wait(_WITHIN_S):
            raise RuntimeError("the witness did not connect")

    def __enter__(self) -> Witness:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def subscribe(self, topic: str, qos: int = 1) -> None:
        """Subscribe, and return when the broker has confirmed it."""
        self._subscribed.clear()
        self.client.subscribe(topic, qos)
        if not self._subscribed.wait(_WITHIN_S):
            raise RuntimeError("the witness's subscription was not confirmed")

    def publish(self, topic: str, payload: bytes, qos: int = 1, **more: Any) -> None:
        """Publish, and return when the broker has it."""
        self.client.publish(topic, payload, qos, **more).wait_for_publish(_WITHIN_S)

    def next(self, within_s: float = _WITHIN_S) -> Any:
        """The next message."""
        return self.messages.get(timeout=within_s)
