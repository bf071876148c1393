"""The agent is killed before every save and every act of a deployment; it always converges."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.brokers import Mosquitto
from tests.scenarios.conftest import MakeDevice, Packs
from tests.scenarios.device import Device, client, desired, until
from tests.scenarios.test_deployments import DESIRED, slot

PROGRAM = ("-m", "tests.scenarios.killed_daemon")
# Tests of this file share the points among them; the last asserts that there were enough.
POINTS_PER_TEST = 6
TESTS = 10


def killing(device: Device, at: int, points: Path) -> Device:
    device.program = PROGRAM
    device.environment = {"EDGE_KILL_AT": str(at), "EDGE_POINTS": str(points)}
    return device


def healthy(device: Device) -> Device:
    device.program = ("-m", "agent", "run")
    device.environment = {}
    return device


def run_to_kill(
    make_device: MakeDevice, broker: Mosquitto, packs: Packs, at: int, tmp_path: Path
) -> bool:
    """Kill a deployment at one point and see it converge; False where there is no such point."""
    old, new = packs.affine(1), packs.affine(2)
    device_id = f"press-{at}"
    points = tmp_path / f"points-{at}"
    device = killing(make_device(device_id=device_id), at, points).start()
    topics = {"input": {"topic": f"in{at}/+"}, "output": {"topic": f"out{at}/{{1}}"}}
    with client(broker.url) as user:
        desired_topic = DESIRED.replace("press-7", device_id)
        one = desired("one", vib=slot(old.directory, old.pack, **topics))
        user.publish(desired_topic, one, retain=True)
        device.wait_for("vib", "active", old.pack)
        two = desired("two", vib=slot(new.directory, new.pack, **topics))
        user.publish(desired_topic, two, retain=True)
        process = device.process
        assert process is not None

        def ended() -> str:
            if process.poll() is not None:
                return "killed"
            return "done" if device.answers() and settled(device, new.pack) else ""

        outcome = until(ended, f"point {at} is reached or the deployment ends")
        if outcome == "done":
            device.stop()
            return False
        assert process.returncode == -signal.SIGKILL, device.log
        healthy(device).spawn()
        # From the first moment on, one of the two serves: the old until the new is proven.
        until(device.answers, "the agent is back", log=device)
        first = until(lambda: device.slot("vib").get("pack"), "a pack serves", log=device)
        assert first in (old.pack, new.pack)
        device.wait_for("vib", "active", new.pack)
        device.stop()
    return True


def settled(device: Device, pack: str) -> bool:
    found = device.slot("vib")
    return bool(found.get("state") == "active" and found.get("pack") == pack)


@pytest.mark.parametrize("part", range(TESTS))
def test_a_deployment_killed_at_any_point_goes_on_where_it_was(
    part: int, make_device: MakeDevice, broker: Mosquitto, packs: Packs, tmp_path: Path
) -> None:
    first = 1 + part * POINTS_PER_TEST
    reached = [
        run_to_kill(make_device, broker, packs, at, tmp_path)
        for at in range(first, first + POINTS_PER_TEST)
    ]
    if first + POINTS_PER_TEST <= 40:
        assert all(reached), "a deployment has at least 40 points"
