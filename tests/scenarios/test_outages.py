"""Brokers that are absent, gone, taken over or say no; disks that are full, read-only or wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from tests.brokers import LocalBroker
from tests.scenarios.conftest import Packs
from tests.scenarios.device import Client, client, desired, until, v2_request
from tests.scenarios.running import ROW, Running, documents, running, slot

# The agent waits up to 10 s before it asks a broker again that said no.
AFTER_REFUSAL_S = 25.0


@pytest.fixture
def here(tmp_path: Path, packs: Packs) -> Iterator[Running]:
    with running(tmp_path, packs) as started:
        yield started


def link(device: Running) -> dict[str, Any]:
    found: dict[str, Any] = device.device.status()["link"]
    return found


# The broker.


def test_a_broker_that_is_absent_at_start_is_waited_for(tmp_path: Path, packs: Packs) -> None:
    with running(tmp_path, packs, start=False) as here:
        here.user.client.disconnect()
        here.broker.stop()
        here.device.start()
        until(lambda: link(here)["error"], "the link says what is wrong")
        assert link(here)["state"] in ("waiting", "connecting")
        assert "nothing listens there" in link(here)["error"]
        here.broker.start()
        until(lambda: link(here)["state"] == "connected", "the link is up")
        assert link(here)["error"] == ""
        with client(here.broker.url, client_id="console") as console:
            one = packs.affine(1)
            console.publish(here.topic("desired"), desired("d", vib=slot(one)), retain=True)
            here.device.wait_for("vib", "active", one.pack)


@pytest.mark.needs_broker("sessions")
def test_what_waits_at_a_broker_that_goes_and_comes_back_is_answered(
    here: Running, packs: Packs
) -> None:
    here.serve(vib=slot(packs.affine(1)))
    sensor = Client(here.broker.url, client_id="sensor", clean=False)
    consumer = Client(here.broker.url, client_id="consumer", clean=False)
    consumer.subscribe("out/#")
    for round_ in range(3):
        for number in range(50):
            sensor.client.publish("in/a", v2_request(ROW, "x", f"{round_} {number}"), qos=1)
        here.broker.stop()
        until(lambda: link(here)["state"] != "connected", "the link is down")
        here.broker.start()
    wanted = {f"{round_} {number}" for round_ in range(3) for number in range(50)}

    def answered() -> bool:
        return {json.loads(m.payload)["id"] for m in list(consumer.received)} == wanted

    until(answered, "every message is answered", log=here.device)
    sensor.close()
    consumer.close()


def test_a_broker_that_refuses_us_is_reported_and_asked_again(tmp_path: Path, packs: Packs) -> None:
    password = tmp_path / "password"
    password.write_text("wrong\n")
    with guarded(tmp_path, packs, f'username = "press-7"\npassword_file = "{password}"') as here:
        until(lambda: link(here)["state"] == "refused", "the broker says no", log=here.device)
        assert "not authori" in link(here)["error"].lower()
        password.write_text("right\n")
        until(
            lambda: link(here)["state"] == "connected",
            "the agent asks again",
            within_s=AFTER_REFUSAL_S,
            log=here.device,
        )
    assert "wrong" not in here.device.log


@contextmanager
def guarded(folder: Path, packs: Packs, extra: str) -> Iterator[Running]:
    """A device on a broker that asks for a password."""

    def broker(place: Path) -> LocalBroker:
        return LocalBroker(place, users={"press-7": "right", "tester": "right"})

    with running(folder, packs, broker=broker, extra=extra, login=("tester", "right")) as started:
        yield started


@pytest.mark.needs_broker("mqtt5")
def test_a_second_client_with_our_id_does_not_end_the_agent(here: Running, packs: Packs) -> None:
    one = packs.affine(1)
    here.serve(vib=slot(one))
    host, _, port = here.broker.url.removeprefix("mqtt://").partition(":")
    rival = paho.Client(
        paho.CallbackAPIVersion.VERSION2,
        client_id="edgeward-press-7",
        protocol=paho.MQTTv5,
    )
    rival.connect(host, int(port), clean_start=False)
    rival.loop_start()
    until(lambda: link(here)["state"] != "connected", "the rival took over", log=here.device)
    assert link(here)["error"]
    rival.disconnect()
    rival.loop_stop()
    assert here.device.slot("vib")["worker_pid"]
    until(
        lambda: link(here)["state"] == "connected",
        "the agent is back",
        within_s=AFTER_REFUSAL_S,
        log=here.device,
    )
    assert here.predict("after the rival")["parameters"]["pack"] == one.pack


def test_a_desired_document_replaced_while_we_are_away_is_the_one_that_counts(
    here: Running, packs: Packs
) -> None:
    one, two, three = (packs.affine(scale) for scale in (1, 2, 3))
    here.serve(vib=slot(one))
    here.device.stop()
    for packed in (two, three):
        here.deploy(vib=slot(packed))
    here.device.start()
    here.device.wait_for("vib", "active", three.pack)
    assert not stored(here, two.pack).exists()


# The disk.

DISK_MB = 128


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, where a device keeps its state."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    options = f"size={DISK_MB}m,mode=700"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "small", str(folder)], check=False
    )
    if done.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small(tmp_path: Path, packs: Packs, disk: Path) -> Iterator[Running]:
    """A device on that disk, which serves a pack."""
    with running(tmp_path, packs, limits="spool_mb = 1", state_dir=disk / "state") as started:
        started.serve(vib=slot(packs.affine(1)))
        yield started


def fill(disk: Path, left: int = 0) -> Path:
    """Fill a file system up to its last byte, or leave so many bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while (free := shutil.disk_usage(disk).free - left) > 0:
            file.write(bytes(min(free, 1 << 20)))
    return filler


