"""Stories of a device that is managed by files alone; its sensors have a broker."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import LocalBroker
from tests.scenarios.conftest import MakeDevice, Packs
from tests.scenarios.device import Client, Device, client, desired, until, v2_request
from tests.scenarios.running import slot

# The variable that the embedded broker needs is of a link with a broker.
pytestmark = pytest.mark.needs_broker("sessions")


class Stick:
    """The folder that stands for the link, and who carries it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def place(self, document: str | bytes) -> None:
        fresh = self.folder / "desired.json.new"
        fresh.write_bytes(document.encode() if isinstance(document, str) else document)
        fresh.replace(self.folder / "desired.json")

    def read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return found

    def lines(self, stream: str) -> list[dict[str, Any]]:
        path = self.folder / f"{stream}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def says(self, text: str, device: Device) -> None:
        """Wait until the report has a text in it."""

        def said() -> bool:
            return text in json.dumps(self.read("reported.json"))

        until(said, f"reported.json says {text}", log=device)

    def reported(self, device: Device, slot: str, state: str, pack: str = "") -> dict[str, Any]:
        """Wait until the report says so of a slot."""

        def said() -> dict[str, Any] | None:
            report = self.read("reported.json")
            entry = report.get("slots", {}).get(slot, {})
            fits = entry.get("state") == state and (not pack or entry.get("pack") == pack)
            return report if fits else None

        what = f"reported.json says that {slot} is {state}"
        found: dict[str, Any] = until(said, what, log=device)
        return found


@pytest.fixture
def stick(tmp_path: Path) -> Stick:
    return Stick(tmp_path / "stick")


@pytest.fixture
def device(make_device: MakeDevice, broker: LocalBroker, stick: Stick) -> Device:
    link = f'kind = "file"\ndirectory = "{stick.folder}"'
    return make_device(link=link, extra=f'[bus]\nurl = "{broker.url}"').start()


@pytest.fixture
def user(broker: LocalBroker) -> Iterator[Client]:
    with client(broker.url) as made:
        made.subscribe("out/#")
        yield made


def predicts(user: Client, message_id: str, device: Device) -> list[float]:
    user.publish("in/a", v2_request([1.0, 2.0, 3.0, 4.0], "x", message_id))

    def answered() -> list[float] | None:
        for message in user.on("out/a"):
            answer = json.loads(message.payload)
            if answer["id"] == message_id:
                data: list[float] = answer["outputs"][0]["data"]
                return data
        return None

    found: list[float] = until(answered, f"an answer to {message_id}", log=device)
    return found


def test_a_device_is_managed_by_files_and_goes_on_where_it_was_killed(
    device: Device, stick: Stick, user: Client, packs: Packs
) -> None:
    one, two = packs.affine(1), packs.affine(2)
    stick.place(desired("one", vib=slot(one)))
    report = stick.reported(device, "vib", "active", one.pack)
    assert (report["device"], report["deployment"]) == ("press-7", "one")
    assert predicts(user, "m1", device) == [1.0, 2.0, 3.0, 4.0]
    assert stick.read("status.json")["status"] == "online"
    until(
        lambda: any(e.get("event") == "rollout_active" for e in stick.lines("events")),
        "events.jsonl tells of the rollout",
        log=device,
    )
    assert device.status()["link"] == {"state": "connected", "error": ""}

    device.kill()
    stick.place(desired("two", vib=slot(two)))
    device.start()
    stick.reported(device, "vib", "active", two.pack)
    assert predicts(user, "m2", device) == [2.0, 4.0, 6.0, 8.0]
    sequence = [e["stamp"]["seq"] for e in stick.lines("events") if e["kind"] == "event"]
    assert sorted(set(sequence)) == list(range(1, max(sequence) + 1))

    # Taken away is not the same as "no slots".
    (stick.folder / "desired.json").unlink()
    device.kill()
    device.start()
    assert predicts(user, "m3", device) == [2.0, 4.0, 6.0, 8.0]
    assert device.stop() == 0
    assert stick.read("status.json")["status"] == "offline"


def test_a_document_that_will_not_do_is_refused_in_the_report_until_a_good_one_comes(
    device: Device, stick: Stick, user: Client, packs: Packs
) -> None:
    one = packs.affine(1)
    stick.place(desired("one", vib=slot(one)))
    stick.reported(device, "vib", "active", one.pack)
    for bad, says in (
        (b'{"schema": 1, "deployment": "two", "slots": {"vib"', "expected a JSON document"),
        (b'{"schema": 1, "deployment": "two", "slots": 7}', "desired.slots: expected object"),
        (b" " * 10_000, "a deployment has at most 8,192"),
    ):
        stick.place(bad)
        stick.says(says, device)
        assert stick.read("reported.json")["slots"]["vib"]["state"] == "active"
    assert predicts(user, "m1", device) == [1.0, 2.0, 3.0, 4.0]
    two = packs.affine(2)
    stick.place(desired("two", vib=slot(two)))
    report = stick.reported(device, "vib", "active", two.pack)
    assert not {"refused", "trouble"} & report.keys()
    assert [e["code"] for e in stick.lines("events") if e.get("event") == "deployment_refused"] == [
        "bad_document",
        "bad_document",
    ]


def test_a_pack_over_the_link_is_refused_with_what_can_be_done(
    device: Device, stick: Stick, packs: Packs
) -> None:
    stick.place(desired("one", vib={**slot(packs.affine(1)), "from": "mqtt:"}))
    error = stick.reported(device, "vib", "failed")["slots"]["vib"]["error"]
    assert error["code"] == "source_refused"
    assert "link of kind 'file'" in error["message"]
    assert "`file:` or `https:`" in error["hint"]


def test_a_stick_that_is_pulled_out_costs_no_event(
    device: Device, stick: Stick, user: Client, packs: Packs
) -> None:
    one, pocket = packs.affine(1), stick.folder.with_name("pocket")
    stick.place(desired("one", vib=slot(one)))
    stick.reported(device, "vib", "active", one.pack)
    stick.folder.rename(pocket)
    until(lambda: device.status()["link"]["state"] == "waiting", "the link waits", log=device)
    assert "there is no folder" in device.status()["link"]["error"]
    assert predicts(user, "m1", device) == [1.0, 2.0, 3.0, 4.0]
    worker = device.slot("vib")["worker_pid"]
    os.kill(worker, signal.SIGKILL)
    device.wait_for("vib", "active")
    pocket.rename(stick.folder)
    until(
        lambda: any(e.get("event") == "worker_died" for e in stick.lines("events")),
        "events.jsonl tells of the worker",
        log=device,
    )
