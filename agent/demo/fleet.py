"""The demo's sensors and its consumer: paho clients that know nothing of the agent but topics."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as paho

from agent.demo import physics
from agent.demo.ledger import Ledger, Sent
from agent.demo.models import THERMAL_LABELS

MACHINES = 4
# One second of the viewer's time is a minute of the machines'.
SPEED = 60.0
THERMAL_WINDOW = 8
VIBRATION, THERMAL = "bearing", "thermal"
CONNECT_WITHIN_S = 15.0


def client(port: int, client_id: str, on_message: Callable[..., None] | None = None) -> paho.Client:
    """A connected paho client with a session that outlives its connection."""
    made = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=False)
    connected = threading.Event()
    made.on_connect = lambda *_: connected.set()
    if on_message is not None:
        made.on_message = on_message
    made.max_inflight_messages_set(200)
    made.reconnect_delay_set(0.1, 0.5)
    made.connect("127.0.0.1", port, keepalive=20)
    made.loop_start()
    connected.wait(CONNECT_WITHIN_S)
    return made


class Consumer:
    """Receives every prediction and enters it in the ledger."""

    def __init__(self, port: int, ledger: Ledger, lock: threading.Lock) -> None:
        self._ledger = ledger
        self._lock = lock
        self.last: dict[str, str] = {}
        self._client = client(port, "demo-consumer", self._on_message)
        self._granted = threading.Event()
        self._client.on_subscribe = lambda *_: self._granted.set()
        self._client.on_disconnect = lambda *_: self._granted.clear()
        # Again after each reconnect: the embedded broker forgets.
        self._client.on_connect = lambda made, *_: made.subscribe("predictions/#", qos=1)
        self._client.subscribe("predictions/#", qos=1)
        self._granted.wait(CONNECT_WITHIN_S)

    def listens(self) -> bool:
        """Whether the broker has what it takes to send predictions."""
        return self._granted.is_set()

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        at = time.monotonic()
        answer = json.loads(message.payload)
        label = label_of(answer)
        with self._lock:
            self._ledger.note_answer(answer, label, at)
            self.last[message.topic] = label

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def label_of(answer: dict[str, Any]) -> str:
    """The class that a prediction names; both packs end in a step that adds `label`."""
    for output in answer.get("outputs", ()):
        if output["name"] == "label":
            return str(output["data"][0])
    return ""


class Fleet:
    """A few machines whose sensors publish in real time until `stop`."""

    def __init__(
        self, port: int, ledger: Ledger, lock: threading.Lock, horizon_s: float, seed: int
    ) -> None:
        self.machines = physics.fleet(MACHINES, horizon_s=horizon_s * SPEED, seed=seed)
        self.conditions = {machine.name: "healthy" for machine in self.machines}
        self.wear = {machine.name: 0.0 for machine in self.machines}
        self._nodes = [
            physics.SensorNode(machine, seed=seed + i) for i, machine in enumerate(self.machines)
        ]
        self._ledger = ledger
        self._lock = lock
        self._client = client(port, "demo-sensors")
        self._number = 0
        self._readings = dict.fromkeys((machine.name for machine in self.machines), 0)
        self._paused = threading.Event()
        self._stop = threading.Event()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold the sensors still, and go on afterwards."""
        self._idle.clear()
        self._paused.set()
        self._idle.wait(2.0)
        try:
            yield
        finally:
            self._paused.clear()

    def _run(self) -> None:
        every = physics.SNAPSHOT_EVERY_S / SPEED
        thermal_every = round(physics.THERMAL_EVERY_S / physics.SNAPSHOT_EVERY_S)
        started, tick, held = time.monotonic(), 0, 0.0
        while not self._stop.wait(max(0.0, started + held + tick * every - time.monotonic())):
            if self._paused.is_set():
                self._idle.set()
                held += every
                continue
            at_s = tick * physics.SNAPSHOT_EVERY_S
            for machine, node in zip(self.machines, self._nodes, strict=True):
                self._vibration(machine.name, node.vibration(at_s))
                if tick % thermal_every == 0:
                    self._thermal(machine.name, node.thermal(at_s))
            tick += 1

    def _vibration(self, name: str, snapshot: physics.VibrationSnapshot) -> None:
        self.conditions[name], self.wear[name] = snapshot.condition, snapshot.wear
        values = [round(float(value), 3) for value in snapshot.samples_g]
        tensor = {
            "name": "acceleration",
            "shape": [1, len(values)],
            "datatype": "FP32",
            "data": values,
        }
        sent = Sent(VIBRATION, snapshot.condition, 0.0, expects_answer=True)
        self._publish(f"sensors/{name}/vibration", {"inputs": [tensor]}, sent)

    def _thermal(self, name: str, reading: physics.ThermalReading) -> None:
        self._readings[name] += 1
        truth = THERMAL_LABELS[0 if reading.condition == physics.CONDITIONS[0] else 1]
        full = self._readings[name] >= THERMAL_WINDOW
        fields = {
            channel: round(getattr(reading, channel), 3) for channel in physics.THERMAL_CHANNELS
        }
        sent = Sent(THERMAL, truth, 0.0, expects_answer=full)
        self._publish(f"sensors/{name}/thermal", fields, sent)

    def _publish(self, topic: str, payload: dict[str, Any], sent: Sent) -> None:
        self._number += 1
        message_id = f"m{self._number}"
        data = json.dumps({"id": message_id, **payload}, separators=(",", ":"))
        sent.at = time.monotonic()
        with self._lock:
            self._ledger.note_sent(message_id, sent)
        self._client.publish(topic, data, qos=1)
