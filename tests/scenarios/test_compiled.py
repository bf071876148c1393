"""A model that its library compiles: the real agent with OpenVINO, where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers import LocalBroker
from tests.scenarios.conftest import Packs
from tests.scenarios.device import Device, client, until
from tests.scenarios.test_deployments import deploy, predict, slot

pytest.importorskip("openvino", reason="openvino is not installed")


def kept(device: Device) -> list[Path]:
    return list(device.state_dir.glob("compiled/[0-9a-f]*/model.blob"))


def file_of(device: Device) -> Path:
    found: list[Path] = until(lambda: kept(device), "something that was compiled")
    return found[0]


@pytest.mark.needs_broker("sessions")
def test_what_was_compiled_while_the_slot_served_is_used_by_the_next_start(
    device: Device, broker: LocalBroker, packs: Packs
) -> None:
    one = packs.affine(2)
    with client(broker.url) as user:
        user.subscribe("out/#")
        deploy(user, "one", vib=slot(one.directory, one.pack, pin={"runtime": "openvino"}))
        device.wait_for("vib", "active", one.pack)
        file = file_of(device)
        until(lambda: "compiled before: proven" in device.log, "the word that it is proven")
        assert predict(user, "m1")["outputs"][0]["data"][0] == 2.0
        before = file.read_bytes()
        device.kill()
        device.start()
        assert predict(user, "m2")["outputs"][0]["data"][0] == 2.0
        found = device.wait_for("vib", "active", one.pack)
        assert found["runtime"] == "openvino"
        assert "compiled anew" not in device.log
        assert file.read_bytes() == before

        # What is damaged costs its removal, and nothing that is served.
        device.stop()
        file.chmod(0o644)
        file.write_bytes(b"rotten" + before[6:])
        device.start()
        assert predict(user, "m3")["outputs"][0]["data"][0] == 2.0
        assert "is compiled anew" in device.log
        assert not kept(device)
