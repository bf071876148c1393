"""A broker and a device for all tests of one file, and the words that their stories share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho

from tests.brokers import LocalBroker
from tests.scenarios.conftest import Packs
from tests.scenarios.device import WITHIN_S, Client, Device, desired, until, v2_request

ROW = [1.0, 2.0, 3.0, 4.0]


@dataclass
class Running:
    """One device on its own broker, and a client that plays console, sensor and consumer."""

    broker: LocalBroker
    device: Device
    user: Client
    # What every deployment holds beside its slots.
    telemetry: dict[str, Any] = field(default_factory=dict)
    _deployed: int = 0

    def topic(self, name: str) -> str:
        """A topic of the device, such as `events`."""
        return f"edgeward/{self.device.device_id}/{name}"

    def deploy(self, **slots: dict[str, Any]) -> str:
        """Make this the desired document; return its name."""
        self._deployed += 1
        name = f"d{self._deployed}"
        document = json.loads(desired(name, **slots))
        if self.telemetry:
            document["telemetry"] = self.telemetry
        self.user.publish(self.topic("desired"), json.dumps(document), retain=True)
        return name

    def serve(self, **slots: dict[str, Any]) -> None:
        """Deploy, and wait until every slot serves what it should."""
        self.deploy(**slots)
        for name, slot in slots.items():
            self.device.wait_for(name, "active", slot["pack"])

    def settle(self, name: str, pack: str, state: str = "failed") -> dict[str, Any]:
        """Return a slot's status once the rollout of a pack has ended so."""

        def ended() -> dict[str, Any] | None:
            slot = self.device.slot(name)
            return slot if (slot.get("state"), slot.get("wanted")) == (state, pack) else None

        what = f"{name}: the rollout of {pack[:19]} is {state}"
        found: dict[str, Any] = until(ended, what, within_s=WITHIN_S * 2, log=self.device)
        return found

    def answers(self, topic: str, since: int = 0) -> list[dict[str, Any]]:
        """The answers that came on a topic, decoded, from the one numbered `since` on."""
        return [json.loads(message.payload) for message in self.user.on(topic)[since:]]

    def answer_to(self, message_id: str, topic: str, within_s: float = WITHIN_S) -> dict[str, Any]:
        """Wait for the answer with an id."""

        def answered() -> dict[str, Any] | None:
            return next((a for a in self.answers(topic) if a.get("id") == message_id), None)

        found: dict[str, Any] = until(
            answered, f"an answer to {message_id} on {topic}", within_s=within_s, log=self.device
        )
        return found

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Wait for an event of a kind with such fields; `events` must be subscribed to."""

        def told() -> dict[str, Any] | None:
            for event in documents(self.user.on(self.topic("events"))):
                if event.get("event") == kind and fields.items() <= event.items():
                    return event
            return None

        found: dict[str, Any] = until(told, f"the event {kind} {fields}", log=self.device)
        return found

    def predict(
        self, message_id: str, source: str = "in/a", answers: str = "out/a", row: Any = None
    ) -> dict[str, Any]:
        """Send a row and return the answer to it."""
        self.user.publish(source, v2_request(row or ROW, "x", message_id))
        return self.answer_to(message_id, answers)


@contextmanager
def running(
    folder: Path,
    packs: Packs,
    *,
    limits: str = "",
    extra: str = "",
    broker: Callable[[Path], LocalBroker] | None = None,
    login: tuple[str, str] | None = None,
    state_dir: Path | None = None,
    wrapper: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    program: tuple[str, ...] = ("-m", "agent", "run"),
    start: bool = True,
) -> Iterator[Running]:
    """A started device, client and broker below `folder`.

    Args:
        folder: Empty.
        packs: Its packs, and what lies below `folder`, may be fetched as `file:`.
        limits: Lines of `[limits]`.
        extra: Further lines of the device's configuration, each section with its head; lines
            before the first head belong to `[link]`; `{url}` is the broker's.
        broker: Makes the broker in its folder; default: one that keeps sessions over restarts.
        login: The client's name and password.
        state_dir: Where the device keeps its state; default: below `folder`.
        wrapper: What runs the agent, such as a tracer.
        environment: Beside that of the tests.
        program: What to run in place of `edgeward run`.
        start: Start the device.
    """
    (folder / "broker").mkdir()
    make = broker or persistent
    started = make(folder / "broker").start()
    extra = extra.replace("{url}", started.url)
    text = f'{extra}\n[fetch]\nroots = ["{packs.folder}", "{folder}"]\n[limits]\n{limits}\n'
    device = Device(
        folder / "device",
        started.url,
        "press-7",
        text,
        state=state_dir,
        wrapper=wrapper,
        environment=environment or {},
        program=program,
    )
    user = Client(started.url, login=login)
    try:
        user.subscribe("out/#")
        if start:
            device.start()
        yield Running(started, device, user)
    finally:
        user.close()
        device.stop()
        started.stop()


def persistent(folder: Path) -> LocalBroker:
    return LocalBroker(folder, persistent=True)


def slot(
    packed: Any, source: str = "in/+", answers: str = "out/{1}", **more: Any
) -> dict[str, Any]:
    """A slot of a deployment for something packed.

    Args:
        packed: What `pack` returned.
        source: The input topic.
        answers: The output topic.
        more: Further members; `input`, `output` and `rollout` are merged into what is there.
    """
    wanted: dict[str, Any] = {
        "pack": packed.pack,
        "from": f"file:{packed.directory}",
        "input": {"topic": source},
        "output": {"topic": answers},
        "rollout": {"probation_s": 0.2},
    }
    for name, value in more.items():
        known = wanted.get(name)
        wanted[name] = {**known, **value} if isinstance(known, dict) else value
    return wanted


def documents(messages: list[paho.MQTTMessage]) -> list[dict[str, Any]]:
    return [json.loads(message.payload) for message in messages]


def seconds(act: Callable[[], Any]) -> float:
    """How long something takes."""
    started = time.monotonic()
    act()
    return time.monotonic() - started
