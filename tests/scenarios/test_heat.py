"""A device that gets hot or loses its power: what it tells, what its slots do, and that nothing is
held against a pack."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from agent.author.pack import Packed, pack
from agent.author.spec import Spec, VariantSpec
from agent.control.state import DeviceState
from agent.documents.choice import Choice
from agent.store.files import Files
from agent.store.state import StateFile
from tests.machine import Machine
from tests.scenarios.conftest import Packs
from tests.scenarios.device import until, v2_request
from tests.scenarios.models import Affine, write_affine
from tests.scenarios.running import ROW, Running, documents, running, slot

PROGRAM = ("-m", "tests.scenarios.hot_daemon")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def here(tmp_path: Path, packs: Packs, machine: Machine) -> Iterator[Running]:
    with running(
        tmp_path, packs, program=PROGRAM, environment={"EDGE_MACHINE": str(machine.root)}
    ) as started:
        started.telemetry = {"interval_s": 1}
        started.user.subscribe(started.topic("events"))
        started.user.subscribe(started.topic("telemetry"))
        yield started


def send(here: Running, first: int, count: int, qos: int = 1) -> list[str]:
    """Send messages, all at once; return their ids."""
    names = [f"m{number}" for number in range(first, first + count)]
    for name in names:
        here.user.client.publish("in/a", v2_request(ROW, "x", name), qos)
    return names


def ids(here: Running) -> list[str]:
    return [answer["id"] for answer in here.answers("out/a")]


def test_a_hot_device_runs_fewer_messages_and_loses_none(
    here: Running, packs: Packs, machine: Machine
) -> None:
    policy = {"action": "reduce_rate", "rate_per_s": 10}
    here.serve(a=slot(packs.affine(1), policy=policy))
    machine.heat(92.0)
    assert "92" in here.event("device_hot")["message"]
    assert "10 messages a second" in here.event("policy_applied", slot="a")["message"]
    status = here.device.status()
    assert (status["condition"], status["temperature_c"]) == ("hot", 92.0)
    assert status["conditions"] == ["hot", "warm"]
    started = time.monotonic()
    names = send(here, 0, 25)
    here.user.wait_for("out/a", 25)
    assert time.monotonic() - started >= 2.4
    assert ids(here) == names
    machine.heat(40.0)
    here.event("policy_lifted", slot="a")
    here.event("device_well")
    started = time.monotonic()
    send(here, 25, 25)
    here.user.wait_for("out/a", 50)
    assert time.monotonic() - started < 2.4
    assert here.device.slot("a")["dropped"] == 0


def test_the_condition_stands_beside_the_latencies_that_were_measured_in_it(
    here: Running, packs: Packs, machine: Machine
) -> None:
    here.serve(a=slot(packs.affine(1)))
    machine.undervoltage(True)
    here.event("device_undervoltage")
    here.predict("m1")

    def beside() -> dict[str, Any] | None:
        told = documents(here.user.on(here.topic("telemetry")))
        return next((t for t in told if t.get("slots", {}).get("a", {}).get("latency")), None)

    told: dict[str, Any] = until(beside, "a document with latencies", log=here.device)
    assert told["slots"]["a"]["condition"] == "undervoltage"
    assert told["condition"] == "undervoltage"
    assert told["metrics"]["edgeward.power.undervoltage"] == 1
    assert told["metrics"]["hw.temperature"] == 45.0
    # Nothing was asked for, so nothing is done.
    assert "policy" not in told["slots"]["a"]


def test_what_is_skipped_is_counted_and_not_answered(
    here: Running, packs: Packs, machine: Machine
) -> None:
    here.serve(a=slot(packs.affine(1), policy={"action": "skip", "one_in": 3}))
    machine.heat(92.0)
    here.event("policy_applied", slot="a")
    send(here, 0, 9)
    until(lambda: here.device.slot("a").get("received") == 9, "all came", log=here.device)
    here.user.wait_for("out/a", 3)
    machine.heat(40.0)
    here.event("policy_lifted", slot="a")
    here.predict("last")
    assert ids(here) == ["m0", "m3", "m6", "last"]
    assert here.device.slot("a")["skipped"] == 6


def two_ways(packs: Packs) -> Packed:
    """A pack with two variants that answer alike."""
    files = [packs.folder / f"two-ways-{number}.onnx" for number in (1, 2)]
    for file in files:
        write_affine(file, Affine(1.0, 0.0))
    spec = Spec(name="two", version="1.0", variants=(VariantSpec(str(files[1]), name="other"),))
    return pack(files[0], packs.folder / "two-ways", spec=spec)


def make_lighter(here: Running, packed: Packed) -> tuple[str, str]:
    """Have a stopped device believe that its other variant takes less CPU time; return the chosen
    variant and the other one."""
    file = StateFile(Files(), here.device.state_dir / "state")
    state = msgspec.json.decode(file.load().document or b"", type=DeviceState)
    choice = state.qualified[packed.pack]
    other = next(t for t in choice.tried if t.way.variant != choice.way.variant)
    assert choice.best is not None
    tried = (replace(choice.best, cpu_ms=1.0), replace(other, cpu_ms=0.1))
    known: dict[str, Choice] = {packed.pack: replace(choice, tried=tried)}
    file.save(msgspec.json.encode(replace(state, qualified=known)))
    return choice.way.variant, other.way.variant


def runs(here: Running, variant: str) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        found = here.device.slot("a")
        return found if found.get("variant") == variant else None

    found: dict[str, Any] = until(there, f"{variant} runs", log=here.device)
    return found


def test_a_lighter_way_serves_while_it_is_hot_and_no_message_is_lost(
    here: Running, packs: Packs, machine: Machine
) -> None:
    packed = two_ways(packs)
    here.serve(a=slot(packed, policy={"action": "lighter_variant"}))
    assert here.device.stop() == 0
    chosen, other = make_lighter(here, packed)
    here.device.start()
    runs(here, chosen)
    names: list[str] = []
    for degrees, variant in ((92.0, other), (40.0, chosen), (92.0, other), (40.0, chosen)):
        machine.heat(degrees)
        while here.device.slot("a").get("variant") != variant:
            names += send(here, len(names), 5)
        told = runs(here, variant)
        assert ("is hot" in told["placement"].get("why", "")) == (variant == other)
    until(lambda: len(ids(here)) >= len(names), "all are answered", log=here.device)
    assert sorted(ids(here)) == sorted(names)
    told = here.device.slot("a")
    assert told["worker_restarts"] == 0
    assert told["state"] == "active"


def test_a_lighter_way_that_dies_gives_way_to_the_chosen_one(
    here: Running, packs: Packs, machine: Machine
) -> None:
    packed = two_ways(packs)
    here.serve(a=slot(packed, policy={"action": "lighter_variant"}))
    assert here.device.stop() == 0
    chosen, other = make_lighter(here, packed)
    here.device.start()
    machine.heat(92.0)
    os.kill(runs(here, other)["worker_pid"], signal.SIGKILL)
    runs(here, chosen)
    here.predict("m1")
    assert here.device.slot("a")["variant"] == chosen


def test_a_board_that_resets_under_load_is_told_power_supply_and_its_pack_serves_on(
    here: Running, packs: Packs, machine: Machine
) -> None:
    one, two = packs.affine(1), packs.affine(2)
    here.serve(a=slot(one))
    # The second pack stays on probation while the board resets again and again.
    here.deploy(a=slot(two, rollout={"probation_s": 60}))
    here.device.wait_for("a", "probation", two.pack)
    for number, told in enumerate(("power_lost", *("power_supply",) * 3)):
        here.device.kill()
        machine.boot(f"boot {number}")
        before = len(here.user.on(here.topic("events")))
        here.device.start()
        here.predict(f"m{number}")

        def heard(before: int = before, told: str = told) -> dict[str, Any] | None:
            events = documents(here.user.on(here.topic("events"))[before:])
            return next((event for event in events if event["event"] == told), None)

        found: dict[str, Any] = until(heard, told, log=here.device)
        assert "power supply" in found["hint"]
    assert here.device.slot("a")["state"] == "probation"
    assert here.device.slot("a")["pack"] == two.pack
    kinds = {event["event"] for event in documents(here.user.on(here.topic("events")))}
    assert not kinds & {"rollout_rolled_back", "rollout_failed", "worker_died"}
    # Shut down in order, it has lost nothing.
    assert here.device.stop() == 0
    machine.boot("in order")
    before = len(here.user.on(here.topic("events")))
    here.device.start()
    machine.heat(92.0)
    here.event("device_hot")
    later = documents(here.user.on(here.topic("events"))[before:])
    assert not {event["event"] for event in later} & {"power_lost", "power_supply"}
