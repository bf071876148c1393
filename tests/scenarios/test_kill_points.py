"""The agent is killed before every save and every act of a deployment; it always converges."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.brokers import LocalBroker
from tests.scenarios.conftest import MakeDevice, Packs
from tests.scenarios.device import Client, Device, client, desired, until
from tests.scenarios.test_deployments import slot

PROGRAM = ("-m", "tests.scenarios.killed_daemon")
# The tests of this file share the points among them; the first ones assert that there are enough.
PARTS = 12
POINTS_PER_PART = 4
FEWEST_POINTS = 40


def slots(packs: Packs, scale: float, at: int) -> dict[str, object]:
    packed = packs.affine(scale)
    topics = {"input": {"topic": f"in{at}/+"}, "output": {"topic": f"out{at}/{{1}}"}}
    return slot(packed.directory, packed.pack, **topics)


def deploy(user: Client, device: Device, name: str, wanted: dict[str, object]) -> None:
    topic = f"edgeward/{device.device_id}/desired"
    user.publish(topic, desired(name, vib=wanted), retain=True)


def killing(device: Device, at: int, points: Path) -> Device:
    device.program = PROGRAM
    device.environment = {"EDGE_KILL_AT": str(at), "EDGE_POINTS": str(points)}
    return device


def healthy(device: Device) -> Device:
    device.program = ("-m", "agent", "run")
    device.environment = {}
    return device


@pytest.fixture
def prepared(make_device: MakeDevice, broker: LocalBroker, packs: Packs) -> Device:
    """A stopped device whose slot serves the old pack."""
    device = make_device(device_id="press-0").start()
    with client(broker.url) as user:
        deploy(user, device, "one", slots(packs, 1, 0))
        device.wait_for("vib", "active", packs.affine(1).pack)
    device.stop()
    return device


def settled(device: Device, pack: str) -> bool:
    try:
        found = device.slot("vib")
    except Exception:
        return False
    return bool(found.get("state") == "active" and found.get("pack") == pack)


def killed_at(
    at: int, prepared: Device, make_device: MakeDevice, broker: LocalBroker, packs: Packs
) -> bool:
    """Kill a deployment at one point and see it converge; False where there is no such point."""
    old, new = packs.affine(1).pack, packs.affine(2).pack
    device = make_device(device_id=f"press-{at}")
    shutil.copytree(prepared.state_dir, device.state_dir)
    killing(device, at, device.folder / "points").start()
    process = device.process
    assert process is not None
    with client(broker.url) as user:
        deploy(user, device, "two", slots(packs, 2, at))
        until(
            lambda: process.poll() is not None or settled(device, new),
            f"point {at} is reached or the deployment ends",
            log=device,
        )
        if process.poll() is None:
            return False
        assert process.returncode == -signal.SIGKILL, device.log
        healthy(device).spawn()
        until(device.answers, "the agent is back", log=device)
        # From its first answer on one of the two serves: the old one until the new is proven.
        assert device.slot("vib")["pack"] in (old, new)
        until(lambda: settled(device, new), "the new pack is active", log=device)
    return True


@pytest.mark.parametrize("part", range(PARTS))
def test_a_deployment_killed_at_any_point_goes_on_where_it_was(
    part: int, prepared: Device, make_device: MakeDevice, broker: LocalBroker, packs: Packs
) -> None:
    for at in range(1 + part * POINTS_PER_PART, 1 + (part + 1) * POINTS_PER_PART):
        reached = killed_at(at, prepared, make_device, broker, packs)
        assert reached or at > FEWEST_POINTS, f"there are only {at - 1} points"
        if not reached:
            return
