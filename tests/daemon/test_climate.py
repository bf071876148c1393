"""What the agent makes of a machine's sensors: what it tells, what slots do, what it remembers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.control.heat import Easing, Rules
from agent.daemon.climate import Climate, Outlook
from agent.device.recording import open_root
from agent.device.tree import Folder, Source
from agent.documents.deployment import Input, Output, Policy, Slot
from agent.documents.telemetry import DEVICE_METRICS
from agent.errors import NoSpace
from agent.store.files import Files, Kind
from tests.device.trees import NAMES, build
from tests.machine import Machine

WITHIN_S = 10.0
FAST = Rules(enter_s=0.0, leave_s=0.05)
SLOT = Slot("sha256:" + "a" * 64, Input("in/+"), Output("out/{1}"))


@dataclass
class Server:
    """A slot that remembers what it was told to do."""

    spec: Slot = SLOT
    told: list[Easing | None] = field(default_factory=list)

    def ease(self, easing: Easing | None) -> None:
        if not self.told or self.told[-1] != easing:
            self.told.append(easing)


class CountingFiles(Files):
    """Counts what is put on the disk, and can be full."""

    def __init__(self) -> None:
        super().__init__()
        self.renames = 0
        self.full = False

    def before(self, op: Kind, path: Path) -> None:
        if self.full:
            raise NoSpace("the disk is full")
        self.renames += op == "rename"


@dataclass
class World:
    """A machine in a folder, and an agent's look at it."""

    folder: Path
    machine: Machine = field(init=False)
    source: Source = field(init=False)
    files: CountingFiles = field(default_factory=CountingFiles)
    server: Server = field(default_factory=Server)
    serves: bool = True
    hot_c: float | None = None
    events: list[tuple[str, str, str]] = field(default_factory=list)
    now: float = 0.0
    looks: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.machine = Machine(self.folder / "root")
        self.source = Folder(self.machine.root)

    def climate(self, rules: Rules = FAST) -> Climate:
        loop = asyncio.get_running_loop()
        return Climate(
            Outlook(self.source, calm_s=0.01, strained_s=0.01, rules=rules),
            self.files,
            self.folder / "power",
            slots=self._slots,
            serves=lambda: self.serves,
            hot_c=lambda: self.hot_c,
            tell=self._tell,
            clock=lambda: self.now + loop.time(),
        )

    def _slots(self) -> dict[str, tuple[Slot, Server]]:
        """Asked for at the end of each look."""
        self.looks += 1
        self.changed.set()
        return {"vib": (self.server.spec, self.server)}

    def _tell(self, kind: str, message: str, hint: str) -> None:
        self.events.append((kind, message, hint))
        self.changed.set()

    async def told(self, kind: str) -> tuple[str, str]:
        """Wait until the last event is of a kind, and return what it says."""
        await self._until(lambda: bool(self.events) and self.events[-1][0] == kind)
        return self.events[-1][1:]

    async def looked(self) -> None:
        """Wait until a look that began after now is over, and what came of the one before too."""
        before = self.looks
        await self._until(lambda: self.looks >= before + 2)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), WITHIN_S)

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "power").read_text())
        return found


Story = Callable[[World, Climate], Awaitable[None]]


def play(world: World, story: Story, rules: Rules = FAST, orderly: bool = True) -> None:
    """Run a story beside the look at a machine."""

    async def whole() -> None:
        world.changed = asyncio.Event()
        climate = world.climate(rules)
        looking = asyncio.create_task(climate.run())
        try:
            await asyncio.wait_for(story(world, climate), 3 * WITHIN_S)
            assert not looking.done()
        finally:
            if orderly:
                await climate.close()
            looking.cancel()
            await asyncio.wait((looking,))

    asyncio.run(whole())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_each_condition_is_told_once_and_its_end_too(world: World) -> None:
    async def story(world: World, climate: Climate) -> None:
        await world.looked()
        assert climate.condition == "well"
        world.machine.heat(81.5)
        says, hint = await world.told("device_hot")
        assert says == "the device is hot: soc-thermal has 81.5 °C, hot is 80 °C"
        assert hint
        world.machine.undervoltage(True)
        await world.told("device_undervoltage")
        world.machine.undervoltage(False)
        await world.told("device_hot")
        world.machine.heat(50.0)
        await world.told("device_well")

    play(world, story)
    kinds = [kind for kind, _, _ in world.events]
    assert kinds.count("device_hot") == 2
    assert kinds.count("device_well") == 1


def test_the_profile_says_what_is_hot_and_it_is_remembered(world: World) -> None:
    async def story(world: World, climate: Climate) -> None:
        world.machine.heat(70.0)
        await world.told("device_hot")

    world.hot_c = 60.0
    play(world, story)
    assert world.record["hot_c"] == 60.0
    # The next start knows it before anything has looked at the profiles.
    world.hot_c = None
    play(world, story)


