"""The link of kind `mqtt`: topics of a broker, by a dialect, over one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from agent.clouds.dialect import Block, Command, Desired, Dialect, Metered, Publication
from agent.clouds.plain_mqtt import PlainMqtt
from agent.documents.settings import Connection, Settings, prefix_of, shared_prefix_of
from agent.errors import AgentError, LinkError
from agent.links.api import Disk, Done, Kind, Owner, Problem, Standing, Stream
from agent.links.mqtt import LinkOptions, LinkState, MqttLink
from agent.links.mqtt_options import options_for
from agent.wire import topics
from agent.wire.mqtt.options import Will
from agent.wire.mqtt.packets import Message, Oversized
from agent.wire.mqtt.properties import Properties

# A deployment that could not be saved is asked for again after so long: the disk may be full still.
ASK_AGAIN_S = 30.0


class BrokerLink:
    """A `Link` over a broker. See `agent.links.api`.

    Args:
        options: How to connect; the will is the dialect's.
        dialect: What is said where.
        owner: Who is told.
        prefix: What this agent's own topics begin with.
        reserved: What the topics of all agents begin with.
    """

    def __init__(
        self, options: LinkOptions, dialect: Dialect, owner: Owner, *, prefix: str, reserved: str
    ) -> None:
        self._dialect = dialect
        self._owner = owner
        self._own_answers = f"{prefix}command/+/response/#"
        self._reserved = reserved
        self._limit_bytes = options.session.max_packet_size
        self._connection = MqttLink(
            options,
            on_messages=self._on_messages,
            on_state=self._on_state,
            on_oversized=self._on_oversized,
        )
        self._connection.subscribe(dialect.subscriptions())
        self._asking: asyncio.TimerHandle | None = None

    @property
    def state(self) -> Standing:
        return self._connection.state

    @property
    def blocks(self) -> _Blocks:
        return _Blocks(self._connection)

    def report(self, document: bytes, done: Done) -> None:
        self._publish(self._dialect.reported(document), on_done=done)

    def send(self, stream: Stream, document: bytes, done: Done, *, slot: str = "") -> None:
        if stream == "dead-letter":
            publication = self._dialect.dead_letter(slot, document)
        elif stream == "events":
            publication = self._dialect.event(document)
        else:
            publication = self._dialect.telemetry(document)
        self._publish(publication, on_done=done)

    def answer(self, command: Command, document: bytes) -> None:
        topic = command.response_topic or _reply_to(command.payload)
        if topic is None or not self._may_answer_to(topic):
            return
        properties = Properties(correlation_data=command.correlation_data)
        with suppress(LinkError):
            self._publish(Publication(topic, document), properties=properties)

    async def run(self) -> None:
        await self._connection.run()

    async def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        with suppress(AgentError):
            offline = self._dialect.offline()
            self._connection.publish(offline.topic, offline.payload, qos=0, retain=True)
        await self._connection.stop()

    def _publish(self, publication: Publication, **more: Any) -> None:
        self._connection.publish(
            publication.topic,
            publication.payload,
            qos=publication.qos,
            retain=publication.retain,
            **more,
        )

    def _may_answer_to(self, topic: str) -> bool:
        # Below the agents' own topics only where answers are meant to go, and only our own.
        if topic.startswith(self._reserved):
            return topics.match(self._own_answers, topic) is not None
        return topics.is_name(topic) and not topic.startswith("$")

    # What the connection tells

    def _on_state(self, state: LinkState) -> None:
        if state.phase == "connected":
            self._publish(self._dialect.online())
        self._owner.state(state)

    def _on_oversized(self, message: Oversized) -> None:
        self._owner.thrown_away(
            LinkError(
                f"a message of {message.size_bytes:,} bytes on {message.topic!r} was thrown away: "
                f"the agent takes packets up to {self._limit_bytes:,} bytes"
            )
        )

    def _on_messages(self, messages: list[Message]) -> None:
        for message in messages:
            # What is not for the agent comes from a session of an earlier configuration.
            saved = self._take(message)
            if saved is None:
                self._connection.ack(message)
            else:
                # Saved, then acknowledged: a kill in between brings the document again.
                saved.add_done_callback(partial(self._after_saving, message))

    def _after_saving(self, message: Message, saved: asyncio.Future[None]) -> None:
        if saved.cancelled():
            return  # the agent ends
        if saved.exception() is None:
            self._connection.ack(message)
            return
        # The broker repeats it on the next connection, which nothing else may bring for weeks.
        self._connection.forget(message)
        if self._asking is None:
            loop = asyncio.get_running_loop()
            self._asking = loop.call_later(ASK_AGAIN_S, self._ask_again)

    def _ask_again(self) -> None:
        self._asking = None
        self._connection.reconnect()

    def _take(self, message: Message) -> asyncio.Future[None] | None:
        """Do what a message means; a future where it must be saved first."""
        meaning = self._dialect.receive(
            message.topic,
            message.payload,
            message.response_topic,
            message.correlation_data,
            retain=message.retain,
        )
        if isinstance(meaning, Desired):
            return self._owner.desired(meaning.payload)
        if isinstance(meaning, Block):
            self._owner.block(meaning.topic, meaning.payload)
        elif isinstance(meaning, Command):
            self._owner.command(meaning)
        elif isinstance(meaning, Metered):
            self._owner.metered(meaning.on)
        return None


class _Blocks:
    """See `agent.links.api.Blocks`."""

    def __init__(self, connection: MqttLink) -> None:
        self._connection = connection

    def publish(self, topic: str, payload: bytes) -> None:
        self._connection.publish(topic, payload, qos=1)

    def subscribe(self, filters: Iterable[tuple[str, int]]) -> None:
        self._connection.subscribe(filters)

    def unsubscribe(self, filters: Iterable[str]) -> None:
        self._connection.unsubscribe(filters)


class _ReplyTo(msgspec.Struct, frozen=True):
    """What is read of a command to know where its answer goes, where MQTT 3.1.1 cannot say."""

    reply_to: str | None = None


def _reply_to(payload: bytes) -> str | None:
    try:
        return msgspec.json.decode(payload, type=_ReplyTo).reply_to
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _address(settings: Settings) -> str:
    return _connection(settings).url


def _problems(settings: Settings) -> Iterator[Problem]:
    # Imported here: only `--check` asks.
    from agent.links.mqtt_problems import link_problems

    yield from link_problems(_connection(settings), settings)


def _make(settings: Settings, owner: Owner, disk: Disk) -> BrokerLink:
    prefix = prefix_of(settings)
    dialect = PlainMqtt(prefix)
    said = dialect.offline()
    will = Will(said.topic, said.payload, said.qos, said.retain)
    options = options_for(_connection(settings), settings.device_id, "link", will=will)
    reserved = shared_prefix_of(settings)
    return BrokerLink(options, dialect, owner, prefix=prefix, reserved=reserved)


def _connection(settings: Settings) -> Connection:
    assert isinstance(settings.link, Connection)
    return settings.link


KIND = Kind(Connection, _address, _problems, _make)
