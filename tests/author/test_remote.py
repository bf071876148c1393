"""Asking a device from afar, and hearing what the broker keeps of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from agent.author import remote
from agent.author.broker import Broker, BrokerOptions
from agent.errors import LinkUnreachable
from tests.brokers import LocalBroker


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    broker = LocalBroker(tmp_path_factory.mktemp("mosquitto")).start()
    yield broker
    broker.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "QUIET_S", 0.2)


@contextmanager
def answering(url: str, prefix: str, name: str, answer: dict[str, Any]) -> Iterator[list[Any]]:
    """A device that answers one command."""
    asked: list[Any] = []
    with Broker(BrokerOptions(url)) as device:
        device.subscribe([(f"{prefix}command/+", 1)])

        def answer_one() -> None:
            message = device.next(10)
            assert message is not None
            assert message.topic == f"{prefix}command/{name}"
            request = msgspec.json.decode(message.payload)
            asked.append(request)
            told = msgspec.json.encode({**answer, "id": request["id"]})
            device.publish(request["reply_to"], told, wait=True)

        worker = threading.Thread(target=answer_one)
        worker.start()
        yield asked
        worker.join(timeout=10)


def keep(url: str, **messages: bytes) -> None:
    with Broker(BrokerOptions(url)) as device:
        for name, payload in messages.items():
            device.publish(f"edgeward/d/{name}", payload, retain=True, wait=True)


def test_a_command_gets_its_answer(mosquitto: LocalBroker) -> None:
    with (
        answering(mosquitto.url, "p/", "rollback", {"to": "sha256:x"}) as asked,
        Broker(BrokerOptions(mosquitto.url)) as broker,
    ):
        assert remote.command(broker, "p/", "rollback", {"slot": "s"}) == {"to": "sha256:x"}
    assert asked[0]["slot"] == "s"


def test_a_device_that_does_not_answer_is_named(mosquitto: LocalBroker) -> None:
    with (
        Broker(BrokerOptions(mosquitto.url)) as broker,
        pytest.raises(LinkUnreachable, match="did not answer 'status' within"),
    ):
        remote.command(broker, "q/", "status", {}, timeout_s=0.1)


def test_a_device_that_is_online_answers_itself(mosquitto: LocalBroker) -> None:
    live = {"device": "d", "link": {"state": "connected"}, "slots": {"s": {"worker_pid": 7}}}
    keep(mosquitto.url, status=b"online", reported=b'{"device":"d"}')
    with (
        answering(mosquitto.url, "edgeward/d/", "status", live),
        Broker(BrokerOptions(mosquitto.url)) as broker,
    ):
        assert remote.status(broker, "edgeward/d/", "d") == live


def test_of_a_device_that_is_offline_the_last_report_is_shown(mosquitto: LocalBroker) -> None:
    keep(mosquitto.url, status=b"offline", reported=b'{"device":"d","slots":{}}')
    with Broker(BrokerOptions(mosquitto.url)) as broker:
        found = remote.status(broker, "edgeward/d/", "d")
    assert found == {"device": "d", "slots": {}, "link": {"state": "offline"}}


def test_an_unknown_device_is_named(mosquitto: LocalBroker) -> None:
    with (
        Broker(BrokerOptions(mosquitto.url)) as broker,
        pytest.raises(LinkUnreachable, match="knows nothing of device x"),
    ):
        remote.status(broker, "edgeward/x/", "x")
