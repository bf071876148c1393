"""A link with queues in place of callbacks, for tests that wait for what happens."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from agent.clouds.plain_mqtt import PlainMqtt
from agent.links.api import Owner
from agent.links.mqtt import Backoff, LinkOptions, LinkState, MqttLink
from agent.links.plain_mqtt import BrokerLink
from agent.wire.mqtt.events import Subscribed
from agent.wire.mqtt.options import ConnectOptions
from agent.wire.mqtt.packets import Message, Oversized

WITHIN_S = 10.0
# As the real one, only sooner.
EAGER = Backoff(
    first_s=(0.001, 0.01), base_s=0.01, cap_s=0.05, refused_base_s=0.02, refused_cap_s=0.05
)

_numbers = itertools.count()


class Driver:
    """Runs a link and keeps what it tells.

    Args:
        url: Of the broker.
        acks: Acknowledge each message when it arrives.
        link: More `LinkOptions`.
        session: More `ConnectOptions`; without a client id in them it gets one of its own.
    """

    def __init__(
        self, url: str, *, acks: bool = True, link: dict[str, Any] | None = None, **session: Any
    ) -> None:
        options: dict[str, Any] = {"client_id": f"device-{next(_numbers)}", "version": 5} | session
        self.client_id: str = options["client_id"]
        self.states: list[LinkState] = []
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.subscribed: asyncio.Queue[Subscribed] = asyncio.Queue()
        self.oversized: list[Oversized] = []
        self.done: list[tuple[bool, str]] = []
        self.batches: list[int] = []
        self._acks = acks
        self._changed = asyncio.Event()
        self.link = MqttLink(
            LinkOptions(
                url,
                ConnectOptions(**options),
                **({"backoff": EAGER} | (link or {})),
            ),
            on_messages=self._take,
            on_state=self._state,
            on_subscribed=self.subscribed.put_nowait,
            on_oversized=self.oversized.append,
        )

    def _take(self, messages: list[Message]) -> None:
        self.batches.append(len(messages))
        for message in messages:
            if self._acks:
                self.link.ack(message)
            self.messages.put_nowait(message)

    def _state(self, state: LinkState) -> None:
        self.states.append(state)
        self._changed.set()

    def _on_done(self, ok: bool, why: str) -> None:
        self.done.append((ok, why))
        self._changed.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Driver]:
        task = asyncio.create_task(self.link.run())
        try:
            yield self
        finally:
            await asyncio.wait_for(self.link.stop(), WITHIN_S)
            await asyncio.wait_for(task, WITHIN_S)

    def publish(self, topic: str, payload: bytes, **more: Any) -> None:
        self.link.publish(topic, payload, on_done=self._on_done, **more)

    async def phase(self, phase: str) -> LinkState:
        """The next state with this phase, or the present one."""
        await self.until(lambda: self.link.state.phase == phase)
        return self.link.state

    async def until(self, holds: Callable[[], bool], within_s: float = WITHIN_S) -> None:
        """Return when something holds; looked at whenever the link tells anything."""

        async def wait() -> None:
            while not holds():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(wait(), within_s)

    async def turns_until(self, holds: Callable[[], bool]) -> None:
        """As `until`, for what the link tells nobody: looked at in each turn of the loop."""

        async def turn() -> None:
            while not holds():
                await asyncio.sleep(0)

        await asyncio.wait_for(turn(), WITHIN_S)

    async def all_done(self, count: int, within_s: float = WITHIN_S) -> None:
        await self.until(lambda: len(self.done) >= count, within_s)

    async def next(self) -> Message:
        return await asyncio.wait_for(self.messages.get(), WITHIN_S)

    async def subscribe(self, *filters: tuple[str, int]) -> Subscribed:
        """Subscribe, and return the broker's answer."""
        self.link.subscribe(filters)
        return await asyncio.wait_for(self.subscribed.get(), WITHIN_S)


def owner_of_a_link(**told: Callable[..., Any]) -> Owner:
    """An owner of a `Link` that wants to hear only this."""
    deaf: dict[str, Callable[..., Any]] = {
        name: lambda *_: None for name in Owner.__struct_fields__
    }
    return Owner(**(deaf | told))


def broker_link(url: str, owner: Owner, *, prefix: str, **session: Any) -> BrokerLink:
    """A link of kind `mqtt` that comes back soon."""
    options: dict[str, Any] = {"client_id": "press-7", "version": 5} | session
    how = LinkOptions(url, ConnectOptions(**options), backoff=EAGER)
    dialect = PlainMqtt(prefix)
    return BrokerLink(how, dialect, owner, prefix=prefix, reserved="edgeward/")
