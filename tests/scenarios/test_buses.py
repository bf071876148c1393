"""What a slot's own connection brings: it fails alone, says so, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from tests.brokers import LocalBroker
from tests.scenarios.conftest import Packs
from tests.scenarios.device import Client, until, v2_request
from tests.scenarios.running import ROW, Running, documents, persistent, running, slot

pytestmark = pytest.mark.needs_broker("sessions", "mqtt5")


@contextmanager
def apart(folder: Path, packs: Packs, version: str = "5") -> Iterator[tuple[Running, LocalBroker]]:
    """A device whose sensors are on a broker of their own."""
    (folder / "sensors").mkdir()
    sensors = persistent(folder / "sensors").start()
    bus = f'[bus]\nurl = "{sensors.url}"\nversion = "{version}"\n'
    try:
        with running(folder, packs, extra=bus) as started:
            yield started, sensors
    finally:
        sensors.stop()


def has_session(broker: LocalBroker, client_id: str) -> bool:
    """Whether a broker keeps a session of this client; asking with MQTT 3.1.1 leaves it there."""
    connected: list[bool] = []
    asking = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=False)
    asking.on_connect = lambda client, data, flags, *_: connected.append(flags.session_present)
    asking.connect("127.0.0.1", broker.port)
    asking.loop_start()
    until(lambda: connected, "connected")
    asking.disconnect()
    asking.loop_stop()
    return connected[0]


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_slot_that_is_gone_leaves_no_session_at_the_broker(
    version: str, tmp_path: Path, packs: Packs
) -> None:
    with apart(tmp_path, packs, version) as (here, sensors):
        here.serve(vib=slot(packs.affine(1)), cam=slot(packs.affine(2), "cam/+"))
        here.serve(cam=slot(packs.affine(2), "cam/+"))
        until(lambda: "vib" not in here.device.status()["slots"], "it is gone")
        # The state file forgets the slot once its session is ended.
        until(lambda: "vib" not in leaving(here), "its session is ended", log=here.device)
        assert not has_session(sensors, "edgeward-press-7-bus-vib")
        here.device.kill()
        assert has_session(sensors, "edgeward-press-7-bus-cam")


def leaving(here: Running) -> list[str]:
    """The slots that the saved state still has to end."""
    newest = max(here.device.state_dir.glob("state.*"), key=lambda path: path.stat().st_mtime_ns)
    text = newest.read_bytes()
    document = text[text.index(b"{") : text.rindex(b"}") + 1]
    found: list[str] = json.loads(document).get("leaving", [])
    return found


def test_a_session_is_ended_though_the_broker_was_away_and_the_agent_killed(
    tmp_path: Path, packs: Packs
) -> None:
    with apart(tmp_path, packs) as (here, sensors):
        here.serve(vib=slot(packs.affine(1)))
        sensors.stop()
        here.deploy()
        until(lambda: leaving(here) == ["vib"], "it is being left", log=here.device)
        here.device.kill()
        sensors.start()
        here.device.start()
        until(lambda: leaving(here) == [], "its session is ended", log=here.device)
        assert not has_session(sensors, "edgeward-press-7-bus-vib")


def test_a_slot_that_comes_back_while_its_session_is_being_ended_serves(
    tmp_path: Path, packs: Packs
) -> None:
    with apart(tmp_path, packs) as (here, sensors):
        one = packs.affine(1)
        here.serve(vib=slot(one))
        sensors.stop()
        here.deploy()
        until(lambda: leaving(here) == ["vib"], "it is being left", log=here.device)
        here.deploy(vib=slot(one))
        sensors.start()
        here.device.wait_for("vib", "active", one.pack)
        sensor = Client(sensors.url, client_id="sensor")
        sensor.subscribe("out/#")
        until(lambda: bus(here, "vib") == "connected", "its bus is there", log=here.device)
        sensor.publish("in/a", v2_request(ROW, "x", "back"))
        sensor.wait_for("out/a")
        sensor.close()


def bus(here: Running, name: str) -> str:
    state: str = here.device.slot(name)["bus"]["state"]
    return state


def test_a_slot_whose_sensors_broker_is_away_says_so_in_its_report(
    tmp_path: Path, packs: Packs
) -> None:
    with apart(tmp_path, packs) as (here, sensors):
        here.user.subscribe(here.topic("reported"))
        here.serve(vib=slot(packs.affine(1)))
        sensors.stop()

        def told() -> str:
            report = documents(here.user.on(here.topic("reported")))[-1]
            error: str = (report["slots"]["vib"].get("error") or {}).get("message", "")
            return error

        until(lambda: "no connection for sensor messages" in told(), "it is told")
        assert here.device.slot("vib")["state"] == "active"
        sensors.start()
        until(lambda: told() == "", "it is well again", log=here.device)


def test_what_was_sent_to_a_device_that_lost_its_state_is_answered_after_the_next_deployment(
    tmp_path: Path, packs: Packs
) -> None:
    one = packs.affine(1)
    with running(tmp_path, packs) as here:
        here.serve(vib=slot(one))
        here.device.kill()
        for number in range(20):
            here.user.publish("in/a", v2_request(ROW, "x", f"kept {number}"))
        for path in here.device.state_dir.glob("state.*"):
            path.write_bytes(b"")
        here.user.publish(here.topic("desired"), b"", retain=True)
        here.device.start()
        assert here.device.status()["trouble"]["code"] == "store_corrupt"
        here.serve(vib=slot(one))
        here.answer_to("kept 19", "out/a")
        assert len(here.answers("out/a")) == 20
