"""Run by tests as a program: the owner of a device over a runtime that doubles.

Argument: the number of its control socket. Its clock goes on by what runs take, which is what their
model says, and hardly else, so that whose turn it is does not depend on how busy a machine is.
"""

from __future__ import annotations

import mmap
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.documents.device import RuntimeFacts
from agent.documents.manifest import Tensor
from agent.documents.report import Isolation, Placement
from agent.errors import ModelRejected
from agent.runtimes.api import Arrays, Wanted
from agent.worker.owner import Owner

MODEL = b"a model"


# By so much each look at the clock moves it: who waits for a time to come must see it come.
LOOK_S = 1e-6


class Clock:
    """Seconds, most of them of runs, and how many runs there were."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.turns = 0

    def __call__(self) -> float:
        self.now_s += LOOK_S
        return self.now_s


class Session:
    """y = 2 x; `t` is the number of the turn. A run takes `run_s` of the clock."""

    inputs = (Tensor("x", "FP32", (1, 4)),)
    outputs = (Tensor("y", "FP32", (1, 4)), Tensor("t", "INT64", (1,)))
    placement = Placement("double", "double", 1.0, 1.0)

    def __init__(self, clock: Clock, run_s: float) -> None:
        self._clock = clock
        self._run_s = run_s

    def run(self, arrays: Arrays) -> dict[str, Any]:
        self._clock.now_s += self._run_s
        self._clock.turns += 1
        return {"y": arrays["x"] * 2, "t": np.array([self._clock.turns])}

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


class Doubling:
    name = "doubling"
    version = "1"
    formats = ("tflite",)
    exclusive = True

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()

    def facts(self) -> RuntimeFacts:
        return RuntimeFacts(self.name)

    def probe(self) -> str | None:
        return None

    def policy(self) -> str:
        return "strict"

    def open_device(self) -> None:
        pass

    def load(self, model: Path, wanted: Wanted, *, outputs: Sequence[str] = ()) -> Session:
        return self.load_bytes(model.read_bytes(), wanted)

    def load_bytes(self, data: bytes, wanted: Wanted, *, outputs: Sequence[str] = ()) -> Session:
        if not data.startswith(MODEL):
            raise ModelRejected("this is no model")
        return Session(self._clock, float(data[len(MODEL) :] or 0.001))


if __name__ == "__main__":
    control = socket.socket(fileno=int(sys.argv[1]))
    clock = Clock()
    Owner(Doubling(clock), control, mmap.mmap(-1, mmap.PAGESIZE), Isolation(), clock).serve()
