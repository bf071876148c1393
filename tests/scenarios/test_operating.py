"""What docs/operations.md tells an operator holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest

from agent.documents.gap import Reason
from agent.documents.report import SlotPhase
from tests.brokers import LocalBroker
from tests.repository.markdown import read
from tests.scenarios.conftest import MakeDevice, Packs
from tests.scenarios.device import Device, client, desired, until, v2_request

PATH = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
FILES = {b.file_name or b.words[-1]: b.text for b in read(PATH, PATH.name).blocks if b.words[1:]}
SLOT = {"input": {"topic": "sensors/+/accel"}, "output": {"topic": "predictions/{slot}/{1}"}}


def table(heading: str) -> set[str]:
    """The names in the first column of a section's first table."""
    section = PATH.read_text().split(f" {heading}\n")[1].split("\n#")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])}


def slot(packed: Any, **more: Any) -> dict[str, Any]:
    place = {"pack": packed.pack, "from": f"file:{packed.directory}"}
    return {**SLOT, **place, "rollout": {"probation_s": 0.1}, **more}


def edgeward(*arguments: str, status: int = 0) -> str:
    """Run a command from afar; everything it says where it ends otherwise."""
    command = [sys.executable, "-m", "agent", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_every_state_and_reason_has_its_line() -> None:
    assert table("What a slot goes through") == set(get_args(SlotPhase))
    assert table("What will not come") == set(get_args(Reason))
    assert table("The link") == {"connected", "connecting", "waiting", "refused", "stopped"}


@contextmanager
def brokers(folder: Path, **local: Any) -> Iterator[LocalBroker]:
    folder.mkdir()
    started = LocalBroker(folder, **local).start()
    try:
        yield started
    finally:
        started.stop()


def settings(name: str) -> tuple[str, ...]:
    """The lines of a broker's configuration on the page."""
    lines = FILES[name].splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


@pytest.fixture
def rights(tmp_path: Path) -> Iterator[LocalBroker]:
    """A broker with the configuration and the rights of the page."""
    acl = tuple(FILES["acl"].splitlines())
    users = {"press-7": "secret", "console": "word"}
    with brokers(tmp_path / "b", settings=settings("mosquitto.conf"), users=users, acl=acl) as one:
        (tmp_path / "secret").write_text("secret\n")
        (tmp_path / "word").write_text("word\n")
        yield one


def test_the_rights_on_the_page_are_enough(
    rights: LocalBroker, tmp_path: Path, packs: Packs
) -> None:
    one, two = packs.affine(1), packs.affine(2)
    login = f'username = "press-7"\npassword_file = "{tmp_path / "secret"}"'
    device = Device(tmp_path / "device", rights.url, extra=login).start()
    word = ("--password-file", str(tmp_path / "word"))
    console = ("--broker", rights.url, "--device", "press-7", "--username", "console", *word)
    topics = ("--input-topic", "sensors/+/accel", "--output-topic", "predictions/{slot}/{1}")
    try:
        for packed in (one, two):
            rollout = ("--slot", "vib", "--probation", "0.1")
            edgeward("deploy", str(packed.directory), *topics, *rollout, *console)
        edgeward("rollback", "vib", *console)
        device.wait_for("vib", "rolled_back", one.pack)
        found = json.loads(edgeward("status", "--json", *console))
        assert found["link"]["state"] == "connected"
        assert "not authorized" not in device.log
    finally:
        device.stop()


def test_a_slot_that_went_back_stays_there_until_the_same_is_deployed_under_another_name(
    make_device: MakeDevice, broker: LocalBroker, packs: Packs
) -> None:
    one, two = packs.affine(1), packs.affine(2)
    device = make_device().start()
    other = {**SLOT, "output": {"topic": "elsewhere/{1}"}}
    with client(broker.url) as user:

        def deploy(name: str, **slots: dict[str, Any]) -> None:
            user.publish("edgeward/press-7/desired", desired(name, **slots), retain=True)

        deploy("one", vib=slot(one))
        device.wait_for("vib", "active", one.pack)
        deploy("two", vib=slot(two))
        device.wait_for("vib", "active", two.pack)
        assert device.ask(command="rollback", slot="vib")["to"] == one.pack
        device.wait_for("vib", "rolled_back", one.pack)
        both = {"vib": slot(two), "other": slot(one, **other)}
        deploy("three", **both)
        device.wait_for("other", "active", one.pack)
        device.wait_for("vib", "rolled_back", one.pack)
        deploy("four", **both)
        device.wait_for("vib", "active", two.pack)


def test_no_slots_stop_everything_and_no_document_stops_nothing(
    make_device: MakeDevice, broker: LocalBroker, packs: Packs
) -> None:
    one = packs.affine(1)
    device = make_device().start()
    with client(broker.url) as user:
        user.publish("edgeward/press-7/desired", desired("one", vib=slot(one)), retain=True)
        pid = device.wait_for("vib", "active", one.pack)["worker_pid"]
        user.publish("edgeward/press-7/desired", b"", retain=True)
        user.publish("sensors/a/accel", v2_request([1.0, 2.0, 3.0, 4.0], "x", "m"))
        until(lambda: device.slot("vib")["predictions"] == 1, "it predicts")
        assert device.slot("vib")["worker_pid"] == pid
        (nothing,) = re.findall(r"`(\{\"schema\".*?\})`", PATH.read_text())
        user.publish("edgeward/press-7/desired", nothing, retain=True)
        until(lambda: not device.status().get("slots"), "nothing is served")


def test_a_device_is_managed_through_the_bridge_of_the_page(tmp_path: Path, packs: Packs) -> None:
    one = packs.affine(1)
    with brokers(tmp_path / "plant") as plant:
        # The test's brokers know neither users nor TLS.
        secrets = ("bridge_cafile", "remote_username", "remote_password")
        address = plant.url.removeprefix("mqtt://")
        bridge = tuple(
            line.replace("broker.example:8883", address)
            for line in settings("bridge.conf")
            if not line.startswith(secrets)
        )
        with brokers(tmp_path / "local", settings=bridge) as local:
            device = Device(tmp_path / "device", local.url).start()
            try:
                through_the_bridge(device, plant, local, one)
            finally:
                device.stop()


def through_the_bridge(device: Device, plant: LocalBroker, local: LocalBroker, packed: Any) -> None:
    console = ("--broker", plant.url, "--device", "press-7")
    topics = ("--input-topic", "sensors/+/accel", "--output-topic", "predictions/{slot}/{1}")
    place = ("--slot", "vib", "--probation", "0.1", "--timeout", "30")
    edgeward("deploy", str(packed.directory), *topics, *place, *console)
    found = json.loads(edgeward("status", "--json", *console))
    assert found["slots"]["vib"]["worker_pid"] == device.slot("vib")["worker_pid"]
    with client(plant.url) as consumer, client(local.url, client_id="sensor") as sensor:
        consumer.subscribe("predictions/#")
        sensor.publish("sensors/a/accel", v2_request([1.0, 2.0, 3.0, 4.0], "x", "m"))
        consumer.wait_for("predictions/vib/a")


def test_the_files_on_the_page_are_those_of_a_device(
    make_device: MakeDevice, broker: LocalBroker, packs: Packs
) -> None:
    one = packs.affine(1)
    device = make_device().start()
    with client(broker.url) as user:
        user.publish("edgeward/press-7/desired", desired("one", vib=slot(one)), retain=True)
        device.wait_for("vib", "active", one.pack)
    here = {path.name for path in device.state_dir.iterdir()}
    assert here <= table("Files")
    device.stop()
    for name in ("state.0", "state.1"):
        (device.state_dir / name).unlink()
    device.start()
    assert device.wait_for("vib", "active", one.pack)["worker_pid"]
