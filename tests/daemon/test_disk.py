"""What a start makes of a damaged state directory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.control.state import DeviceState
from agent.daemon import disk as disks
from agent.daemon.disk import Disk
from agent.documents.settings import Connection, Settings
from agent.errors import NoSpace, StoreError
from agent.store.files import Files, Space

SAVED = DeviceState(deployment="d1")


def disk(root: Path, files: Files | None = None) -> Disk:
    link = Connection(url="mqtt://127.0.0.1")
    settings = Settings(device_id="press-7", link=link, state_dir=str(root))
    return Disk(files or Files(), settings, "b")


def save(root: Path, times: int = 2) -> None:
    for _ in range(times):
        disk(root).state_file.save(msgspec.json.encode(SAVED))


def damage(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(b"\0" * 100)


def test_a_new_device_has_lost_nothing(tmp_path: Path) -> None:
    assert disk(tmp_path).load_state() == DeviceState()


def test_one_damaged_generation_costs_nothing_but_the_newest_state(tmp_path: Path) -> None:
    save(tmp_path)
    damage(tmp_path / "state.0")
    assert disk(tmp_path).load_state() == SAVED


def test_with_both_generations_damaged_they_are_kept_and_the_loss_outlives_a_restart(
    tmp_path: Path,
) -> None:
    save(tmp_path)
    damage(tmp_path / "state.0", tmp_path / "state.1")
    for _ in range(3):
        assert disk(tmp_path).load_state() == DeviceState(lost=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.bad.0", "state.bad.1"]
    save(tmp_path, 1)
    assert disk(tmp_path).load_state() == SAVED


def test_a_state_of_another_version_is_kept_and_not_served(tmp_path: Path) -> None:
    disk(tmp_path).state_file.save(b'{"schema": 2}')
    assert disk(tmp_path).load_state() == DeviceState(lost=True)
    assert b'{"schema": 2}' in (tmp_path / "state.bad.1").read_bytes()


def test_a_disk_that_takes_no_spool_leaves_no_descriptor_open(tmp_path: Path) -> None:
    class Full(Files):
        def before(self, op: object, path: Path) -> None:
            if op == "write" and path.name.startswith("ledger"):
                raise NoSpace("the disk is full")

    disk(tmp_path).open_spool().close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(StoreError):
            disk(tmp_path, Full()).open_spool()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class FillingDisk(Files):
    """A disk with as much room as it is told, and what a test waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.free_bytes = 1 << 30
        self.full = False
        self.asked, self.filled = asyncio.Event(), asyncio.Event()

    def before(self, op: object, path: Path) -> None:
        if op == "write" and self.full:
            raise NoSpace("the disk is full")
        if op == "unlink" and path.name == "ballast":
            self.full = False
        if op == "rename" and "ballast" in path.name:
            self.filled.set()

    def space(self, path: Path) -> Space:
        self.asked.set()
        return Space(free_bytes=self.free_bytes, total_bytes=1 << 31)


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 10))


def test_ballast_given_up_for_the_state_is_made_again_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "REFILL_AGAIN_S", 0.01)
    ballast = tmp_path / "ballast"

    async def story() -> None:
        files = FillingDisk()
        kept = disk(tmp_path, files)
        kept.tidy()
        assert ballast.exists()
        files.free_bytes, files.full = 0, True
        kept.state_file.save(msgspec.json.encode(SAVED))
        assert not ballast.exists()
        files.asked.clear()
        await files.asked.wait()
        assert not ballast.exists()
        files.free_bytes = 1 << 30
        files.filled.clear()
        await files.filled.wait()
        assert ballast.exists()
        files.full = True
        kept.state_file.save(msgspec.json.encode(SAVED))

    play(story)


def test_a_start_on_a_full_disk_makes_the_ballast_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "REFILL_AGAIN_S", 0.01)

    async def story() -> None:
        files = FillingDisk()
        files.free_bytes = 0
        disk(tmp_path, files).tidy()
        assert not (tmp_path / "ballast").exists()
        files.free_bytes = 1 << 30
        await files.filled.wait()
        assert (tmp_path / "ballast").exists()

    play(story)
