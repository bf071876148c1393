"""The daemon's MQTT connection: an asyncio skin over `agent.wire.mqtt.session`, kept up for ever.

Reading never stops. Were it to stop while our own output is stuck, a broker that does the same
would wait for us and we for it; and a prediction's PUBACK, which frees the input it was made from,
could not arrive. What comes in is bounded instead: QoS 1 by the receive maximum, QoS 0 by the
owner's callback returning, and what we answer by both. What goes out is bounded by `QueueFull`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, Literal, Protocol, cast

from msgspec.structs import replace

from agent.errors import LinkError
from agent.links.dialing import (
    Dialer,
    Endpoint,
    explain,
    no_delay,
    quick_ack,
    unsent_bytes,
)
from agent.links.mqtt_options import Backoff, LinkOptions, LinkState, Phase
from agent.wire.mqtt.events import (
    Connected,
    Disconnected,
    Event,
    Published,
    Refused,
    Subscribed,
)
from agent.wire.mqtt.options import Granted
from agent.wire.mqtt.packets import Message, Oversized
from agent.wire.mqtt.properties import Properties
from agent.wire.mqtt.reasons import reason
from agent.wire.mqtt.session import Session, State

__all__ = ["Backoff", "LinkOptions", "LinkState", "MqttLink", "Pipe", "end_session"]

_log = logging.getLogger(__name__)

Done = Callable[[bool, str], None]

# Larger reads cost more than they bring: above this malloc maps and unmaps memory for each.
_READ_BYTES: Final = 65_536
_WRITE_HIGH_BYTES: Final = 262_144
_CLOSE_WITHIN_S: Final = 2.0
_TAKEN_OVER: Final = 0x8E
_RECEIVE_MAXIMUM_EXCEEDED: Final = 0x93
_SUSPICIOUS: Final = 3  # connections in a row that did not last
_REASONS_LOGGED: Final = 8


class Pipe(Protocol):
    """A connected transport, as far as a link needs one."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def unsent_bytes(self) -> int: ...


