"""A stream at QoS 1 while its worker, its agent and its broker are killed, again and again.

`python -m tests.scenarios.chaos --seconds 60` runs it alone and prints what happened.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.brokers import LocalBroker
from tests.scenarios.device import Client, Device, desired, until, v2_request

RATE_PER_S = 200.0
DRAIN_S = 40.0


@dataclass
class Verdict:
    """What the stream's own client saw."""

    sent: int = 0
    answered: int = 0
    lost: int = 0
    repeats: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    # The longest silence between two answers, in seconds.
    longest_silence_s: float = 0.0


class Stream:
    """Sends one message after the other at a fixed rate and collects the answers by id."""

    def __init__(self, url: str) -> None:
        self.sensor = Client(url, client_id="sensor", clean=False)
        self.consumer = Client(url, client_id="consumer", clean=False)
        self.consumer.subscribe("out/#")
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        started = time.monotonic()
        while not self._stop.wait(max(0.0, started + self.sent / RATE_PER_S - time.monotonic())):
            payload = v2_request([1.0, 2.0, 3.0, 4.0], "x", str(self.sent))
            self.sensor.client.publish("in/a", payload, qos=1)
            self.sent += 1

    def answered(self) -> Counter[str]:
        return Counter(
            json.loads(message.payload)["id"] for message in list(self.consumer.received)
        )

    def longest_silence_s(self) -> float:
        times = [message.timestamp for message in list(self.consumer.received)]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def close(self) -> None:
        self.sensor.close()
        self.consumer.close()


def run(device: Device, broker: LocalBroker, seconds: float, rounds: int) -> Verdict:
    """Stream for so long, killing each of the three so many times; then wait for every answer."""
    stream = Stream(broker.url)
    kills: Counter[str] = Counter()

    def worker() -> None:
        pid = until(lambda: device.slot("vib").get("worker_pid"), "a worker", log=device)
        os.kill(int(pid), signal.SIGKILL)

    def agent() -> None:
        device.kill()
        device.start()

    acts: dict[str, Callable[[], None]] = {
        "worker": worker,
        "agent": agent,
        "broker": broker.restart,
    }
    stream.start()
    pause = threading.Event()
    try:
        for _ in range(rounds):
            for name, act in acts.items():
                pause.wait(seconds / (rounds * len(acts)))
                act()
                kills[name] += 1
        stream.stop()
        until(
            lambda: len(stream.answered()) >= stream.sent,
            "every message is answered",
            within_s=DRAIN_S,
            log=device,
        )
    except AssertionError as late:
        if "every message" not in str(late):
            raise
    finally:
        stream.stop()
    answered = stream.answered()
    verdict = Verdict(
        sent=stream.sent,
        answered=len(answered),
        lost=stream.sent - len(answered),
        repeats=sum(answered.values()) - len(answered),
        kills=dict(kills),
        longest_silence_s=round(stream.longest_silence_s(), 3),
    )
    stream.close()
    return verdict


def prepare(device: Device, broker: LocalBroker, folder: Path, pack: str) -> None:
    """Deploy the pack and wait until it serves."""
    slot = {
        "pack": pack,
        "from": f"file:{folder}",
        "input": {"topic": "in/+", "qos": 1},
        "output": {"topic": "out/{1}", "qos": 1},
        "rollout": {"probation_s": 0.2},
    }
    sender = Client(broker.url, client_id="console")
    sender.publish(f"edgeward/{device.device_id}/desired", desired("one", vib=slot), retain=True)
    sender.close()
    device.wait_for("vib", "active", pack)


def main() -> None:
    from tests.scenarios.conftest import Packs

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "broker").mkdir()
        (folder / "packs").mkdir()
        broker = LocalBroker(folder / "broker", persistent=True).start()
        device = Device(folder / "d", broker.url, extra=f'[fetch]\nroots = ["{folder}"]\n')
        device.start()
        packed = Packs(folder / "packs").affine(1)
        prepare(device, broker, packed.directory, packed.pack)
        print(json.dumps(asdict(run(device, broker, options.seconds, options.rounds))))
        device.stop()
        broker.stop()


if __name__ == "__main__":
    main()
