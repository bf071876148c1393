"""How the agent ends: in order and in time, or because a part of it has failed."""

from __future__ import annotations

from pathlib import Path

from tests.scenarios.conftest import Packs
from tests.scenarios.device import Device, until, v2_request
from tests.scenarios.running import running, seconds, slot

# systemd's TimeoutStopSec is 20 s, after which it kills.
STOPS_WITHIN_S = 14.0
FOR_EVER = [1e9, 0.0, 0.0, 0.0]


def test_slots_whose_workers_hang_are_stopped_together_and_in_time(
    tmp_path: Path, packs: Packs
) -> None:
    names = ("a", "b", "c", "d")
    with running(tmp_path, packs) as here:
        pack = packs.treacherous(1)
        here.serve(**{name: slot(pack, f"in/{name}", f"out/{name}") for name in names})
        status = here.topic("status")
        here.user.subscribe(status)
        here.user.wait_for(status)
        for name in names:
            here.user.publish(f"in/{name}", v2_request(FOR_EVER, "x", name))
        until(
            lambda: all(here.device.slot(name)["in_flight"] for name in names),
            "every worker hangs",
            log=here.device,
        )
        assert seconds(here.device.stop) < STOPS_WITHIN_S
        assert here.device.process is not None
        assert here.device.process.returncode == 0
        assert here.user.wait_for(status, 2)[-1].payload == b"offline"
        # Workers that the agent ends with itself have not died.
        assert "died" not in here.device.log


BROKEN = """
import sys
from agent.daemon import reporter
from agent.cli.main import run as main

async def run(self):
    raise RuntimeError("a bug")

reporter.Reporter.run = run
sys.exit(main(["run", *sys.argv[1:]]))
"""


def test_the_end_of_a_part_that_the_agent_needs_is_the_end_of_the_agent(
    tmp_path: Path, packs: Packs
) -> None:
    with running(tmp_path, packs, start=False) as here:
        broken = Device(here.device.folder, here.broker.url, program=("-c", BROKEN))
        broken.spawn()
        assert broken.process is not None
        assert broken.process.wait(timeout=20) == 1
        assert "RuntimeError: a bug" in broken.log
        assert "the reporter has failed, and the agent ends with it" in broken.log
