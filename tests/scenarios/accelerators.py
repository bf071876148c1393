"""How long a slot is silent while its Edge TPU is lost, and when it comes back.

`python -m tests.scenarios.accelerators --times 20` has the double of the device unplugged, hung and
crashed so often in a stream of messages, one every 10 ms at QoS 1, and plugged in again each time.
It prints the silence between the last answer before a change and the first one after it, median and
worst in milliseconds, and what of the messages was lost, repeated or out of order.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby, pairwise
from pathlib import Path
from threading import Event, Thread
from typing import Any

from agent.author.pack import Packed, pack
from agent.author.spec import Spec, TensorSpec, VariantSpec
from tests.delegate import double as doubles
from tests.delegate import models
from tests.delegate.double import Double
from tests.scenarios.conftest import Packs
from tests.scenarios.device import until, v2_request
from tests.scenarios.running import Running, running, slot

PROGRAM = Path(__file__).parent.parent / "delegate" / "plugged_in.py"
RETRY_S = 0.4
# A message every 10 ms.
EVERY_S = 0.01
# So many answers from its return to its next loss: long enough that the next one is not its fault.
BETWEEN = 200


@contextmanager
def with_double(folder: Path, packs: Packs, double: Double) -> Iterator[Running]:
    """A device with a double of an Edge TPU in its port, unless `away` is in the folder."""
    double.plug()
    with running(
        folder,
        packs,
        limits=f"accelerator_retry_s = {RETRY_S}",
        environment={"LD_LIBRARY_PATH": str(double.folder), "STICK_AWAY": str(folder / "away")},
        program=(str(PROGRAM),),
    ) as here:
        yield here
        double.plug()


def same(packs: Packs, name: str) -> Packed:
    """A pack with two variants of y = x: compiled for the Edge TPU, and plain."""
    plain, compiled = packs.folder / f"{name}.tflite", packs.folder / f"{name}_edgetpu.tflite"
    plain.write_bytes(models.slow())
    compiled.write_bytes(models.compiled())
    spec = Spec(
        name=name,
        version="1.0",
        inputs=(TensorSpec("x", low=0.0, high=1.0),),
        variants=(VariantSpec(str(compiled)),),
    )
    return pack(plain, packs.folder / name, spec=spec)


def placement(here: Running, name: str) -> dict[str, Any]:
    found: dict[str, Any] = here.device.slot(name).get("placement", {})
    return found


def runs_on(here: Running, name: str, got: str) -> dict[str, Any]:
    """Wait until a slot is run on this, and return its placement."""

    def there() -> dict[str, Any] | None:
        found = placement(here, name)
        return found if found.get("got") == got else None

    found: dict[str, Any] = until(there, f"{name} runs on {got}", log=here.device)
    return found


class Stream:
    """A sensor that sends a message every 10 ms and a consumer that looks at every answer."""

    def __init__(self, here: Running, name: str) -> None:
        self._here = here
        self._name = name
        self._stop = Event()
        self._thread = Thread(target=self._send)
        self.sent = 0

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        started = time.monotonic()
        while not self._stop.wait(max(0.0, started + self.sent * EVERY_S - time.monotonic())):
            row = [float(self.sent), 1.0, 2.0, 3.0]
            self._here.user.client.publish(
                f"in/{self._name}", v2_request(row, "x", f"{self._name}{self.sent}"), 1
            )
            self.sent += 1

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        self._here.user.wait_for(f"out/{self._name}", len(self._answers()) + count)

    def stop(self) -> None:
        """Stop sending, and wait for as many answers as there were messages."""
        self._stop.set()
        self._thread.join()
        self._here.user.wait_for(f"out/{self._name}", self.sent)

    def finish(self) -> None:
        """Stop sending, and hold the answers against what was sent: each once, in order, right."""
        self.stop()
        answers = [json.loads(message.payload) for message in self._answers()]
        assert [a["id"] for a in answers] == [f"{self._name}{n}" for n in range(self.sent)]
        for number, answer in enumerate(answers):
            assert answer["outputs"][0]["data"] == [float(number), 1.0, 2.0, 3.0], answer

    def longest_silence_s(self) -> float:
        """Between two answers."""
        times: list[float] = [message.timestamp for message in self._answers()]
        return max(later - before for before, later in pairwise(times))

    def silences_s(self) -> dict[str, list[float]]:
        """Between two answers of different providers, by the later one."""
        told = [
            (json.loads(m.payload)["parameters"]["provider"], m.timestamp) for m in self._answers()
        ]
        found: dict[str, list[float]] = {}
        for (before, left), (after, came) in pairwise(told):
            if before != after:
                found.setdefault(after, []).append(came - left)
        return found

    def faults(self) -> dict[str, int]:
        """How many messages were lost, answered again, or out of order."""
        ids = [json.loads(message.payload)["id"] for message in self._answers()]
        times = Counter(ids)
        order = list(dict.fromkeys(ids))
        sent = [f"{self._name}{number}" for number in range(self.sent)]
        return {
            "lost": sum(one not in times for one in sent),
            "repeated": sum(count - 1 for count in times.values()),
            "out_of_order": sum(int(a[1:]) > int(b[1:]) for a, b in pairwise(order)),
        }

    def providers(self) -> list[str]:
        """What computed the answers, each change once."""
        told = [json.loads(m.payload)["parameters"]["provider"] for m in self._answers()]
        return [one for one, _ in groupby(told)]

    def _answers(self) -> list[Any]:
        return self._here.user.on(f"out/{self._name}")


LOSSES: dict[str, Callable[[Double], None]] = {
    "unplugged": lambda double: double.unplug(),
    "hung": lambda double: double.set("invoke hangs"),
    "crashed": lambda double: double.set("invoke crashes"),
}


def measure(folder: Path, double: Double, how: str, times: int) -> dict[str, object]:
    """Lose the device so often, and have it back each time."""
    for part in ("packs", "device"):
        (folder / part).mkdir(parents=True)
    packs = Packs(folder / "packs")
    with with_double(folder / "device", packs, double) as here:
        here.serve(a=slot(same(packs, "same")))
        runs_on(here, "a", "edgetpu")
        with Stream(here, "a") as stream:
            for _ in range(times):
                stream.more(BETWEEN)
                LOSSES[how](double)
                runs_on(here, "a", "XNNPACK")
                double.plug()
                runs_on(here, "a", "edgetpu")
            stream.more(BETWEEN)
            with suppress(AssertionError):
                stream.stop()
        silences = stream.silences_s()
        return {
            "times": times,
            "messages": stream.sent,
            **stream.faults(),
            "silence_at_loss_ms": _summary(silences["XNNPACK"], times),
            "silence_at_return_ms": _summary(silences["edgetpu"], times),
        }


def _summary(silences_s: list[float], times: int) -> list[float]:
    assert len(silences_s) == times, silences_s
    return [round(1000 * statistics.median(silences_s), 1), round(1000 * max(silences_s), 1)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.accelerators")
    parser.add_argument("--times", type=int, default=20)
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "double").mkdir()
        double = doubles.build(folder / "double")
        for how in LOSSES:
            print(json.dumps({how: measure(folder / how, double, how, times)}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
