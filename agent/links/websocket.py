"""MQTT in WebSocket messages (MQTT 5.0, 6), for brokers that only a web port leads to.

The protocol itself is wsproto's, from the extra `websocket`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol, cast

from agent.errors import LinkError
from agent.links.dialing import Endpoint, no_delay, quick_ack, unsent_bytes

try:
    from wsproto import ConnectionType, WSConnection
    from wsproto.events import (
        AcceptConnection,
        BytesMessage,
        CloseConnection,
        Event,
        Ping,
        RejectConnection,
        Request,
        TextMessage,
    )
    from wsproto.utilities import RemoteProtocolError
except ImportError as error:
    raise LinkError(
        "ws:// and wss:// need the package wsproto",
        hint="pip install 'edgeward[websocket]'",
    ) from error

_SUBPROTOCOL: Final = "mqtt"
_WRITE_HIGH_BYTES: Final = 262_144


class Listener(Protocol):
    """Who is told what the transport does; `MqttLink` is one."""

    def opened(self, pipe: Any) -> bool: ...
    def received(self, data: bytes) -> None: ...
    def paused(self, paused: bool) -> None: ...
    def lost(self, error: Exception | None) -> None: ...


class WebSocketStream(asyncio.Protocol):
    """A TCP or TLS connection that carries MQTT in binary messages.

    Frames are passed on as they come; wherever a message ends, MQTT goes on in the next.
    """

    def __init__(self, link: Listener, endpoint: Endpoint) -> None:
        """Prepare the protocol, within a running loop.

        Args:
            link: Told once the handshake is over.
            endpoint: For the request.
        """
        self._link = link
        self._endpoint = endpoint
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._web = WSConnection(ConnectionType.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._wanted = False

    # For asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        no_delay(self._transport)
        self._quick_ack = quick_ack(self._transport)
        self._send(
            Request(
                host=str(self._endpoint), target=self._endpoint.path, subprotocols=[_SUBPROTOCOL]
            )
        )

    def data_received(self, data: bytes) -> None:
        try:
            self._web.receive_data(data)
            received = self._handle()
        except RemoteProtocolError as error:
            self._fail(f"the broker broke WebSocket: {error}")
            return
        if received and self._wanted:
            self._link.received(received)
        self._quick_ack()

    def pause_writing(self) -> None:
        if self._wanted:
            self._link.paused(True)

    def resume_writing(self) -> None:
        if self._wanted:
            self._link.paused(False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._transport.abort()
        if self._wanted:
            self._link.lost(exc)
        elif not self.ready.done():
            self.ready.set_exception(LinkError("the connection ended in the WebSocket handshake"))

    def _handle(self) -> bytes:
        """Answer what WebSocket itself asks, and return what is MQTT's."""
        pieces: list[bytes] = []
        for event in self._web.events():
            if isinstance(event, BytesMessage):
                pieces.append(bytes(event.data))
            elif isinstance(event, AcceptConnection):
                self._accepted(event.subprotocol)
            elif isinstance(event, RejectConnection):
                self._fail(f"the broker refused WebSocket: HTTP status {event.status_code}")
            elif isinstance(event, Ping):
                self._send(event.response())
            elif isinstance(event, CloseConnection):
                self._send(event.response())
                self.close()
            elif isinstance(event, TextMessage):
                self._fail("the broker sent text in place of MQTT")
        return b"".join(pieces)

    def _accepted(self, subprotocol: str | None) -> None:
        if subprotocol != _SUBPROTOCOL:
            self._fail("there is a WebSocket, but it does not speak MQTT (check the url's path)")
        elif not self.ready.done():
            self._wanted = self._link.opened(self)
            self.ready.set_result(None)

    def _fail(self, why: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(LinkError(why))
        elif self._wanted:
            self._wanted = False
            self._link.lost(LinkError(why))
        self.abort()

    def _send(self, event: Event) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._web.send(event))

    # For the link

    def write(self, data: bytes) -> None:
        self._send(BytesMessage(data))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self.ready.cancel()
        if self._transport is not None:
            self._transport.abort()

    def unsent_bytes(self) -> int:
        return unsent_bytes(self._transport) if self._transport is not None else 0
