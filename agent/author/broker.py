"""A workstation's connection to a broker: paho-mqtt (1.6.1 and 2.x), as plain blocking calls.

MQTT 3.1.1, because every broker speaks it and nothing here needs more.
"""

from __future__ import annotations

import queue
import secrets
import ssl
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import msgspec
import paho.mqtt.client as paho

from agent.errors import LinkError, LinkRefused, LinkUnreachable, UsageError

# Scheme → (port, transport, TLS).
_SCHEMES = {
    "mqtt": (1883, "tcp", False),
    "mqtts": (8883, "tcp", True),
    "ws": (80, "websockets", False),
    "wss": (443, "websockets", True),
}
KEEP_ALIVE_S = 30
MAX_WAITING = 1024


class BrokerOptions(msgspec.Struct, frozen=True):
    """Where the broker is and who we are. Secrets are named by the file that holds them."""

    url: str
    username: str = ""
    password_file: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    timeout_s: float = 10.0


class Received(NamedTuple):
    topic: str
    payload: bytes
    retained: bool


class Broker:
    """One connection, made again by itself when it is lost. Use it as a context manager.

    Messages wait in a bounded queue for `next`; when nobody fetches them the newest are dropped.
    """

    def __init__(self, options: BrokerOptions) -> None:
        """
        Raises:
            UsageError: The URL or one of the files is not what it must be.
        """
        self.url = options.url
        self._timeout_s = options.timeout_s
        self._address, transport, tls = _parse(options.url)
        self._client = _client(f"edgeward-{secrets.token_hex(6)}", transport)
        if transport == "websockets":
            self._client.ws_set_options(path=self._address.path or "/mqtt")
        if tls:
            _use_tls(self._client, options)
        if options.password_file and not options.username:
            raise UsageError("--password-file needs --username")
        if options.username:
            self._client.username_pw_set(options.username, _password(options.password_file))
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._answered = threading.Event()
        self._refused = ""
        self.connected = False
        self._filters: list[tuple[str, int]] = []
        # Of subscriptions under way: message id → granted, or refused by the broker.
        self._granted: dict[int, bool] = {}
        self._news = threading.Condition()
        self._sent = self._confirmed = 0
        self._messages: queue.Queue[Received] = queue.Queue(MAX_WAITING)

    def __enter__(self) -> Broker:
        """Connect.

        Raises:
            LinkUnreachable: No broker answers there.
            LinkRefused: It answered no.
        """
        host, port = self._address.hostname or "", self._address.port or 0
        try:
            self._client.connect(host, port, keepalive=KEEP_ALIVE_S)
        except (OSError, ValueError) as error:
            raise LinkUnreachable(
                f"no connection to {self.url}: {_reason(error)}",
                hint="is the broker running, and is this its address?",
            ) from None
        self._client.loop_start()
        if not self._answered.wait(self._timeout_s):
            self.close()
            raise LinkUnreachable(
                f"the broker at {self.url} gave no answer for {self._timeout_s:g} s",
                hint="is this an MQTT port, and is TLS right (mqtt:// or mqtts://)?",
            )
        if self._refused:
            self.close()
            raise LinkRefused(
                f"the broker at {self.url} refused us: {self._refused}",
                hint="check --username and --password-file, or --cert and --key",
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say good-bye and stop. Safe to call twice."""
        self._client.disconnect()
        self._client.loop_stop()

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe, now and after each reconnect; returns when the broker has confirmed.

        Raises:
            LinkRefused: The broker does not allow it.
            LinkUnreachable: It does not answer.
        """
        self._filters += filters
        result, message_id = self._client.subscribe(list(filters))
        deadline = time.monotonic() + self._timeout_s
        with self._news:
            while result == paho.MQTT_ERR_SUCCESS and message_id not in self._granted:
                if not self._news.wait(deadline - time.monotonic()):
                    break
            granted = self._granted.pop(message_id, None)
        names = ", ".join(topic for topic, _ in filters)
        if granted is None:
            raise LinkUnreachable(f"the broker at {self.url} did not confirm a subscription")
        if not granted:
            raise LinkRefused(
                f"the broker at {self.url} does not let us subscribe to {names}",
                hint="check its access list for this user",
            )

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, wait: bool = False
    ) -> None:
        """Publish at QoS 1.

        Args:
            wait: Return only when the broker has confirmed it.

        Raises:
            LinkError: The client's queue is full.
            LinkUnreachable: With `wait`: no confirmation came.
        """
        self._sent += 1
        sent = self._client.publish(topic, payload, qos=1, retain=retain)
        if not wait:
            return
        try:
            sent.wait_for_publish(self._timeout_s)
        except (ValueError, RuntimeError) as error:
            raise LinkError(f"{topic} could not be published: {error}") from None
        if not sent.is_published():
            raise LinkUnreachable(f"the broker at {self.url} did not confirm {topic}")

    @property
    def unconfirmed(self) -> int:
        """How many messages the broker has not confirmed yet."""
        return self._sent - self._confirmed

    def next(self, timeout_s: float) -> Received | None:
        """The next message, or None when none comes in time."""
        try:
            return self._messages.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None

    # Called in paho's thread. The two majors pass different arguments; what is used here stands
    # at the same place in both.

    def _on_connect(self, client: Any, _data: Any, _flags: Any, code: Any, *_: Any) -> None:
        if int(getattr(code, "value", code)) != 0:
            self._refused = str(code) if hasattr(code, "value") else paho.connack_string(code)
            self._answered.set()
            return
        again = self._answered.is_set()
        self.connected = True
        self._answered.set()
        if again and self._filters:
            client.subscribe(self._filters)

    def _on_disconnect(self, *_: Any) -> None:
        self.connected = False

    def _on_publish(self, *_: Any) -> None:
        self._confirmed += 1

    def _on_subscribe(self, _client: Any, _data: Any, message_id: int, codes: Any, *_: Any) -> None:
        with self._news:
            if len(self._granted) < MAX_WAITING:
                values = (int(getattr(code, "value", code)) for code in codes)
                self._granted[message_id] = all(value < 0x80 for value in values)
            self._news.notify_all()

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        received = Received(message.topic, bytes(message.payload), bool(message.retain))
        try:
            self._messages.put_nowait(received)
        except queue.Full:
            return


