"""What a start makes of a damaged state directory."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.control.state import DeviceState
from agent.daemon.disk import Disk
from agent.documents.settings import Connection, Settings
from agent.errors import NoSpace, StoreError
from agent.store.files import Files

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
