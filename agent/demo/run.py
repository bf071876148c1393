"""The demo's story, scene by scene. Everything it claims is counted by its own MQTT client."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.author import publish
from agent.demo.brokers import DemoBroker, find_broker
from agent.demo.fleet import THERMAL, VIBRATION, Consumer, Fleet
from agent.demo.ledger import Ledger
from agent.demo.stage import Console, DemoDevice, wait_until
from agent.demo.workshop import Workshop, make_packs

DEFAULT_SECONDS = 75.0
LEAST_SECONDS = 20.0
SEED = 7
DRAIN_S = 20.0


@dataclass
class Progress:
    """What the show can look at; written by the story, read by the screen."""

    seconds: float
    scene: str = "making models from the machines' physics"
    scenes: list[str] = field(default_factory=list)
    started: float = 0.0
    transferred: tuple[int, int] | None = None
    ledger: Ledger = field(default_factory=Ledger)
    lock: threading.Lock = field(default_factory=threading.Lock)
    fleet: Fleet | None = None
    consumer: Consumer | None = None
    workshop: Workshop | None = None
    broker: str = ""
    rejected: int = 0
    worker_restarts: int = 0
    broker_drops: int = 0
    # Why each refused pack was refused, in the device's words.
    refusals: list[str] = field(default_factory=list)

    def begin(self, scene: str) -> None:
        self.scene = scene
        self.scenes.append(scene)

    def result(self) -> dict[str, Any]:
        """The numbers, as `--json` prints them."""
        with self.lock:
            ledger = self.ledger
            return {
                "predictions": ledger.predictions,
                "lost": ledger.lost,
                "duplicates": ledger.duplicates,
                "switches": ledger.switches,
                "rejected": self.rejected,
                "worker_restarts": self.worker_restarts,
                "broker_drops": self.broker_drops,
                "broker": self.broker,
                "messages": len(ledger.sent),
                "seconds": round(time.monotonic() - self.started, 1) if self.started else 0.0,
                "refusals": self.refusals,
                "slots": {
                    name: {
                        "runtime": slot.runtime,
                        "provider": slot.provider,
                        "pack": slot.packs[-1],
                        "version": slot.version_of[slot.packs[-1]],
                        "p50_ms": slot.p50_ms,
                        "predictions": slot.answered,
                        "accuracy_by_version": {
                            slot.version_of[pack]: round(slot.accuracy_of(pack) or 0.0, 4)
                            for pack in dict.fromkeys(slot.packs)
                        },
                    }
                    for name, slot in ledger.slots.items()
                },
            }


class Story:
    """Builds everything in a temporary folder, plays the scenes, takes everything down."""

    def __init__(self, progress: Progress, folder: Path, broker: str) -> None:
        self.progress = progress
        self._folder = folder
        self._broker: DemoBroker = find_broker(folder, broker)
        self._device = DemoDevice(folder / "device", self._broker.port, self._broker.version)
        self._console = Console(self._broker.port, self._on_event)
        self._closing = contextlib.ExitStack()

    def play(self) -> None:
        progress = self.progress
        progress.workshop = make_packs(self._folder, SEED)
        with self._closing:
            self._set_up()
            self._pull_models()
            self._stream()
            self._better_model()
            self._bad_packs()
            self._killed_worker()
            self._broker_away()
            self._finish()

    # -- scenes ---------------------------------------------------------------------------------

    def _set_up(self) -> None:
        progress = self.progress
        progress.begin("a broker, and an agent that knows nothing yet")
        progress.broker = self._broker.name
        self._broker.start()
        self._closing.callback(self._broker.stop)
        self._device.start()
        self._closing.callback(self._device.stop)
        wait_until(self._device.connected, "the agent is connected")
        progress.consumer = Consumer(self._broker.port, progress.ledger, progress.lock)
        self._closing.callback(progress.consumer.close)

    def _pull_models(self) -> None:
        shop = self._shop
        self.progress.begin("two packs are pulled over MQTT and prove themselves on the device")
        self._expect("active", shop.bearing_v1.directory, VIBRATION, "vibration")
        self._expect("active", shop.thermal.directory, THERMAL, "thermal")

    def _stream(self) -> None:
        progress = self.progress
        progress.begin("four machines stream; their bearings wear out")
        fleet = Fleet(self._broker.port, progress.ledger, progress.lock, progress.seconds, SEED)
        progress.fleet = fleet
        progress.started = time.monotonic()
        fleet.start()
        self._closing.callback(fleet.close)
        self._closing.callback(fleet.stop)
        self._rest(0.22)

    def _better_model(self) -> None:
        self.progress.begin("a better model is deployed while data flows")
        self._expect("active", self._shop.bearing_v2.directory, VIBRATION, "vibration")
        self._rest(0.42)

    def _bad_packs(self) -> None:
        shop = self._shop
        self.progress.begin("a pack with one bit flipped is refused")
        self._expect("failed", shop.corrupted, VIBRATION, "vibration", check=False)
        self.progress.begin("a pack whose self-test fails here is refused")
        self._expect("failed", shop.lying, VIBRATION, "vibration")
        self._rest(0.55)

    def _killed_worker(self) -> None:
        self.progress.begin("a worker is killed in the middle of its work")
        if self._device.kill_worker(VIBRATION):
            self.progress.worker_restarts += 1
        self._rest(0.7)

    def _broker_away(self) -> None:
        progress = self.progress
        if self._broker.keeps_messages:
            progress.begin("the broker goes away and comes back")
            self._drop()
        else:
            progress.begin("every connection is cut and comes back")
            assert progress.fleet is not None
            with progress.fleet.paused():
                # What is on its way when this broker goes is gone with it.
                self._drained(5.0)
                self._drop()
        self._rest(1.0)

    def _drop(self) -> None:
        self._broker.drop()
        self.progress.broker_drops += 1
        wait_until(self._device.connected, "the agent is connected again")
        assert self.progress.consumer is not None
        wait_until(self.progress.consumer.listens, "the consumer listens again")

    def _finish(self) -> None:
        self.progress.begin("the sensors stop; every message gets its answer")
        assert self.progress.fleet is not None
        self.progress.fleet.stop()
        self._drained(DRAIN_S)
        self.progress.begin("done")

    # -- helpers --------------------------------------------------------------------------------

    @property
    def _shop(self) -> Workshop:
        assert self.progress.workshop is not None
        return self.progress.workshop

    def _expect(
        self, state: str, directory: Path, slot: str, source: str, *, check: bool = True
    ) -> None:
        verdict = self._console.deploy(directory, slot, source, check=check)
        if state == "failed" and verdict == "failed":
            self.progress.rejected += 1
            error = self._console.verdicts[-1].error
            self.progress.refusals.append(f"{error.code}: {error.message}" if error else "")

    def _rest(self, share: float) -> None:
        """Let the stream go on until this share of the show's time is over."""
        end = self.progress.started + share * self.progress.seconds
        threading.Event().wait(max(0.5, end - time.monotonic()))

    def _drained(self, within_s: float) -> None:
        with contextlib.suppress(Exception):
            wait_until(self._all_answered, "every message has its answer", within_s)

    def _all_answered(self) -> bool:
        with self.progress.lock:
            return self.progress.ledger.lost == 0

    def _on_event(self, event: publish.Event) -> None:
        if isinstance(event, publish.Transferred):
            self.progress.transferred = (event.done_bytes, event.total_bytes)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="edgeward-demo-") as name:
        yield Path(name)


Screen = Callable[[Progress], contextlib.AbstractContextManager[Any]]


def play(seconds: float, on_start: Screen, *, broker: str = "auto") -> Progress:
    """Play the whole story.

    Args:
        seconds: How long the sensors stream.
        on_start: Opens the screen for this progress.
        broker: `auto`, `mosquitto` or `embedded`.
    """
    progress = Progress(max(LEAST_SECONDS, seconds))
    with temporary_folder() as folder, on_start(progress):
        Story(progress, folder, broker).play()
    return progress


def as_json(progress: Progress) -> str:
    return json.dumps(progress.result(), separators=(",", ":"))
