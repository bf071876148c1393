"""Run by tests as a program: the owner of a device over a runtime that doubles.

Argument: the number of its control socket.
"""

from __future__ import annotations

import mmap
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.documents.device import RuntimeFacts
from agent.documents.manifest import Tensor
from agent.documents.report import Placement
from agent.errors import ModelRejected
from agent.runtimes.api import Arrays, Wanted
from agent.worker.owner import Owner


class Session:
    inputs = (Tensor("x", "FP32", (1, 4)),)
    outputs = (Tensor("y", "FP32", (1, 4)),)
    placement = Placement("double", "double", 1.0, 1.0)

    def run(self, arrays: Arrays) -> dict[str, Any]:
        return {"y": arrays["x"] * 2}

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


class Doubling:
    name = "doubling"
    version = "1"
    formats = ("tflite",)
    exclusive = True

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
        if data != b"a model":
            raise ModelRejected("this is no model")
        return Session()


if __name__ == "__main__":
    control = socket.socket(fileno=int(sys.argv[1]))
    Owner(Doubling(), control, mmap.mmap(-1, mmap.PAGESIZE)).serve()
