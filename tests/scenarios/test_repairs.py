"""Stories of damaged packs, moved sources and failed slots, which the real agent mends."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.brokers import LocalBroker
from tests.scenarios.conftest import MakeDevice, Packs
from tests.scenarios.device import Device, client
from tests.scenarios.test_deployments import deploy, predict, slot


def stored(device: Device, pack: str) -> Path:
    return device.state_dir / "packs" / pack.removeprefix("sha256:")


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"rotten" + path.read_bytes()[6:])


@pytest.mark.parametrize("what", ["manifest.json", "*.onnx", "all of it"])
@pytest.mark.needs_broker("sessions")
def test_a_serving_pack_that_is_damaged_is_repaired_after_a_restart(
    make_device: MakeDevice, broker: LocalBroker, packs: Packs, what: str
) -> None:
    one = packs.affine(1)
    device = make_device().start()
    with client(broker.url) as user:
        user.subscribe("out/#")
        deploy(user, "one", vib=slot(one.directory, one.pack))
        device.wait_for("vib", "active", one.pack)
        device.stop()
        if what == "all of it":
            shutil.rmtree(stored(device, one.pack))
        else:
            damage(next(stored(device, one.pack).glob(what)))
        device.start()
        assert predict(user, "m1")["outputs"][0]["data"][0] == 1.0
        device.wait_for("vib", "active", one.pack)


def test_the_same_pack_from_another_source_is_fetched_there(
    device: Device, broker: LocalBroker, packs: Packs
) -> None:
    one = packs.affine(1)
    with client(broker.url) as user:
        away = slot(one.directory, one.pack, **{"from": "http://127.0.0.1:9/nothing/"})
        deploy(user, "one", vib=away)
        device.wait_for("vib", "fetching")
        deploy(user, "two", vib=slot(one.directory, one.pack))
        device.wait_for("vib", "active", one.pack)


def test_a_slot_that_failed_is_left_alone_until_it_is_wanted_again(
    device: Device, broker: LocalBroker, packs: Packs, tmp_path: Path
) -> None:
    one = packs.affine(1)
    shelf = tmp_path / "shelf"
    shutil.copytree(one.directory, shelf)
    damage(next(shelf.glob("*.onnx")))
    wanted = slot(shelf, one.pack)
    other = {"input": {"topic": "other/+"}, "output": {"topic": "o2/{1}"}}
    with client(broker.url) as user:
        deploy(user, "one", vib=wanted)
        device.wait_for("vib", "failed")
        shutil.rmtree(shelf)
        shutil.copytree(one.directory, shelf)
        cam = slot(one.directory, one.pack, **other)
        deploy(user, "two", vib=wanted, cam=cam)
        device.wait_for("cam", "active")
        assert device.slot("vib")["state"] == "failed"
        deploy(user, "three", vib=wanted, cam=cam)
        device.wait_for("vib", "active", one.pack)
