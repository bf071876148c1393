"""What the worker's tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.links.worker import BlockingWorker
from agent.wire.worker import Load

Start = Callable[..., BlockingWorker]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return what starts a worker for a pack's folder; each ends with the test."""
    started: list[BlockingWorker] = []

    def start(pack: Path, runtime: str, *, deadline_s: float = 20.0, **load: Any) -> BlockingWorker:
        worker = BlockingWorker(
            runtime,
            Load(directory=str(pack), pack="sha256:" + "0" * 64, variant="cpu", **load),
            load_deadline_s=deadline_s,
            deadline_s=deadline_s,
        )
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.close()