def served_by(here: Running, pack: str, message_id: str) -> None:
    assert here.predict(message_id)["parameters"]["pack"] == pack


@pytest.mark.parametrize("left_mb", [0, 60], ids=["to the last byte", "up to the reserve"])
def test_a_full_disk_is_reported_with_numbers_and_the_deployment_goes_on_when_there_is_space(
    left_mb: int, small: Running, packs: Packs, disk: Path
) -> None:
    one, two = packs.affine(1), packs.affine(2)
    filler = fill(disk, left_mb << 20)
    small.deploy(vib=slot(two))

    def told() -> dict[str, Any] | None:
        status = small.device.status()
        errors = [status.get("trouble"), status["slots"]["vib"].get("error")]
        return next((e for e in errors if e and e["code"] == "no_space"), None)

    error = until(told, "the full disk is reported", log=small.device)
    assert any(character.isdigit() for character in error["message"]), error
    assert small.device.slot("vib")["pack"] == one.pack
    served_by(small, one.pack, "on a full disk")
    filler.unlink()
    small.device.wait_for("vib", "active", two.pack)
    until(lambda: not small.device.status().get("trouble"), "all is well again")
    served_by(small, two.pack, "with space again")


@pytest.mark.needs_broker("sessions")
def test_an_agent_that_starts_on_a_full_disk_serves_what_it_has(
    small: Running, packs: Packs, disk: Path
) -> None:
    one = packs.affine(1)
    small.device.kill()
    filler = fill(disk)
    small.device.start()
    served_by(small, one.pack, "after a start on a full disk")
    small.device.kill()
    small.device.start()
    served_by(small, one.pack, "after another")
    filler.unlink()
    small.serve(vib=slot(packs.affine(2)))