def _parse(url: str) -> tuple[SplitResult, str, bool]:
    example = "for instance mqtt://broker.example:1883 or mqtts://broker.example"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError(f"{url!r} is not the URL of a broker", hint=example) from None
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise UsageError(f"{url!r} is not the URL of a broker", hint=example)
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "a user name or password in the broker's URL is seen by everyone on this machine",
            hint="use --username and --password-file",
        )
    default, transport, tls = _SCHEMES[parts.scheme]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts._replace(netloc=f"{host}:{port or default}"), transport, tls


def _client(client_id: str, transport: str) -> Any:
    options = {"client_id": client_id, "protocol": paho.MQTTv311, "transport": transport}
    versions = getattr(paho, "CallbackAPIVersion", None)
    if versions is None:  # paho-mqtt 1.x
        return paho.Client(clean_session=True, **options)
    return paho.Client(versions.VERSION2, clean_session=True, **options)


def _use_tls(client: Any, options: BrokerOptions) -> None:
    for what, name in (("--ca", options.ca), ("--cert", options.cert), ("--key", options.key)):
        if name and not Path(name).is_file():
            raise UsageError(f"{what}: there is no file {name}")
    if bool(options.cert) != bool(options.key):
        raise UsageError("a client certificate needs both --cert and --key")
    try:
        client.tls_set(
            ca_certs=options.ca or None,
            certfile=options.cert or None,
            keyfile=options.key or None,
        )
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"the certificates cannot be used: {_reason(error)}") from None


def _password(name: str) -> str | None:
    if not name:
        return None
    try:
        return Path(name).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the password file {name} cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    return getattr(error, "strerror", None) or str(error)
