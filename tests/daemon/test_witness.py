"""Evidence is written beside everything else, and a full disk stops nothing."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from agent.control.evidence import Entry, read_line
from agent.control.state import DeviceState, SlotState
from agent.daemon import witness
from agent.daemon.witness import Witness, started
from agent.documents.settings import Settings
from agent.errors import StoreError
from agent.store.evidence import EvidenceLog
from tests.control.stories import A, slot
from tests.store.recorder import FailingFiles, QuickFiles


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, timeout=30))


def told(folder: Path) -> list[tuple[str, str, int]]:
    found = map(read_line, EvidenceLog(QuickFiles(), folder).lines())
    return [(line.what.kind, line.what.slot, line.what.count) for line in found if line]


def test_the_start_comes_first_and_the_rest_in_order(tmp_path: Path) -> None:
    async def story() -> None:
        one = Witness(EvidenceLog(QuickFiles(), tmp_path))
        one.note([Entry("activated", "a"), Entry("proven", "b")])
        task = asyncio.ensure_future(one.run(lambda: Entry("started")))
        while len(told(tmp_path)) < 3:
            await asyncio.sleep(0.001)
        one.note([Entry("removed", "c")])
        await one.flush()
        task.cancel()

    run(story())
    assert [kind for kind, *_ in told(tmp_path)] == ["started", "activated", "proven", "removed"]


def test_a_full_disk_is_told_once_and_what_happened_meanwhile_is_written_later(
    tmp_path: Path,
) -> None:
    troubles: list[StoreError | None] = []

    async def story() -> None:
        files = FailingFiles(0)
        files.fail_next("write", errno.ENOSPC, times=3)
        chain = EvidenceLog(files, tmp_path)
        one = Witness(chain, trouble=troubles.append, try_again_s=0.001)
        task = asyncio.ensure_future(one.run(lambda: Entry("started")))
        one.note([Entry("activated", "a")])
        while not troubles or troubles[-1] is not None:
            await asyncio.sleep(0.001)
        task.cancel()

    run(story())
    assert len(troubles) == 4
    assert [kind for kind, *_ in told(tmp_path)] == ["started", "activated"]


def test_what_no_longer_fits_into_memory_is_counted_and_the_count_is_a_line(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        one = Witness(EvidenceLog(QuickFiles(), tmp_path))
        one.note([Entry("proven", str(number)) for number in range(witness.WAITING_MAX + 7)])
        await one.flush()

    run(story())
    lines = told(tmp_path)
    assert len(lines) == witness.WAITING_MAX + 1
    assert lines[-1] == ("missed", "", 7)


def test_the_line_of_a_start_says_what_serves_and_whom_the_settings_trust(tmp_path: Path) -> None:
    state = DeviceState(deployment="one", slots={"vib": SlotState(slot(A)), "new": SlotState()})
    settings = Settings(device_id="press-7", state_dir=str(tmp_path))
    entry = started(settings, state)
    assert (entry.serving, entry.deployment, entry.unsigned) == (
        {"vib": A},
        "one",
        settings.trust.unsigned,
    )
    assert len(entry.settings) == 64
