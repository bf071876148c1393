"""The store read again by the agent itself, in steps that whoever asks can watch."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from agent.control.state import DeviceState, SlotState
from agent.daemon.checking import Checking
from agent.documents.report import Failure
from tests.control.stories import slot
from tests.store.samples import NEW, OLD, deliver, store_at
from tests.store.test_check import alter, blob, model

STATE = DeviceState(slots={"vib": SlotState(slot(OLD.pack_id), previous=slot(NEW.pack_id))})


class Device:
    """A store with two packs, of which a slot serves one and can go back to the other."""

    def __init__(self, root: Path) -> None:
        self.damaged: list[tuple[str, Failure]] = []
        self.store = store_at(root)
        for pack in (OLD, NEW):
            deliver(self.store, pack)
        self.checking = Checking(
            self.store,
            root,
            state=lambda: STATE,
            damaged=lambda name, failure: self.damaged.append((name, failure)),
        )

    async def checked(self, *, repair: bool = False) -> dict[str, Any]:
        while True:
            told = await self.checking.check({"command": "store_check", "repair": repair})
            if told["state"] != "checking":
                found: dict[str, Any] = told["found"]
                return found
            await asyncio.sleep(0.001)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, timeout=30))


def test_what_a_slot_serves_is_fetched_again_after_a_repair_and_only_then(tmp_path: Path) -> None:
    device = Device(tmp_path)
    alter(blob(tmp_path, model(OLD)))

    async def story() -> None:
        assert (await device.checked())["bad_packs"][0]["needed"] == ("serves slot vib",)
        assert device.damaged == []
        found = await device.checked(repair=True)
        assert "the only copy of what serves" in found["bad_packs"][0]["done"]

    run(story())
    assert [(name, why.code) for name, why in device.damaged] == [("vib", "store_corrupt")]


def test_the_way_back_is_repaired_without_disturbing_what_serves(tmp_path: Path) -> None:
    device = Device(tmp_path)
    alter(blob(tmp_path, model(NEW)))

    async def story() -> None:
        found = await device.checked(repair=True)
        assert found["bad_packs"][0]["needed"] == ("is the way back of slot vib",)

    run(story())
    assert device.damaged == []
    assert device.store.missing(NEW.files) == ["model.onnx"]


def test_an_agent_that_ends_ends_the_check(tmp_path: Path) -> None:
    device = Device(tmp_path)

    async def story() -> None:
        told = await device.checking.check({"command": "store_check"})
        assert told["state"] == "checking"
        await device.checking.close()

    run(story())
