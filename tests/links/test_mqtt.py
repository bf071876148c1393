"""The link against a real mosquitto, with paho-mqtt as independent witness."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.links.mqtt import LinkOptions, LinkState, MqttLink
from agent.wire.mqtt.options import ConnectOptions
from agent.wire.mqtt.packets import Message
from tests.brokers import Mosquitto


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path).start()
    yield broker
    broker.stop()


def test_a_message_comes_back_and_its_publish_is_acknowledged(broker: Mosquitto) -> None:
    async def scenario() -> None:
        messages: asyncio.Queue[Message] = asyncio.Queue()
        done: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()

        def take(batch: list[Message]) -> None:
            for message in batch:
                link.ack(message)
                messages.put_nowait(message)

        states: list[LinkState] = []
        options = LinkOptions(broker.url, ConnectOptions("device"))
        link = MqttLink(options, on_messages=take, on_state=states.append)
        running = asyncio.create_task(link.run())
        link.subscribe([("sensors/+", 1)])
        link.publish("sensors/a", b"1", qos=1, on_done=lambda ok, why: done.put_nowait((ok, why)))
        message = await asyncio.wait_for(messages.get(), 5)
        assert (message.topic, message.payload, message.qos) == ("sensors/a", b"1", 1)
        assert await asyncio.wait_for(done.get(), 5) == (True, "")
        await link.stop()
        await running
        assert [state.phase for state in states] == ["connecting", "connected", "stopped"]

    asyncio.run(scenario())
