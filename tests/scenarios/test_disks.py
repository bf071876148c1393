"""A device whose disk is read-only when it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.conftest import Packs
from tests.scenarios.device import Client, until, v2_request
from tests.scenarios.running import ROW, Running, running, slot


class Mounted:
    """A small disk at a device's state directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        options = ["-t", "tmpfs", "-o", "size=96m,mode=0700"]
        done = subprocess.run(["mount", *options, "edgeward-test", folder], capture_output=True)
        if done.returncode:
            pytest.skip(f"this user may not mount: {done.stderr.decode().strip()}")

    def become(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", self.folder], check=True)

    def end(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def here(tmp_path: Path, packs: Packs) -> Iterator[tuple[Running, Mounted]]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    disk = Mounted(tmp_path / "device" / "state")
    try:
        with running(tmp_path, packs) as started:
            yield started, disk
    finally:
        disk.end()


def answered(user: Client, message_id: str) -> bool:
    return any(json.loads(m.payload).get("id") == message_id for m in user.on("out/a"))


@pytest.mark.needs_broker("sessions")
def test_a_device_whose_disk_is_read_only_at_boot_serves_and_says_so(
    here: tuple[Running, Mounted], packs: Packs
) -> None:
    device, user, disk = here[0].device, here[0].user, here[1]
    one = packs.affine(1)
    here[0].serve(vib=slot(one))
    assert device.stop() == 0
    disk.become("ro")
    reported = here[0].topic("reported")
    user.subscribe(reported)
    before = len(user.on(reported))

    device.spawn()  # there may be no local socket to wait for
    user.publish("in/a", v2_request(ROW, "x", "read-only"))
    until(lambda: answered(user, "read-only"), "a prediction from a read-only disk", log=device)

    def told() -> bool:
        reports = [json.loads(message.payload) for message in user.on(reported)[before:]]
        return any(r.get("trouble", {}).get("code") == "store_failed" for r in reports)

    until(told, "the report says what is wrong", log=device)
    assert "read-only" in device.log
    assert device.stop() == 0

    disk.become("rw")
    device.start()
    assert device.wait_for("vib", "active", one.pack)
    assert "trouble" not in device.status()


def test_a_second_agent_is_refused_on_a_read_only_disk_too(
    here: tuple[Running, Mounted],
) -> None:
    device, disk = here[0].device, here[1]
    assert device.stop() == 0
    disk.become("ro")
    device.spawn()
    until(lambda: "ready" in device.log.rpartition("stopping")[2], "the first serves", log=device)
    second = subprocess.run(
        [sys.executable, "-m", "agent", "run", "--config", str(device.config)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert second.returncode == 1
    assert "another edgeward" in second.stderr
