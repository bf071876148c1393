"""The store of a device that serves, altered, checked and repaired; and the evidence of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.brokers import LocalBroker
from tests.scenarios.conftest import MakeDevice, Packs
from tests.scenarios.device import Device, client, desired, until, v2_request

SLOT = {"input": {"topic": "sensors/+/accel"}, "output": {"topic": "predictions/{slot}/{1}"}}


def edgeward(device: Device, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "agent", *arguments, "--config", str(device.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    return done.returncode, done.stdout


def test_what_was_altered_under_a_slot_that_serves_is_found_told_and_fetched_again(
    make_device: MakeDevice, broker: LocalBroker, packs: Packs, tmp_path: Path
) -> None:
    one = packs.affine(1)
    device = make_device().start()
    place = {"pack": one.pack, "from": f"file:{one.directory}", "rollout": {"probation_s": 0.1}}
    with client(broker.url) as user:
        user.publish("edgeward/press-7/desired", desired("one", vib={**SLOT, **place}), retain=True)
        device.wait_for("vib", "active", one.pack)
        assert edgeward(device, "store", "check")[0] == 0
        folder = device.state_dir / "packs" / one.pack.removeprefix("sha256:")
        victim = max(folder.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
        victim.chmod(0o600)
        victim.write_bytes(b"\0" * victim.stat().st_size)
        code, told = edgeward(device, "store", "check")
        assert (code, "DAMAGED" in told, "it serves slot vib" in told) == (1, True, True)
        code, told = edgeward(device, "store", "check", "--repair", "--json")
        assert (code, "only copy of what serves" in told) == (0, True)
        until(lambda: edgeward(device, "store", "check")[0] == 0, "it is fetched again")
        device.wait_for("vib", "active", one.pack)
        user.publish("sensors/a/accel", v2_request([1.0, 2.0, 3.0, 4.0], "x", "m"))
        until(lambda: device.slot("vib")["predictions"] >= 1, "it predicts")
    device.stop()
    out = tmp_path / "export.jsonl"
    assert edgeward(device, "evidence", "export", "--out", str(out))[0] == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    kinds = [line["what"]["kind"] for line in lines[:-1]]
    assert kinds[:2] == ["started", "deployment"]
    assert {"activated", "proven", "damaged"} <= set(kinds)
    command = [sys.executable, "-m", "agent", "evidence", "verify", str(out)]
    assert subprocess.run(command, timeout=40).returncode == 0
