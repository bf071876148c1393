"""How soon a killed or hung worker is seen, and how soon the next prediction comes.

`python -m tests.scenarios.recovery --times 50` troubles a worker that often in each way, under 200
messages a second at QoS 1: it is killed, sleeps for ever, computes for ever, or is stopped, which
only its deadline tells. Prints medians and worst cases in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

from tests.brokers import LocalBroker
from tests.scenarios.chaos import Stream
from tests.scenarios.conftest import Packs
from tests.scenarios.device import Device, desired, until
from tests.scenarios.hanging_daemon import PROGRAM

DEADLINE_S = 0.3
WAYS = {
    "killed": signal.SIGKILL,
    "asleep": signal.SIGUSR1,
    "spinning": signal.SIGUSR2,
    "stopped": signal.SIGSTOP,
}
DIED = re.compile(r"^(\S+ \S+) WARNING \S+ slot=vib worker=(\d+) died", re.MULTILINE)


def trouble(device: Device, stream: Stream, sign: signal.Signals) -> tuple[float, float, int]:
    """Send a signal to the worker; return when its end was seen and the next answer came, in ms
    after it, and its process id."""
    pid = until(lambda: device.slot("vib").get("worker_pid"), "a worker", log=device)
    answers = stream.consumer.received
    os.kill(pid, sign)
    at = time.time()
    monotonic = time.monotonic()
    already = len(answers)
    until(lambda: any(int(found[1]) == pid for found in DIED.findall(device.log)), "seen")
    told = next(found[0] for found in DIED.findall(device.log) if int(found[1]) == pid)
    when = datetime.strptime(told, "%Y-%m-%d %H:%M:%S,%f").astimezone(timezone.utc)
    seen_s = when.timestamp() - at
    # What was on its way when the worker ended is no answer of the next one.
    since = monotonic + max(0.0, seen_s) + 0.002
    until(lambda: any(m.timestamp > since for m in list(answers)[already:]), "the next answer")
    following = next(m.timestamp for m in list(answers)[already:] if m.timestamp > since)
    return seen_s * 1000, (following - monotonic) * 1000, pid


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.recovery")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    times, ways = options.times, options.ways
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("packs", "broker"):
            (folder / part).mkdir()
        packed = Packs(folder / "packs").affine(1)
        broker = LocalBroker(folder / "broker", persistent=True).start()
        extra = f'[fetch]\nroots = ["{folder}"]\n[limits]\nworker_deadline_s = {DEADLINE_S}\n'
        device = Device(folder / "device", broker.url, extra=extra, program=(str(PROGRAM),)).start()
        stream = Stream(broker.url)
        slot = {
            "pack": packed.pack,
            "from": f"file:{packed.directory}",
            "input": {"topic": "in/+"},
            "output": {"topic": "out/{1}"},
            "rollout": {"probation_s": 0},
            # A pack that keeps dying would go on in another way, which nothing troubles.
            "pin": {"runtime": "onnx"},
        }
        stream.sensor.publish("edgeward/press-7/desired", desired("d", vib=slot), retain=True)
        device.wait_for("vib", "active", packed.pack)
        stream.start()
        result: dict[str, object] = {}
        pause = threading.Event()
        for word in ways:
            seen: list[float] = []
            following: list[float] = []
            for _ in range(times):
                # Some answers in between, or the pack would count as one that keeps dying.
                pause.wait(0.5)
                one = trouble(device, stream, WAYS[word])
                seen.append(one[0])
                following.append(one[1])
            result[word] = {
                "seen_ms": [round(statistics.median(seen), 1), round(max(seen), 1)],
                "next_ms": [round(statistics.median(following), 1), round(max(following), 1)],
            }
        stream.stop()
        until(lambda: len(stream.answered()) >= stream.sent, "every message is answered")
        lost = stream.sent - len(stream.answered())
        print(json.dumps({"times": times, "deadline_s": DEADLINE_S, "lost": lost, **result}))
        stream.close()
        device.stop()
        broker.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