def test_on_a_read_only_disk_serving_goes_on_and_the_reason_is_reported(
    small: Running, packs: Packs, disk: Path
) -> None:
    one, two = packs.affine(1), packs.affine(2)
    with read_only(disk):
        small.deploy(vib=slot(two))
        trouble = until(
            lambda: small.device.status().get("trouble"), "it is reported", log=small.device
        )
        assert "read-only" in trouble["message"].lower()
        served_by(small, one.pack, "on a read-only disk")
        kill_worker(small)
        served_by(small, one.pack, "by another worker")
    small.device.wait_for("vib", "active", two.pack)


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Put the same disk over itself, read-only: a failing disk does not ask what is still open."""

    def run(*command: str) -> None:
        subprocess.run([*command, str(disk)], check=True, capture_output=True)

    run("mount", "--bind", str(disk))  # over itself
    try:
        run("mount", "-o", "remount,bind,ro")
        yield
    finally:
        run("umount", "-l")


def kill_worker(here: Running) -> None:
    pid = here.device.slot("vib")["worker_pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: here.device.slot("vib").get("worker_pid") not in (None, pid), "another worker")


# What the store and the state file hold.


def stored(here: Running, pack: str) -> Path:
    return here.device.state_dir / "packs" / pack.removeprefix("sha256:")


def rot(path: Path) -> None:
    """Change a file in place, its size kept, as a failing card does."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(data)


DAMAGES = {
    "a model is altered": lambda folder: rot(next(folder.glob("*.onnx"))),
    "a model is missing": lambda folder: remove_blob(next(folder.glob("*.onnx"))),
}


def remove_blob(path: Path) -> None:
    """Remove a file of a pack under each of its names."""
    inode = path.stat().st_ino
    for other in path.parents[2].rglob("*"):
        if other.is_file() and other.stat().st_ino == inode:
            other.unlink()


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.needs_broker("sessions")
def test_what_is_damaged_on_disk_serves_on_and_is_repaired_at_the_next_start(
    name: str, here: Running, packs: Packs
) -> None:
    one = packs.affine(1)
    here.serve(vib=slot(one))
    whole = {path.name: path.read_bytes() for path in stored(here, one.pack).glob("*.*")}
    DAMAGES[name](stored(here, one.pack))
    served_by(here, one.pack, "from memory")
    here.device.kill()
    here.device.start()
    # What is sent meanwhile waits for the repaired pack.
    served_by(here, one.pack, "after the repair")
    here.device.wait_for("vib", "active", one.pack)
    again = {path.name: path.read_bytes() for path in stored(here, one.pack).glob("*.*")}
    assert again == whole


@pytest.mark.parametrize("damaged", [1, 2], ids=["one generation", "both generations"])
@pytest.mark.needs_broker("sessions")
def test_a_damaged_state_file_is_told_and_the_device_finds_its_way_back(
    damaged: int, here: Running, packs: Packs
) -> None:
    one = packs.affine(1)
    here.serve(vib=slot(one))
    here.device.kill()
    generations = sorted(here.device.state_dir.glob("state.*"), key=lambda p: p.stat().st_mtime_ns)
    assert len(generations) == 2
    for path in generations[-damaged:]:
        rot(path)
    here.user.subscribe(here.topic("reported"))
    here.device.start()
    # With one left it is as it was a moment before; with none, the retained document tells.
    here.device.wait_for("vib", "active", one.pack)
    served_by(here, one.pack, "after all")
    assert f"{damaged} of two generations" in here.device.log
    if damaged == 2:
        reports = documents(here.user.on(here.topic("reported")))
        assert "store_corrupt" in [r["trouble"]["code"] for r in reports if "trouble" in r]
    assert "trouble" not in here.device.status()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x00" * 4096], ids=["empty", "no state", "zeros"]
)
def test_a_state_file_of_nonsense_is_no_reason_not_to_start(
    content: bytes, here: Running, packs: Packs
) -> None:
    one = packs.affine(1)
    here.serve(vib=slot(one))
    here.device.kill()
    for path in here.device.state_dir.glob("state.*"):
        path.write_bytes(content)
    here.device.start()
    here.device.wait_for("vib", "active", one.pack)