class MqttLink:
    """One connection to a broker, made again whenever it is lost.

    All methods are for the event loop's thread. What is published, subscribed and acknowledged
    during one turn of the loop goes out in one write.
    """

    def __init__(
        self,
        options: LinkOptions,
        *,
        on_messages: Callable[[list[Message]], None],
        on_state: Callable[[LinkState], None],
        on_subscribed: Callable[[Subscribed], None] | None = None,
        on_oversized: Callable[[Oversized], None] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Prepare a link; `run` connects it.

        Args:
            options: Where and how.
            on_messages: Gets all messages of one read at once.
            on_state: Gets each change of state.
            on_subscribed: Gets the broker's answers to subscriptions.
            on_oversized: Gets what was above `max_packet_size`, and thrown away unread.
            chance: From 0 to 1, for the waits between attempts.

        Raises:
            UsageError: The url is not one.
        """
        self._options = options
        self._endpoint = Endpoint.parse(options.url)
        self._dialer = Dialer(self._endpoint, options.tls, options.proxy)
        self._session = Session(options.session)
        self._on_messages = on_messages
        self._on_state = on_state
        self._on_subscribed = on_subscribed
        self._on_oversize = on_oversized
        self._chance = chance

        self._loop: asyncio.AbstractEventLoop
        self._pipe: Pipe | None = None
        self._paused = False
        self._batching = False
        self._flush_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._closer: asyncio.TimerHandle | None = None
        self._password: bytes | None = None
        self._gone: asyncio.Future[None] | None = None
        self._stopping = asyncio.Event()
        self._running = False
        self._stopped = asyncio.Event()

        self._state = LinkState("stopped")
        self._last_error: str | None = None
        self._logged: set[str | None] = set()
        self._refused = False
        self._flooded = False
        self._again_now = False
        self._wants_anew = False
        self._connected_at: float | None = None
        self._short_lived = 0
        self._written = 0
        self._taken = 0

    # What holds now

    @property
    def state(self) -> LinkState:
        """Where the link stands."""
        return self._state

    @property
    def writable(self) -> bool:
        """Connected, and the network takes what is written; at QoS 0 send only while this holds."""
        return self._state.phase == "connected" and not self._paused

    @property
    def version(self) -> Literal[4, 5]:
        """The MQTT version of this connection or the next attempt: 5, or 4 for 3.1.1."""
        return self._session.version

    @property
    def unfinished(self) -> int:
        """QoS 1 messages of ours that the broker has not acknowledged."""
        return self._session.unfinished

    # What the owner does

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
        on_done: Done | None = None,
    ) -> None:
        """Publish a message.

        Args:
            topic: A plain name.
            payload: Its bytes.
            qos: 0, lost without a connection; or 1, kept until the broker has it.
            retain: The broker keeps it for later subscribers.
            properties: MQTT 5 only.
            on_done: Called once, later: `(True, "")` when written (QoS 0) or acknowledged
                (QoS 1), with a reason in place of "" where the broker's limits changed the
                message; `(False, reason)` when it failed.

        Raises:
            LinkError: `InvalidTopic`, `InvalidText`, `TooLarge` or `QueueFull`.
            UsageError: QoS 2.
        """
        self._session.publish(
            topic, payload, qos=qos, retain=retain, properties=properties, token=on_done
        )
        if not self._batching and not self._flush_due:
            self._flush_soon()

    def hold(self) -> None:
        """Write nothing until `release`, which then writes all that came in between."""
        self._batching = True

    def release(self) -> None:
        """End what `hold` began."""
        self._batching = False
        self._flush()

    def ack(self, message: Message) -> None:
        """Acknowledge a QoS 1 message; in any order, and harmless when it comes too late."""
        self._session.ack(message)
        if not self._batching and not self._flush_due:
            self._flush_soon()

    def forget(self, message: Message) -> None:
        """Leave a QoS 1 message to the broker, which repeats it on the next connection."""
        self._session.forget(message)

    def subscribe(self, filters: Iterable[tuple[str, int]]) -> None:
        """Subscribe to filters with their QoS, now and after every loss of the broker's session.

        Raises:
            InvalidTopic: A filter that MQTT forbids.
            UsageError: QoS 2.
        """
        self._session.subscribe(filters)
        self._flush_soon()

    def unsubscribe(self, filters: Iterable[str]) -> None:
        """Unsubscribe from filters, also from those that only an earlier run subscribed to.

        Raises:
            InvalidTopic: A filter that MQTT forbids.
        """
        self._session.unsubscribe(filters)
        self._flush_soon()

    def reconnect(self) -> None:
        """Connect anew, at once: the broker then repeats what was forgotten."""
        if self._pipe is not None and self._session.state is State.CONNECTED:
            self._wants_anew = True
            self._dispatch(self._session.disconnect())
            self._flush()

    async def run(self) -> None:
        """Keep the connection up until `stop`."""
        self._loop = asyncio.get_running_loop()
        self._running = True
        failures = 0
        try:
            while not self._stopping.is_set():
                self._enter("connecting")
                self._flush()
                self._refused = self._again_now = self._wants_anew = False
                self._connected_at = None
                await self._attempt()
                if self._stopping.is_set():
                    break
                if self._again_now or self._wants_anew:
                    continue
                if self._was_stable():
                    failures = 0
                delay_s = self._options.backoff.delay_s(
                    failures, refused=self._refused, chance=self._chance()
                )
                failures += 1
                self._enter("refused" if self._refused else "waiting", retry_in_s=delay_s)
                await _within(self._stopping.wait(), delay_s)
        finally:
            self._end_run()

    async def stop(self) -> None:
        """Write what waits, tell the broker that we leave so that it drops the last will, close.

        QoS 1 messages that the broker has not acknowledged by then fail.
        """
        self._stopping.set()
        if not self._running:
            return
        if self._pipe is not None:
            self._dispatch(self._session.disconnect())
            self._flush()
        await self._stopped.wait()

    # One connection

    async def _attempt(self) -> None:
        """Connect, and return when the connection is over or did not come about."""
        self._gone = self._loop.create_future()
        try:
            self._password = self._read_password()
            await self._dialed(asyncio.create_task(self._dial()))
        except (LinkError, OSError) as error:
            self._last_error = str(error)
            if self._pipe is None:
                return
            self._pipe.abort()
        if self._pipe is not None:
            await self._gone

    async def _dialed(self, dialing: asyncio.Task[None]) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            both: set[asyncio.Task[Any]] = {dialing, stopping}
            await asyncio.wait(
                both,
                timeout=self._options.connect_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if dialing.done():
                dialing.result()
            elif not stopping.done():
                timeout_s = self._options.connect_timeout_s
                raise LinkError(f"no connection to {self._endpoint} within {timeout_s:g} s")
        finally:
            dialing.cancel()
            stopping.cancel()
            await asyncio.gather(dialing, stopping, return_exceptions=True)

    async def _dial(self) -> None:
        if not self._endpoint.websocket:
            await self._dialer.dial(lambda: _Stream(self))
            return
        from agent.links.websocket import WebSocketStream

        stream = WebSocketStream(self, self._endpoint)
        try:
            await self._dialer.dial(lambda: stream)
            await stream.ready
        except BaseException:
            stream.abort()
            raise

    def _read_password(self) -> bytes | None:
        path = self._options.password_file
        if path is None:
            return None
        try:
            return path.read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise LinkError(f"cannot read password file {path}: {error.strerror}") from error

    def _was_stable(self) -> bool:
        """Whether the last connection lasted; where several did not, suspect why."""
        if self._connected_at is None:
            return False
        if self._loop.time() - self._connected_at >= self._options.backoff.stable_s:
            self._short_lived = 0
            self._flooded = False
            self._logged.clear()
            return True
        self._short_lived += 1
        if self._short_lived >= _SUSPICIOUS and not self._refused and not self._flooded:
            # Not every broker says so, and MQTT 3.1.1 has no way to.
            self._last_error = (
                f"{self._last_error}, each time soon after accepting us "
                f"(does another client use the id {self._options.session.client_id!r}?)"
            )
        return False

    def _end_run(self) -> None:
        if self._pipe is not None:
            self._pipe.abort()
            self.lost(None)
        self._running = False
        self._dispatch(self._session.abandon("the link was stopped before the broker had it"))
        self._enter("stopped")
        self._stopped.set()

    # What the transport tells (for `_Stream` and its siblings)

    def opened(self, pipe: Pipe) -> bool:
        """A transport stands; False when it comes too late and must not tell anything more."""
        if self._pipe is not None or self._gone is None or self._stopping.is_set():
            pipe.abort()
            return False
        self._pipe = pipe
        self._paused = False
        self._written = self._taken = 0
        self._session.opened(self._loop.time(), self._password)
        self._password = None
        self._flush()
        self._arm_timer()
        return True

    def received(self, data: bytes) -> None:
        """Bytes were read; all that follows from them is written at once."""
        if self._pipe is None:
            return
        self._batching = True
        try:
            self._dispatch(self._session.receive(data, self._loop.time()))
        finally:
            self._batching = False
            self._flush()

    def paused(self, paused: bool) -> None:
        """The network does not keep up with what we write, or does again."""
        self._paused = paused
        if not paused:
            self._session.alive(self._loop.time())
            self._flush()

    def lost(self, error: Exception | None) -> None:
        """The transport is gone."""
        if self._pipe is None:
            return
        self._pipe = None
        self._paused = False
        for handle in (self._timer, self._closer):
            if handle is not None:
                handle.cancel()
        self._timer = self._closer = None
        why = "the broker closed the connection"
        if isinstance(error, OSError):
            why = f"the connection to {self._endpoint} was lost: {explain(error)}"
        elif error is not None:
            why = f"the connection to {self._endpoint} was lost: {error}"
        self._dispatch(self._session.closed(self._loop.time(), why))
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    # Between the session and the transport

    def _flush_soon(self) -> None:
        if not self._batching and not self._flush_due and self._running:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        session = self._session
        pipe = self._pipe
        if pipe is not None and not self._paused:
            data = session.take_outgoing(self._loop.time())
            if data:
                self._written += len(data)
                pipe.write(data)
        events = session.take_events()
        if events:
            self._dispatch(events)
        if pipe is not None and session.state is State.CLOSING:
            self._close(pipe)

    def _close(self, pipe: Pipe) -> None:
        # What is still to be written goes out first, but a dead peer is not waited for.
        if self._closer is None:
            self._closer = self._loop.call_later(_CLOSE_WITHIN_S, pipe.abort)
            pipe.close()

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._session.next_timer()
        self._timer = None if due is None else self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        if self._pipe is None:
            return
        now = self._loop.time()
        taken = self._written - self._pipe.unsent_bytes()
        if taken > self._taken:
            self._taken = taken
            self._session.alive(now)
        self._dispatch(self._session.tick(now))
        self._flush()
        if self._pipe is not None:
            self._arm_timer()

    # What happened

    def _dispatch(self, events: list[Event]) -> None:
        messages: list[Message] = []
        endings: list[Refused | Disconnected] = []
        for event in events:
            kind = type(event)
            if kind is Message:
                messages.append(cast(Message, event))
            elif isinstance(event, (Refused, Disconnected)):
                endings.append(event)
            else:
                _HANDLERS[kind](self, event)
        if messages:
            self._on_messages(messages)
        for ending in endings:
            self._on_end(ending)

    def _on_connected(self, event: Connected) -> None:
        self._last_error = None
        self._connected_at = self._loop.time()
        self._arm_timer()
        self._enter("connected", granted=event.granted, session_present=event.session_present)

    def _on_published(self, event: Published) -> None:
        if event.token is not None:
            event.token(event.ok, event.reason)
        elif not event.ok:
            _log.warning("%s: a message was not published: %s", self._options.name, event.reason)

    def _on_granted(self, event: Subscribed) -> None:
        for result in event.results:
            if result.granted_qos is None:
                _log.warning("%s: subscription refused: %s", self._options.name, result.reason)
        if self._on_subscribed is not None:
            self._on_subscribed(event)

    def _on_oversized(self, event: Oversized) -> None:
        _log.warning(
            "%s: a message of %d bytes on %r was thrown away: the limit is %d",
            self._options.name,
            event.size_bytes,
            event.topic,
            self._options.session.max_packet_size,
        )
        if self._on_oversize is not None:
            self._on_oversize(event)

    def _on_end(self, event: Refused | Disconnected) -> None:
        if not self._stopping.is_set():
            self._last_error = event.reason
        self._again_now = event.try_again_now
        if isinstance(event, Refused):
            self._refused = True
        elif event.reason_code:
            # It explains by itself why the connections do not last.
            self._flooded = self._flooded or event.reason_code == _RECEIVE_MAXIMUM_EXCEEDED
            # Coming back at once would throw out the other client with our id, for ever.
            told = reason(event.reason_code)
            self._refused = event.reason_code == _TAKEN_OVER or not told.retryable

    def _enter(
        self,
        phase: Phase,
        *,
        granted: Granted | None = None,
        session_present: bool = False,
        retry_in_s: float | None = None,
    ) -> None:
        self._state = LinkState(phase, self._last_error, granted, session_present, retry_in_s)
        self._log_state()
        self._on_state(self._state)

    def _log_state(self) -> None:
        state, name = self._state, self._options.name
        if state.phase in {"waiting", "refused"}:
            # A broker that is away for a week is one line for each reason, not for each attempt.
            told = state.last_error in self._logged or len(self._logged) >= _REASONS_LOGGED
            self._logged.add(state.last_error)
            level = logging.DEBUG if told else logging.WARNING
            _log.log(level, "%s: %s: %s", name, state.phase, state.last_error)
        elif state.phase == "connected":
            _log.log(
                logging.DEBUG if self._short_lived >= _SUSPICIOUS else logging.INFO,
                "%s: connected to %s, MQTT %s, %s session",
                name,
                self._endpoint,
                "5" if self._session.version == 5 else "3.1.1",
                "resumed" if state.session_present else "new",
            )
        else:
            _log.debug("%s: %s", name, state.phase)


class _ReadBuffer(threading.local):
    """What all connections of a thread read into: each read is copied out before the next."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_READ_BYTES))


_read_buffer = _ReadBuffer()


class _Stream(asyncio.BufferedProtocol):
    """A TCP or TLS connection that reads into one fixed buffer."""

    def __init__(self, link: MqttLink) -> None:
        self._link = link
        self._buffer = _read_buffer.view
        self._transport: asyncio.Transport
        self._wanted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        no_delay(self._transport)
        self._quick_ack = quick_ack(self._transport)
        self._wanted = self._link.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._wanted:
            self._link.received(bytes(self._buffer[:nbytes]))
            self._quick_ack()

    def pause_writing(self) -> None:
        self._link.paused(True)

    def resume_writing(self) -> None:
        self._link.paused(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport.abort()  # until Python 3.11 TLS leaves it open when the handshake fails
        if self._wanted:
            self._link.lost(exc)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def unsent_bytes(self) -> int:
        return unsent_bytes(self._transport)


async def end_session(options: LinkOptions) -> None:
    """Have the broker forget a session, and what it kept for it; for as long as it takes.

    MQTT 3.1.1 ends one only by connecting anew with nothing to keep (MQTT 3.1.1, section 3.1.2.4).
    """
    session = replace(options.session, clean_start=True, session_expiry_s=0, will=None)
    connected = asyncio.Event()

    def on_state(state: LinkState) -> None:
        if state.phase == "connected":
            connected.set()

    link = MqttLink(
        replace(options, session=session), on_messages=lambda messages: None, on_state=on_state
    )
    running = asyncio.ensure_future(link.run())
    try:
        await connected.wait()
    finally:
        await link.stop()
        await running


async def _within(waiting: Coroutine[Any, Any, Any], timeout_s: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(waiting, timeout_s)


_HANDLERS: Mapping[type[Any], Callable[[MqttLink, Any], None]] = {
    Connected: MqttLink._on_connected,
    Published: MqttLink._on_published,
    Subscribed: MqttLink._on_granted,
    Oversized: MqttLink._on_oversized,
}
