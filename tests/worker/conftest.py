"""What the worker's tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.links.template import TemplateProcess, start_template
from agent.links.worker import BlockingWorker
from agent.wire.worker import Load

Start = Callable[..., BlockingWorker]


@pytest.fixture(scope="session")
def templates() -> Iterator[dict[str, TemplateProcess]]:
    """One template a runtime, which outlives whatever its workers do."""
    running: dict[str, TemplateProcess] = {}
    yield running
    for template in running.values():
        template.kill()


@pytest.fixture
def start(templates: dict[str, TemplateProcess]) -> Iterator[Start]:
    """Return what starts a worker for a pack's folder; each ends with the test."""
    started: list[BlockingWorker] = []

    def start(pack: Path, runtime: str, *, deadline_s: float = 20.0, **load: Any) -> BlockingWorker:
        if runtime not in templates:
            templates[runtime] = start_template(runtime)
        worker = BlockingWorker(
            runtime,
            Load(directory=str(pack), pack="sha256:" + "0" * 64, variant="cpu", **load),
            template=templates[runtime],
            load_deadline_s=deadline_s,
            deadline_s=deadline_s,
        )
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.close()
