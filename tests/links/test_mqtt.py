"""The link against a real mosquitto, with paho-mqtt as independent witness."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import QueueFull, UsageError
from agent.links.mqtt import Backoff, LinkOptions, MqttLink, end_session
from agent.wire.mqtt.options import ConnectOptions, Will
from agent.wire.mqtt.properties import Properties
from tests.brokers import LocalBroker, free_port, need
from tests.faultproxy import FaultProxy
from tests.links.driver import WITHIN_S, Driver
from tests.wire.mqtt import broker_side
from tests.witness import Witness

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    need("mqtt5")
    broker = LocalBroker(tmp_path_factory.mktemp("broker")).start()
    yield broker
    broker.stop()


def in_thread(call: Callable[..., Any], *arguments: Any, **more: Any) -> Coroutine[Any, Any, Any]:
    return asyncio.to_thread(call, *arguments, **more)


@contextlib.asynccontextmanager
async def played(
    answer: Callable[[bytes, asyncio.StreamWriter], Coroutine[Any, Any, None]],
) -> AsyncIterator[str]:
    """A broker that is played: `answer` is called with what each read brings."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65_536):
                    await answer(data, writer)
        except asyncio.CancelledError:
            pass  # the loop ends; asyncio's streams would call this an error
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


# Messages


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1])
def test_messages_pass_both_ways_between_us_and_paho(
    broker: LocalBroker, version: int, qos: int
) -> None:
    async def scenario() -> None:
        with Witness(broker.port, version=version) as witness:
            out = f"predictions/{version}/{qos}"
            witness.subscribe(out)
            driver = Driver(broker.url, version=version)
            async with driver.running():
                await driver.subscribe(("sensors/+", 1))
                await in_thread(witness.publish, "sensors/a", b"\0\xff", qos)
                message = await driver.next()
                assert (message.topic, message.payload, message.qos) == (
                    "sensors/a",
                    b"\0\xff",
                    qos,
                )
                driver.publish(out, b"p" * 70_000, qos=qos, retain=True)
                seen = await in_thread(witness.next)
                assert (seen.topic, seen.payload, seen.qos) == (out, b"p" * 70_000, qos)
                await driver.all_done(1)
                assert driver.done == [(True, "")]

    asyncio.run(scenario())


def test_a_request_and_its_answer_carry_their_properties(broker: LocalBroker) -> None:
    async def scenario() -> None:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties as PahoProperties

        asked = PahoProperties(PacketTypes.PUBLISH)
        asked.ResponseTopic, asked.CorrelationData = "answers", b"\x01\x02"
        asked.UserProperty = [("k", "v")]
        with Witness(broker.port) as witness:
            witness.subscribe("answers")
            driver = Driver(broker.url)
            async with driver.running():
                await driver.subscribe(("questions", 1))
                await in_thread(witness.publish, "questions", b"?", 1, properties=asked)
                message = await driver.next()
                assert message.user_properties == (("k", "v"),)
                assert message.response_topic is not None
                driver.publish(
                    message.response_topic,
                    b"!",
                    qos=1,
                    properties=Properties(
                        correlation_data=message.correlation_data,
                        content_type="text/plain",
                        message_expiry_s=60,
                        user_properties=(("pack", "a"),),
                    ),
                )
                answer = await in_thread(witness.next)
                assert answer.properties.CorrelationData == b"\x01\x02"
                assert answer.properties.ContentType == "text/plain"
                assert answer.properties.UserProperty == [("pack", "a")]

    asyncio.run(scenario())


def test_what_is_not_acknowledged_comes_again_after_a_restart_of_ours(broker: LocalBroker) -> None:
    async def scenario() -> None:
        with Witness(broker.port) as witness:
            first = Driver(broker.url, acks=False)
            async with first.running():
                await first.subscribe(("in", 1))
                for number in range(3):
                    await in_thread(witness.publish, "in", bytes([number]))
                messages = [await first.next() for _ in range(3)]
                first.link.ack(messages[1])
            second = Driver(broker.url, client_id=first.client_id)
            async with second.running():
                again = [await second.next() for _ in range(2)]
                assert sorted(message.payload for message in again) == [b"\0", b"\2"]
                assert all(message.dup for message in again)
                assert (await second.phase("connected")).session_present

    asyncio.run(scenario())


