"""A real device for tests: `edgeward run` in a process of its own, against a real broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition
from typing import Any

import paho.mqtt.client as paho

from agent.links.local import ask

WITHIN_S = 20.0


@dataclass
class Device:
    """One agent with its own state directory; `start` may be called again after a `kill`."""

    folder: Path
    broker_url: str
    device_id: str = "press-7"
    extra: str = ""
    # Lines of `[link]`; none: the broker.
    link: str = ""
    # The program to run in place of `edgeward run`, for tests that kill it at a chosen point.
    program: tuple[str, ...] = ("-m", "agent", "run")
    environment: dict[str, str] = field(default_factory=dict)
    state: Path | None = None
    # What runs the program, such as a tracer.
    wrapper: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.folder / "agent.toml"

    @property
    def state_dir(self) -> Path:
        return self.state or self.folder / "state"

    @property
    def log(self) -> str:
        path = self.folder / "stderr.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def write_config(self) -> None:
        self.config.write_text(
            f'device_id = "{self.device_id}"\nstate_dir = "{self.state_dir}"\n'
            f"[link]\n{self.link or f'url = {json.dumps(self.broker_url)}'}\n{self.extra}\n"
        )

    def start(self) -> Device:
        """Start the agent and return when its local socket answers."""
        self.spawn()
        until(self.answers, "the agent answers on its socket", process=self.process, log=self)
        return self

    def spawn(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_config()
        with (self.folder / "stderr.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, sys.executable, *self.program, "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )

    def answers(self) -> bool:
        try:
            return "error" not in self.status()
        except Exception:
            return False

    def status(self) -> dict[str, Any]:
        return ask(self.state_dir / "agent.sock", {"command": "status"})

    def ask(self, **request: Any) -> dict[str, Any]:
        return ask(self.state_dir / "agent.sock", request)

    def slot(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.status().get("slots", {}).get(name, {})
        return found

    def wait_for(self, name: str, state: str, pack: str = "") -> dict[str, Any]:
        """Return the slot's status when it is in a state (and, where given, serves a pack)."""

        def there() -> dict[str, Any] | None:
            slot = self.slot(name)
            fits = slot.get("state") == state and (not pack or slot.get("pack") == pack)
            return slot if fits else None

        found: dict[str, Any] = until(there, f"slot {name} is {state}", log=self)
        return found

    def kill(self, sign: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(sign)
        self.process.wait(timeout=WITHIN_S)

    def stop(self) -> int:
        """End it in order, and return its exit status."""
        if self.process is None or self.process.poll() is not None:
            return self.process.returncode if self.process is not None else 0
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=WITHIN_S)


def until(
    condition: Callable[[], Any],
    what: str,
    *,
    within_s: float = WITHIN_S,
    process: subprocess.Popen[bytes] | None = None,
    log: Device | None = None,
) -> Any:
    """Return what `condition` returns once it is true; fail with `what` after the deadline.

    It asks the other side again and again, since what it waits for lies in another process; the
    pause between two questions is a wait on that process where there is one.
    """
    deadline = time.monotonic() + within_s
    pause = Condition()
    while True:
        found = condition()
        if found:
            return found
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the agent ended ({process.returncode}): {log and log.log}")
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what}\n{log and log.log[-6000:]}")
        with pause:
            pause.wait(0.02)


@dataclass
class Client:
    """A sensor and consumer on the broker: paho, so that our own client is not its own witness."""

    url: str
    client_id: str = "tester"
    clean: bool = True
    # User name and password.
    login: tuple[str, str] | None = None
    received: list[paho.MQTTMessage] = field(default_factory=list)
    _changed: Condition = field(default_factory=Condition)

    def __post_init__(self) -> None:
        host, _, port = self.url.removeprefix("mqtt://").partition(":")
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id=self.client_id, clean_session=self.clean
        )
        self.client.on_message = self._on_message
        self.client.on_subscribe = self._wake
        self.client.on_connect = self._wake
        self.client.max_inflight_messages_set(1000)
        self.client.reconnect_delay_set(0.05, 0.2)
        if self.login is not None:
            self.client.username_pw_set(*self.login)
        self.client.connect(host, int(port), keepalive=30)
        self.client.loop_start()
        self._wait(self.client.is_connected, "connected")

    def _wake(self, *_: Any) -> None:
        with self._changed:
            self._changed.notify_all()

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.received.append(message)
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> Any:
        deadline = time.monotonic() + within_s
        with self._changed:
            while True:
                found = condition()
                if found:
                    return found
                if time.monotonic() > deadline:
                    raise AssertionError(f"not within {within_s} s: {what}")
                self._changed.wait(0.2)

    def subscribe(self, topic: str, qos: int = 1) -> None:
        granted: list[Any] = []

        def on_subscribe(*args: Any) -> None:
            granted.append(args)
            self._wake()

        self.client.on_subscribe = on_subscribe
        self.client.subscribe(topic, qos)
        self._wait(lambda: granted, f"subscribed to {topic}")

    def publish(self, topic: str, payload: bytes | str, qos: int = 1, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos, retain).wait_for_publish(WITHIN_S)

    def on(self, topic: str) -> list[paho.MQTTMessage]:
        return [message for message in self.received if message.topic == topic]

    def wait_for(
        self, topic: str, count: int = 1, within_s: float = WITHIN_S
    ) -> list[paho.MQTTMessage]:
        """Return the messages on a topic once there are so many."""

        def enough() -> list[paho.MQTTMessage] | None:
            found = self.on(topic)
            return found if len(found) >= count else None

        what = f"{count} messages on {topic}"
        found: list[paho.MQTTMessage] = self._wait(enough, what, within_s)
        return found

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@contextmanager
def client(url: str, **fields: Any) -> Iterator[Client]:
    opened = Client(url, **fields)
    try:
        yield opened
    finally:
        opened.close()


def v2_request(values: list[float], name: str, message_id: str) -> str:
    """A V2 JSON request with one FP32 input of one row."""
    tensor = {"name": name, "shape": [1, len(values)], "datatype": "FP32", "data": values}
    return json.dumps({"id": message_id, "inputs": [tensor]})


def desired(deployment: str, **slots: dict[str, Any]) -> str:
    return json.dumps({"schema": 1, "deployment": deployment, "slots": slots})
