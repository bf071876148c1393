"""Stories of deployments: real agent, real broker, real workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import LocalBroker
from tests.scenarios.conftest import MakeDevice, Packs
from tests.scenarios.device import Client, Device, client, desired, until, v2_request

DESIRED = "edgeward/press-7/desired"
REPORTED = "edgeward/press-7/reported"


def slot(folder: Path, pack: str, **changes: Any) -> dict[str, Any]:
    return {
        "pack": pack,
        "from": f"file:{folder}",
        "input": {"topic": "in/+"},
        "output": {"topic": "out/{1}"},
        "rollout": {"probation_s": 0.2},
        **changes,
    }


def deploy(sender: Client, name: str, **slots: dict[str, Any]) -> None:
    sender.publish(DESIRED, desired(name, **slots), retain=True)


def predict(sensor: Client, message_id: str, values: list[float] | None = None) -> dict[str, Any]:
    """Send one message and return the answer with its id."""
    sensor.publish("in/a", v2_request(values or [1.0, 2.0, 3.0, 4.0], "x", message_id))

    def answered() -> dict[str, Any] | None:
        for message in sensor.on("out/a"):
            answer: dict[str, Any] = json.loads(message.payload)
            if answer["id"] == message_id:
                return answer
        return None

    found: dict[str, Any] = until(answered, f"an answer to {message_id}")
    return found


def test_a_pack_is_fetched_proven_served_and_replaced(
    device: Device, broker: LocalBroker, packs: Packs
) -> None:
    one, two = packs.affine(1), packs.affine(2)
    with client(broker.url) as user:
        user.subscribe("out/#")
        user.subscribe(REPORTED)
        deploy(user, "one", vib=slot(one.directory, one.pack))
        device.wait_for("vib", "active", one.pack)
        assert predict(user, "m1")["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]
        deploy(user, "two", vib=slot(two.directory, two.pack))
        device.wait_for("vib", "active", two.pack)
        answer = predict(user, "m2")
        assert answer["outputs"][0]["data"] == [2.0, 4.0, 6.0, 8.0]
        assert answer["parameters"]["pack"] == two.pack
        assert answer["model_version"] == "2.0"
        reported = json.loads(user.wait_for(REPORTED)[-1].payload)
        assert reported["device"] == "press-7"


def test_a_pack_whose_self_test_fails_here_is_refused_and_the_old_one_serves(
    device: Device, broker: LocalBroker, packs: Packs, tmp_path: Path
) -> None:
    one = packs.affine(1)
    liar = tmp_path / "liar"
    shutil.copytree(packs.affine(3).directory, liar)
    pack = rewrite_self_test(liar)
    with client(broker.url) as user:
        user.subscribe("out/#")
        deploy(user, "one", vib=slot(one.directory, one.pack))
        device.wait_for("vib", "active", one.pack)
        deploy(user, "two", vib=slot(liar, pack))
        found = device.wait_for("vib", "failed")
        assert found["pack"] == one.pack
        assert found["wanted"] == pack
        assert found["error"]["code"] == "self_test_failed"
        assert predict(user, "m1")["outputs"][0]["data"][0] == 1.0


def rewrite_self_test(folder: Path) -> str:
    """Promise other answers than the model gives, with every digest right; return the pack id."""
    import base64
    import hashlib
    import struct

    manifest = json.loads((folder / "manifest.json").read_bytes())
    name = manifest["selftest"][0]
    case = json.loads((folder / name).read_bytes())
    case["outputs"][0]["data"] = base64.b64encode(struct.pack("<4f", 9, 9, 9, 9)).decode()
    data = json.dumps(case).encode()
    (folder / name).chmod(0o644)
    (folder / name).write_bytes(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    manifest["files"][name] = {"digest": digest, "size": len(data)}
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_bytes(text)
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def test_altered_bytes_are_refused_before_anything_loads_them(
    device: Device, broker: LocalBroker, packs: Packs, tmp_path: Path
) -> None:
    one = packs.affine(1)
    altered = tmp_path / "altered"
    shutil.copytree(one.directory, altered)
    model = next(altered.glob("*.onnx"))
    data = bytearray(model.read_bytes())
    data[-10] ^= 1
    model.chmod(0o644)
    model.write_bytes(data)
    with client(broker.url) as user:
        deploy(user, "one", vib=slot(altered, one.pack))
        found = device.wait_for("vib", "failed")
        assert found["error"]["code"] == "digest_mismatch"


def test_a_malformed_document_is_refused_whole_and_reported(
    device: Device, broker: LocalBroker, packs: Packs
) -> None:
    one = packs.affine(1)
    with client(broker.url) as user:
        deploy(user, "one", vib=slot(one.directory, one.pack))
        device.wait_for("vib", "active", one.pack)
        two = slot(one.directory, one.pack, input={"topic": "in/+", "qos": 2})
        deploy(user, "two", vib=two)
        until(lambda: device.status().get("refused"), "the document is refused")
        status = device.status()
        assert status["refused"]["code"] == "bad_document"
        assert "desired.slots.vib.input.qos" in status["refused"]["message"]
        assert status["slots"]["vib"]["state"] == "active"
        assert status["deployment"] == "one"


def test_an_absent_slot_is_stopped_and_one_pack_in_two_slots_is_kept_once(
    device: Device, broker: LocalBroker, packs: Packs
) -> None:
    one = packs.affine(1)
    other = slot(one.directory, one.pack, input={"topic": "other/+"}, output={"topic": "o2/{1}"})
    with client(broker.url) as user:
        deploy(user, "one", vib=slot(one.directory, one.pack), cam=other)
        device.wait_for("vib", "active")
        device.wait_for("cam", "active")
        folders = list((device.state_dir / "packs").iterdir())
        assert len([folder for folder in folders if folder.is_dir()]) == 1
        pid = device.slot("cam")["worker_pid"]
        deploy(user, "two", vib=slot(one.directory, one.pack))
        until(lambda: not device.slot("cam"), "the slot is gone")
        until(lambda: not os.path.exists(f"/proc/{pid}"), "its worker is gone")  # noqa: PTH110
        assert device.slot("vib")["state"] == "active"


def test_a_person_goes_back_to_the_previous_pack(
    device: Device, broker: LocalBroker, packs: Packs
) -> None:
    one, two = packs.affine(1), packs.affine(2)
    with client(broker.url) as user:
        user.subscribe("out/#")
        deploy(user, "one", vib=slot(one.directory, one.pack))
        device.wait_for("vib", "active", one.pack)
        deploy(user, "two", vib=slot(two.directory, two.pack))
        device.wait_for("vib", "active", two.pack)
        assert device.ask(command="rollback", slot="vib")["to"] == one.pack
        device.wait_for("vib", "rolled_back", one.pack)
        assert predict(user, "m1")["outputs"][0]["data"][1] == 2.0


@pytest.mark.needs_broker("sessions")
def test_after_a_restart_without_a_network_the_device_serves_what_it_has(
    make_device: MakeDevice, broker: LocalBroker, packs: Packs
) -> None:
    one = packs.affine(1)
    device = make_device().start()
    with client(broker.url) as user:
        deploy(user, "one", vib=slot(one.directory, one.pack))
        device.wait_for("vib", "active", one.pack)
    device.kill()
    broker.stop()
    device.start()
    until(lambda: device.slot("vib").get("worker_pid"), "a worker without a broker")
    broker.start()
    with client(broker.url) as user:
        user.subscribe("out/#")
        assert predict(user, "m1")["outputs"][0]["data"][3] == 4.0


def test_a_file_altered_on_disk_is_found_and_fetched_again(
    make_device: MakeDevice, broker: LocalBroker, packs: Packs
) -> None:
    one, two = packs.affine(1), packs.affine(2)
    device = make_device().start()
    with client(broker.url) as user:
        user.subscribe("out/#")
        deploy(user, "one", vib=slot(one.directory, one.pack))
        device.wait_for("vib", "active", one.pack)
        deploy(user, "two", vib=slot(two.directory, two.pack))
        device.wait_for("vib", "active", two.pack)
        stored = device.state_dir / "packs" / one.pack.removeprefix("sha256:")
        model = next(stored.glob("*.onnx"))
        model.chmod(0o644)
        model.write_bytes(b"rotten" + model.read_bytes()[6:])
        deploy(user, "three", vib=slot(one.directory, one.pack))
        device.wait_for("vib", "active", one.pack)
        assert predict(user, "m1")["outputs"][0]["data"][0] == 1.0


def test_the_agent_ends_in_order_and_says_goodbye(
    make_device: MakeDevice, broker: LocalBroker
) -> None:
    device = make_device().start()
    with client(broker.url) as user:
        user.subscribe("edgeward/press-7/status")
        assert user.wait_for("edgeward/press-7/status")[-1].payload == b"online"
        assert device.stop() == 0
        assert user.wait_for("edgeward/press-7/status", 2)[-1].payload == b"offline"


def test_a_killed_agent_is_seen_offline_by_its_last_will(
    make_device: MakeDevice, broker: LocalBroker
) -> None:
    device = make_device().start()
    with client(broker.url) as user:
        user.subscribe("edgeward/press-7/status")
        user.wait_for("edgeward/press-7/status")
        device.kill(signal.SIGKILL)
        assert user.wait_for("edgeward/press-7/status", 2)[-1].payload == b"offline"


@pytest.mark.parametrize("topic", ["edgeward/press-7/desired"])
def test_a_document_beyond_its_bound_does_not_stop_anything(
    device: Device, broker: LocalBroker, topic: str
) -> None:
    with client(broker.url) as user:
        user.publish(topic, b"x" * 100_000)
        until(
            lambda: "8192" in device.status().get("refused", {}).get("message", ""),
            "the document is refused",
            log=device,
        )