def test_a_slot_does_what_its_policy_says_and_stops_when_all_is_well(world: World) -> None:
    world.server.spec = Slot(SLOT.pack, SLOT.input, SLOT.output, policy=Policy("skip", one_in=5))

    async def story(world: World, climate: Climate) -> None:
        await world.looked()
        world.machine.heat(90.0)
        await world.told("device_hot")
        world.machine.heat(40.0)
        await world.told("device_well")

    play(world, story)
    assert world.server.told == [None, Easing("skip", one_in=5), None]


def test_the_worst_of_a_window_stands_beside_what_was_measured_in_it(world: World) -> None:
    async def story(world: World, climate: Climate) -> None:
        assert (climate.condition, climate.take_window(), climate.metrics()) == ("", "", {})
        world.machine.heat(90.0)
        await world.told("device_hot")
        world.machine.heat(40.0)
        await world.told("device_well")
        assert climate.take_window() == "hot"
        assert climate.take_window() == "well"

    play(world, story)


def test_metrics_are_those_of_the_page_and_only_what_a_sensor_tells(world: World) -> None:
    async def story(world: World, climate: Climate) -> None:
        world.machine.heat(61.0)
        world.machine.clock(1_500_000, 2_400_000)
        world.machine.pressure(0.25)
        await world.looked()
        assert climate.metrics() == {
            "hw.temperature": 61.0,
            "hw.cpu.speed": 1.5e9,
            "hw.cpu.speed.limit": 2.4e9,
            "edgeward.cpu.speed_share": 0.625,
            "edgeward.cpu.throttled": 0,
            "edgeward.power.undervoltage": 0,
            "edgeward.memory.pressure": 0.25,
        }
        assert set(climate.metrics()) <= set(DEVICE_METRICS)

    play(world, story)


@pytest.mark.parametrize("name", NAMES)
def test_every_known_device_can_be_looked_at(name: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    world.source = open_root(build(name, tmp_path / "tree")).source

    async def story(world: World, climate: Climate) -> None:
        await world.looked()
        assert set(climate.metrics()) <= set(DEVICE_METRICS)
        assert climate.condition == "well"

    play(world, story)


# After the power failed.


async def begun(world: World, climate: Climate) -> None:
    await world.looked()


def start(world: World, *, boot: str, orderly: bool = False, story: Story = begun) -> list[str]:
    """Let an agent serve on a start of the machine; return the losses of power that it told."""
    world.machine.boot(boot)
    world.events.clear()
    play(world, story, orderly=orderly)
    return [kind for kind, _, _ in world.events if kind.startswith("power_")]


def test_a_machine_that_resets_under_load_is_told_so_and_then_of_its_supply(world: World) -> None:
    assert start(world, boot="one") == []
    assert start(world, boot="one") == []
    assert start(world, boot="two") == ["power_lost"]
    assert start(world, boot="three") == ["power_supply"]
    assert "not held against any pack" in world.events[0][2]


def test_a_machine_that_was_shut_down_or_served_nothing_is_told_nothing(world: World) -> None:
    start(world, boot="one", orderly=True)
    assert start(world, boot="two") == []
    world.serves = False
    start(world, boot="two")
    assert start(world, boot="three") == []


def test_low_voltage_before_a_reset_is_remembered(world: World) -> None:
    async def low(world: World, climate: Climate) -> None:
        world.machine.undervoltage(True)
        await world.told("device_undervoltage")
        await world.looked()

    start(world, boot="one", story=low)
    world.machine.undervoltage(False)
    assert start(world, boot="two") == ["power_supply"]


def test_an_hour_of_service_makes_the_next_reset_a_first_one(world: World) -> None:
    async def calm(world: World, climate: Climate) -> None:
        await world.looked()
        world.now += 3601.0
        await world.looked()

    start(world, boot="one")
    assert start(world, boot="two", story=calm) == ["power_lost"]
    assert start(world, boot="three") == ["power_lost"]


def test_a_device_on_which_nothing_changes_writes_once_at_its_start_and_once_at_its_end(
    world: World,
) -> None:
    async def long(world: World, climate: Climate) -> None:
        for number in range(20):
            world.machine.heat(90.0 if number % 2 else 40.0)
            world.now += 400.0
            await world.looked()

    start(world, boot="one", story=long, orderly=True)
    assert world.files.renames == 2


def test_a_full_disk_costs_the_memory_and_nothing_else(world: World) -> None:
    world.files.full = True
    assert start(world, boot="one", orderly=True) == []
    world.files.full = False
    (world.folder / "power").write_bytes(b"\xff{")
    assert start(world, boot="two") == []
    assert start(world, boot="three") == ["power_lost"]