def test_a_message_in_work_is_acknowledged_after_a_reconnect_and_not_handed_out_twice(
    broker: LocalBroker,
) -> None:
    async def scenario() -> None:
        async with FaultProxy(broker.port) as proxy:
            driver = Driver(proxy.url, acks=False)
            async with driver.running():
                await driver.subscribe(("in", 1))
                driver.publish("in", b"once", qos=1)
                message = await driver.next()
                await driver.all_done(1)
                proxy.cut()
                await driver.until(lambda: len(driver.states) >= 5)
                await driver.phase("connected")
                driver.link.ack(message)
                driver.publish("in", b"next", qos=1)
                assert (await driver.next()).payload == b"next"
            again = Driver(broker.url, client_id=driver.client_id)
            async with again.running():
                assert (await again.next()).payload == b"next"
                assert again.messages.empty()

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [4, 5])
def test_a_message_above_our_limit_is_thrown_away_and_the_stream_goes_on(
    version: int, broker: LocalBroker, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        driver = Driver(broker.url, version=version, max_packet_size=1000)
        async with driver.running():
            await driver.subscribe(("in", 1))
            driver.publish("in", bytes(200_000), qos=1)
            driver.publish("in", b"small", qos=1)
            assert (await driver.next()).payload == b"small"
            (thrown_away,) = driver.oversized
            assert (thrown_away.topic, thrown_away.qos) == ("in", 1)
            assert 200_000 < thrown_away.size_bytes < 200_020

    asyncio.run(scenario())
    assert "the limit is 1000" in caplog.text


@pytest.mark.parametrize("version", [4, 5])
def test_what_was_forgotten_comes_again_after_a_reconnect(
    version: int, broker: LocalBroker
) -> None:
    async def scenario() -> None:
        driver = Driver(broker.url, version=version, acks=False)
        async with driver.running():
            await driver.subscribe(("again", 1))
            for payload in (b"1", b"2"):
                driver.publish("again", payload, qos=1)
            first, second = await driver.next(), await driver.next()
            driver.link.ack(first)
            driver.link.forget(second)
            await driver.all_done(2)
            driver.link.reconnect()
            repeated = await driver.next()
            assert (repeated.payload, repeated.dup) == (b"2", True)
            driver.link.ack(repeated)
            assert driver.messages.empty()

    asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.mark.parametrize("version", [4, 5])
def test_a_session_that_is_ended_keeps_nothing_and_gets_nothing(
    version: int, broker: LocalBroker
) -> None:
    async def scenario() -> None:
        mine: dict[str, Any] = {"client_id": f"ended-{version}", "version": version}
        async with Driver(broker.url, **mine).running() as driver:
            await driver.subscribe(("kept", 1))
        async with Driver(broker.url).running() as sender:
            sender.publish("kept", b"before", qos=1)
            await sender.all_done(1)
        await end_session(LinkOptions(broker.url, ConnectOptions(**mine)))
        async with Driver(broker.url).running() as sender:
            sender.publish("kept", b"after", qos=1)
            await sender.all_done(1)
        async with Driver(broker.url, **mine).running() as driver:
            assert not driver.link.state.session_present
            driver.publish("kept", b"not subscribed", qos=1)
            await driver.all_done(1)
            assert driver.messages.empty()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_ending_a_session_goes_on_until_there_is_a_broker_and_can_be_given_up() -> None:
    async def scenario() -> None:
        options = LinkOptions("mqtt://127.0.0.1:1", ConnectOptions(client_id="x"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(end_session(options), 0.05)

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_the_broker_s_refusal_of_a_message_and_of_a_filter_is_told(tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        driver = Driver(url, username="u", password=b"p")
        async with driver.running():
            driver.publish("secret", b"x", qos=1)
            await driver.all_done(1)
            ((ok, why),) = driver.done
            assert not ok
            assert "not authorized" in why

    broker = LocalBroker(tmp_path, users={"u": "p"}, acl=("user u", "topic read open")).start()
    try:
        asyncio.run(scenario(broker.url))
    finally:
        broker.stop()


def test_a_qos_0_message_without_a_connection_is_told_as_lost() -> None:
    async def scenario() -> None:
        driver = Driver(f"mqtt://127.0.0.1:{free_port()}")
        async with driver.running():
            driver.publish("a", b"x")
            await driver.all_done(1)
            ((ok, why),) = driver.done
            assert not ok
            assert "no connection" in why

    asyncio.run(scenario())


# Coming and going


@pytest.mark.needs_broker("mqtt5")
def test_a_broker_that_is_not_there_is_waited_for_and_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(tmp_path, port=free_port())
        driver = Driver(broker.url)
        async with driver.running():
            driver.publish("a", b"kept", qos=1)
            state = await driver.phase("waiting")
            assert state.last_error is not None
            assert "nothing listens there" in state.last_error
            await in_thread(broker.start)
            state = await driver.phase("connected")
            assert state.last_error is None
            await driver.all_done(1)
        await in_thread(broker.stop)
        assert driver.done == [(True, "")]

    asyncio.run(scenario())


@pytest.mark.needs_broker("sessions")
def test_a_restart_of_a_broker_that_persists_loses_nothing(tmp_path: Path) -> None:
    async def scenario(broker: LocalBroker) -> None:
        driver = Driver(broker.url, acks=False)
        async with driver.running():
            await driver.subscribe(("in", 1))
            driver.publish("in", b"1", qos=1)
            await driver.next()
            await in_thread(broker.stop)
            driver.publish("in", b"2", qos=1)
            await in_thread(broker.start)
            assert (await driver.next()).payload == b"2"
            assert (await driver.phase("connected")).session_present

    broker = LocalBroker(tmp_path, persistent=True).start()
    try:
        asyncio.run(scenario(broker))
    finally:
        broker.stop()


@pytest.mark.needs_broker("mqtt5")
def test_a_restart_of_a_broker_that_forgets_brings_our_subscriptions_back(tmp_path: Path) -> None:
    async def scenario(broker: LocalBroker) -> None:
        driver = Driver(broker.url)
        async with driver.running():
            await driver.subscribe(("in", 1))
            await in_thread(broker.restart)
            await asyncio.wait_for(driver.subscribed.get(), WITHIN_S)
            driver.publish("in", b"x", qos=1)
            assert (await driver.next()).payload == b"x"

    broker = LocalBroker(tmp_path).start()
    try:
        asyncio.run(scenario(broker))
    finally:
        broker.stop()


@pytest.mark.parametrize("orderly", [True, False])
def test_the_last_will_speaks_only_when_we_do_not_leave_in_order(
    broker: LocalBroker, orderly: bool
) -> None:
    topic = f"status/{orderly}"

    async def scenario() -> None:
        with Witness(broker.port) as witness:
            witness.subscribe(topic)
            async with FaultProxy(broker.port) as proxy:
                driver = Driver(proxy.url, will=Will(topic, b"offline"))
                async with driver.running():
                    await driver.phase("connected")
                    driver.publish(topic, b"online", qos=1, retain=True)
                    assert (await in_thread(witness.next)).payload == b"online"
                    if not orderly:
                        proxy.cut()
                        assert (await in_thread(witness.next)).payload == b"offline"
                        await driver.phase("connected")
                driver = Driver(broker.url, client_id="last")
                async with driver.running():
                    driver.publish(topic, b"end", qos=1)
                    assert (await in_thread(witness.next)).payload == b"end"

    asyncio.run(scenario())


def test_a_password_is_read_at_each_attempt_and_never_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario(broker: LocalBroker) -> None:
        file = tmp_path / "password"
        driver = Driver(broker.url, username="u", link={"password_file": file})
        async with driver.running():
            state = await driver.phase("waiting")
            assert state.last_error is not None
            assert "cannot read password file" in state.last_error
            file.write_text("wr0ng\n")
            state = await driver.phase("refused")
            assert state.last_error is not None
            assert "not authorized" in state.last_error
            assert state.retry_in_s is not None
            file.write_text("r1ght\n")
            assert (await driver.phase("connected")).last_error is None

    broker = LocalBroker(tmp_path, users={"u": "r1ght"}).start()
    try:
        asyncio.run(scenario(broker))
    finally:
        broker.stop()
    assert "r1ght" not in caplog.text
    assert "wr0ng" not in caplog.text


def test_two_clients_with_one_id_are_suspected_when_the_broker_does_not_say_so(
    broker: LocalBroker,
) -> None:
    async def scenario() -> None:
        driver = Driver(broker.url)
        async with driver.running():
            await driver.phase("connected")
            with Witness(broker.port, driver.client_id):
                await driver.until(
                    lambda: "another client use" in (driver.link.state.last_error or "")
                )

    asyncio.run(scenario())


def test_a_flood_that_ends_each_connection_is_not_blamed_on_another_client() -> None:
    flood = b"".join(
        broker_side.publish(5, "in", b"", qos=1, packet_id=number) for number in range(1, 1026)
    )

    async def overwhelm(data: bytes, writer: asyncio.StreamWriter) -> None:
        if data[0] == 0x10:
            writer.write(broker_side.connack(5) + flood)

    async def scenario() -> None:
        async with played(overwhelm) as url:
            driver = Driver(url, acks=False, receive_maximum=1)
            async with driver.running():
                await driver.until(
                    lambda: sum(state.phase == "waiting" for state in driver.states) >= 5
                )
        told = {state.last_error for state in driver.states if state.phase == "waiting"}
        assert told == {
            "more than 1024 messages wait for our acknowledgement: more come than are dealt with"
        }

    asyncio.run(scenario())


@pytest.mark.parametrize(("code", "phase"), [(0x8E, "refused"), (0x8B, "waiting")])
def test_the_broker_s_reason_decides_how_soon_we_come_back(code: int, phase: str) -> None:
    async def leave(data: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(broker_side.connack(5) + broker_side.disconnect(code))

    async def scenario() -> None:
        async with played(leave) as url:
            driver = Driver(url)
            async with driver.running():
                await driver.phase("connected")
                await driver.until(lambda: driver.states[-1].phase in {"waiting", "refused"})
                assert driver.states[2].phase == phase
                assert "the broker closed the connection: " in str(driver.states[2].last_error)

    asyncio.run(scenario())


def test_a_silent_network_is_noticed_and_left(broker: LocalBroker) -> None:
    async def scenario() -> None:
        async with FaultProxy(broker.port) as proxy:
            driver = Driver(proxy.url, keep_alive_s=1, response_timeout_s=0.2)
            async with driver.running():
                await driver.phase("connected")
                proxy.faults.silent = True
                state = await driver.phase("waiting")
                assert state.last_error is not None
                assert "did not answer" in state.last_error
                proxy.faults.silent = False
                await driver.phase("connected")

    asyncio.run(scenario())


def test_keep_alive_holds_an_idle_connection(broker: LocalBroker) -> None:
    async def scenario() -> None:
        async with FaultProxy(broker.port) as proxy:
            driver = Driver(proxy.url, keep_alive_s=1)
            async with driver.running():
                await driver.subscribe(("tick", 0))
                with Witness(broker.port) as witness:
                    # Mosquitto would close after 1.5 s without our pings.
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(driver.messages.get(), 2.5)
                    await in_thread(witness.publish, "tick", b"", 0)
                    await driver.next()
            assert proxy.connections == 1

    asyncio.run(scenario())


# Pressure


def test_what_is_published_in_one_turn_is_one_write_and_what_is_read_at_once_is_one_batch(
    broker: LocalBroker,
) -> None:
    async def scenario() -> None:
        driver = Driver(broker.url)
        async with driver.running():
            await driver.subscribe(("in", 0))
            pipe = driver.link._pipe
            assert pipe is not None
            writes: list[bytes] = []

            def write(data: bytes, write: Callable[[bytes], None] = pipe.write) -> None:
                writes.append(data)
                write(data)

            pipe.write = write  # type: ignore[method-assign]
            for _ in range(50):
                driver.publish("in", b"x")
            for _ in range(50):
                await driver.next()
            assert len(writes) == 1
            assert len(driver.batches) < 50

    asyncio.run(scenario())


def test_nagle_is_off(broker: LocalBroker) -> None:
    async def scenario() -> None:
        driver = Driver(broker.url)
        async with driver.running():
            await driver.phase("connected")
            sock = driver.link._pipe._transport.get_extra_info("socket")  # type: ignore[union-attr]
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    asyncio.run(scenario())


def test_a_broker_that_stops_reading_fills_a_bounded_queue_and_nothing_is_lost() -> None:
    reads = asyncio.Event()
    client = broker_side.Reader()

    async def answer(data: bytes, writer: asyncio.StreamWriter) -> None:
        for sent in client.read(data):
            if sent.kind == 1:
                writer.write(broker_side.connack(5))
            elif sent.kind == 3:
                writer.write(broker_side.puback(sent.fields["packet_id"]))
        await reads.wait()

    async def scenario() -> None:
        async with played(answer) as url:
            driver = Driver(url, max_queued_bytes=64 << 20)
            async with driver.running():
                reads.set()
                await driver.phase("connected")
                reads.clear()
                for _ in range(30):
                    driver.publish("a", bytes(MEGABYTE), qos=1)
                await driver.turns_until(lambda: not driver.link.writable)
                # An owner that does not hold back is held back.
                with pytest.raises(QueueFull):
                    for _ in range(100):
                        driver.publish("a", bytes(MEGABYTE), qos=1)
                accepted = driver.link.unfinished
                assert accepted * MEGABYTE <= 64 << 20
                reads.set()
                await driver.all_done(accepted)
                assert driver.link.writable
                assert driver.done == [(True, "")] * accepted

    asyncio.run(scenario())


def test_a_flood_in_both_directions_at_once_ends_and_loses_nothing(broker: LocalBroker) -> None:
    async def scenario() -> None:
        driver = Driver(broker.url)
        async with driver.running():
            await driver.subscribe(("loop", 1))
            for number in range(300):
                driver.publish("loop", number.to_bytes(2, "big") + bytes(50_000), qos=1)
            seen = [int.from_bytes((await driver.next()).payload[:2], "big") for _ in range(300)]
            assert seen == list(range(300))

    asyncio.run(scenario())


# Stopping


@pytest.mark.parametrize("where", ["before", "dialing", "waiting", "connecting", "connected"])
def test_stopping_works_wherever_the_link_stands(where: str) -> None:
    async def mute(data: bytes, writer: asyncio.StreamWriter) -> None:
        if where == "connected" and data[0] == 0x10:
            writer.write(broker_side.connack(5))

    async def scenario() -> None:
        async with played(mute) as url:
            await stop_at(where, url if where != "waiting" else f"mqtt://127.0.0.1:{free_port()}")

    asyncio.run(scenario())


async def stop_at(where: str, url: str) -> None:
    # An address of a network reserved for documentation: nobody ever answers.
    url = "mqtt://192.0.2.1" if where == "dialing" else url
    driver = Driver(url, link={"backoff": Backoff(first_s=(60, 60))})
    driver.publish("a", b"x", qos=1)
    if where == "before":
        await driver.link.stop()
    async with driver.running():
        if where in {"waiting", "connected"}:
            await driver.phase(where)
        elif where != "before":
            await driver.phase("connecting")
    assert driver.states[-1].phase == "stopped"
    assert [ok for ok, _ in driver.done] == [False]


def test_a_cancelled_run_leaves_nothing_open(broker: LocalBroker) -> None:
    async def scenario() -> None:
        driver = Driver(broker.url)
        task = asyncio.create_task(driver.link.run())
        await driver.phase("connected")
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert driver.states[-1].phase == "stopped"
        assert driver.link._pipe is None

    asyncio.run(scenario())


# Options


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://a", "expected mqtt://"),
        ("mqtt://", "no host"),
        ("mqtt://u:p@a", "credentials"),
        ("mqtt://a:99999", "port"),
    ],
)
def test_a_bad_url_is_refused_with_a_sentence(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        MqttLink(LinkOptions(url, ConnectOptions("c")), on_messages=print, on_state=print)


def test_waits_grow_to_a_cap_are_random_and_longer_after_a_refusal() -> None:
    backoff = Backoff()
    assert [backoff.delay_s(0, refused=False, chance=chance) for chance in (0, 1)] == [0.1, 1.0]
    most = [backoff.delay_s(failures, refused=False, chance=1) for failures in range(1, 9)]
    assert most == [2, 4, 8, 16, 32, 64, 120, 120]
    assert backoff.delay_s(8, refused=False, chance=0) == 0.1
    assert backoff.delay_s(0, refused=True, chance=0) == 5
    assert backoff.delay_s(10_000, refused=True, chance=1) == 300
