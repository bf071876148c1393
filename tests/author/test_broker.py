"""Connecting to brokers that are there, away, secured, or say no."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.author.broker import Broker, BrokerOptions
from agent.errors import LinkRefused, LinkUnreachable, UsageError
from tests.brokers import LocalBroker, free_port


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A broker with a password, an access list, and WebSocket."""
    broker = LocalBroker(
        tmp_path_factory.mktemp("guarded"),
        users={"ops": "secret"},
        acl=("user ops", "topic readwrite open/#"),
        websockets=True,
    ).start()
    yield broker
    broker.stop()


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("secret\n")
    return path


def test_a_message_goes_there_and_back(guarded: LocalBroker, password_file: Path) -> None:
    for url in (guarded.url, guarded.ws_url):
        options = BrokerOptions(url, username="ops", password_file=str(password_file))
        with Broker(options) as broker:
            broker.subscribe([("open/#", 1)])
            broker.publish("open/x", b"1", wait=True)
            message = broker.next(5)
            assert message is not None
            assert (message.topic, message.payload, message.retained) == ("open/x", b"1", False)
            assert broker.next(0) is None
            assert broker.unconfirmed == 0


def test_a_wrong_password_is_a_refusal_that_says_what_to_check(
    guarded: LocalBroker, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("guess")
    with (
        pytest.raises(LinkRefused, match=r"refused us: .*--username and --password-file"),
        Broker(BrokerOptions(guarded.url, username="ops", password_file=str(wrong))),
    ):
        pass


def test_nobody_at_the_address_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(LinkUnreachable, match=r"no connection to mqtt://.*refused"),
        Broker(BrokerOptions(f"mqtt://127.0.0.1:{free_port()}")),
    ):
        pass


def test_a_port_that_speaks_something_else_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"mqtt://127.0.0.1:{silent.getsockname()[1]}"
        with (
            pytest.raises(LinkUnreachable, match=r"no answer for 0\.2 s"),
            Broker(BrokerOptions(url, timeout_s=0.2)),
        ):
            pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (BrokerOptions("http://x"), "not the URL of a broker"),
        (BrokerOptions("mqtt://"), "not the URL of a broker"),
        (BrokerOptions("broker:1883"), "not the URL of a broker"),
        (BrokerOptions("mqtt://h:99999"), "not the URL of a broker"),
        (BrokerOptions("mqtt://u:p@h"), "use --username and --password-file"),
        (BrokerOptions("mqtts://h", ca="/none"), "--ca: there is no file /none"),
        (BrokerOptions("mqtt://h", username="u", password_file="/none"), "password file /none"),
    ],
)
def test_what_cannot_be_used_is_named(options: BrokerOptions, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Broker(options)


def test_half_a_client_certificate_is_named(password_file: Path) -> None:
    with pytest.raises(UsageError, match="both --cert and --key"):
        Broker(BrokerOptions("mqtts://h", cert=str(password_file)))
    with pytest.raises(UsageError, match="certificates cannot be used"):
        Broker(BrokerOptions("mqtts://h", ca=str(password_file)))


def test_a_connection_comes_back_with_its_subscriptions(tmp_path: Path) -> None:
    mosquitto = LocalBroker(tmp_path).start()
    try:
        with Broker(BrokerOptions(mosquitto.url)) as broker:
            broker.subscribe([("a/#", 1)])
            mosquitto.restart()
            # The other side tells until it is heard: only then is the subscription there again.
            with Broker(BrokerOptions(mosquitto.url)) as other:
                for _ in range(200):
                    other.publish("a/b", b"x", wait=True)
                    if broker.next(0.1) is not None:
                        return
            pytest.fail("nothing was heard after the broker came back")
    finally:
        mosquitto.stop()
