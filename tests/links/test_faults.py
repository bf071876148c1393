"""A bad network between the link and a real broker: nothing at QoS 1 is lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from agent.wire.mqtt.packets import Message
from tests.brokers import LocalBroker
from tests.faultproxy import Direction, FaultProxy, Faults
from tests.links.driver import Driver
from tests.witness import Witness

COUNT = 400
CUTS = 20
WITHIN_S = 45.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    settings = ("max_queued_messages 0", "max_inflight_messages 20")
    broker = LocalBroker(tmp_path_factory.mktemp("broker"), settings=settings).start()
    yield broker
    broker.stop()


def cuts(seed: int, *, up: int, down: int) -> Faults:
    """Have the first connections end in the middle of anything.

    Args:
        seed: For the random number of bytes that pass.
        up: Most from the link to the broker.
        down: Most from the broker to the link.
    """
    chance = random.Random(seed)
    left = {"up": CUTS, "down": CUTS}

    def after(direction: Direction) -> int | None:
        if not left[direction]:
            return None
        left[direction] -= 1
        return chance.randint(1, up if direction == "up" else down)

    return Faults(cut_after=after)


def payloads(prefix: bytes) -> list[bytes]:
    return [
        prefix + number.to_bytes(2, "big") + bytes(10 * (number % 60)) for number in range(COUNT)
    ]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cuts_at_random_bytes_lose_nothing_that_we_publish(
    broker: LocalBroker, version: int, seed: int
) -> None:
    async def scenario() -> None:
        with Witness(broker.port) as witness:
            witness.subscribe("out")
            async with FaultProxy(broker.port, cuts(seed, up=8000, down=200)) as proxy:
                driver = Driver(proxy.url, version=version)
                async with driver.running():
                    for payload in payloads(b"up"):
                        driver.publish("out", payload, qos=1)
                    await driver.all_done(COUNT, WITHIN_S)
                assert proxy.cuts > CUTS // 2
            assert driver.done == [(True, "")] * COUNT
            seen: list[bytes] = []
            while len(set(seen)) < COUNT:
                seen.append((await asyncio.to_thread(witness.next)).payload)
            assert list(dict.fromkeys(seen)) == payloads(b"up"), "the order changed"

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cuts_at_random_bytes_lose_nothing_that_we_receive(
    broker: LocalBroker, version: int, seed: int
) -> None:
    topic = f"in/{version}/{seed}"

    async def scenario() -> None:
        with Witness(broker.port) as witness:
            async with FaultProxy(broker.port, cuts(seed, up=200, down=8000)) as proxy:
                driver = Driver(proxy.url, version=version, receive_maximum=20, acks=False)
                async with driver.running():
                    direct = Driver(broker.url, version=version, client_id=driver.client_id)
                    async with direct.running():  # the same client id: its session is ours
                        await direct.subscribe((topic, 1))
                    for payload in payloads(b"down"):
                        witness.client.publish(topic, payload, 1)
                    seen = await asyncio.wait_for(collect(driver, seed), WITHIN_S)
                assert proxy.cuts > CUTS // 2
            assert set(seen) == set(payloads(b"down"))

    asyncio.run(scenario())


async def collect(driver: Driver, seed: int) -> Counter[bytes]:
    """Take messages and acknowledge them later, out of order, until each has been seen."""
    chance = random.Random(seed)
    seen: Counter[bytes] = Counter()
    held: list[Message] = []
    while len(seen) < COUNT:
        message = await driver.messages.get()
        seen[message.payload] += 1
        held.append(message)
        while held and (len(held) > 10 or driver.messages.empty()):
            driver.link.ack(held.pop(chance.randrange(len(held))))
    return seen


def test_both_directions_through_cuts_and_delays_lose_nothing(broker: LocalBroker) -> None:
    async def scenario() -> None:
        faults = cuts(3, up=8000, down=8000)
        faults.delay_s = 0.002
        async with FaultProxy(broker.port, faults) as proxy:
            driver = Driver(proxy.url)
            driver.link.subscribe([("loop", 1)])
            async with driver.running():
                await asyncio.wait_for(driver.subscribed.get(), WITHIN_S)
                for payload in payloads(b"loop"):
                    driver.publish("loop", payload, qos=1)
                seen: set[bytes] = set()
                while len(seen) < COUNT:
                    seen.add((await driver.next()).payload)
                await driver.all_done(COUNT, WITHIN_S)
            assert proxy.cuts > CUTS // 2
        assert driver.done == [(True, "")] * COUNT

    asyncio.run(scenario())


def test_a_network_that_repeats_bytes_is_survived(broker: LocalBroker) -> None:
    async def scenario() -> None:
        async with FaultProxy(broker.port, Faults(repeat=0.3)) as proxy:
            driver = Driver(proxy.url)
            async with driver.running():
                for payload in payloads(b"again"):
                    driver.publish("out", payload, qos=1)
                    await asyncio.sleep(0)
                await driver.until(lambda: len(driver.done) > COUNT // 2)
                proxy.faults.repeat = 0.0
                proxy.cut()
                await driver.all_done(COUNT, WITHIN_S)
                await driver.subscribe(("after", 1))
                driver.publish("after", b"well", qos=1)
                assert (await driver.next()).payload == b"well"

    asyncio.run(scenario())


def test_a_broker_that_refuses_every_connection_is_tried_again_and_again(
    broker: LocalBroker,
) -> None:
    async def scenario() -> None:
        async with FaultProxy(broker.port, Faults(refuse=True)) as proxy:
            driver = Driver(proxy.url, version="auto")
            async with driver.running():
                await driver.until(lambda: proxy.connections > 6)
                proxy.faults.refuse = False
                state = await driver.phase("connected")
                assert state.granted is not None

    asyncio.run(scenario())
