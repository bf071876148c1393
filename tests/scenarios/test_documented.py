"""What a running device says is what docs/documents.md says that it says."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from agent.clouds.plain_mqtt import PlainMqtt
from agent.control.power import Verdict
from agent.documents import codec
from agent.documents.blocks import BlockRequest
from agent.documents.gap import GapDocument
from agent.documents.report import Report
from agent.documents.status import Status
from agent.documents.telemetry import (
    CONDITIONS,
    DEVICE_METRICS,
    EVENTS,
    LATENCY_PARTS,
    SLOT_METRICS,
    DeadLetterDocument,
    Event,
    Telemetry,
)
from agent.wire import blocks
from tests.brokers import LocalBroker
from tests.repository.markdown import Page, read
from tests.scenarios.conftest import Packs
from tests.scenarios.device import Client, Device, client, desired, until, v2_request
from tests.scenarios.test_telemetry import MAY_BE_ABSENT

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE: Page = read(REPOSITORY / "docs/documents.md", "docs/documents.md")
TEXT = (REPOSITORY / "docs/documents.md").read_text()
PREFIX = "edgeward/press-7/"
# Topic → what its documents are; an event and a gap record share one.
KINDS: dict[str, tuple[type[Any], ...]] = {
    "reported": (Report,),
    "telemetry": (Telemetry,),
    "events": (Event, GapDocument),
    "dead-letter/vib": (DeadLetterDocument,),
    "blocks/request": (BlockRequest,),
}


def example(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(b.text for b in PAGE.blocks if b.file_name == name))
    return found


def table(heading: str) -> list[list[str]]:
    """The cells of the first table of a section, without its head."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def decoded(document: bytes, *kinds: type[Any]) -> Any:
    """The document as one of the types, with no field that the page does not have."""
    kind = kinds[-1] if json.loads(document).get("kind") == "gap" else kinds[0]
    found = codec.decode(document, kind, name=kind.__name__, max_bytes=1 << 20)
    assert found.unknown_fields == 0, document
    return found.value


@dataclass
class Story:
    """A device after a life with a bit of everything, and all that was heard of it."""

    device: Device
    user: Client

    def heard(self, topic: str) -> list[bytes]:
        return [message.payload for message in self.user.on(f"{PREFIX}{topic}")]

    def ask(self, name: str, **request: Any) -> dict[str, Any]:
        reply_to = f"{PREFIX}command/{name}/response/test"
        before = len(self.user.on(reply_to))
        payload = json.dumps({**request, "id": 7, "reply_to": reply_to})
        self.user.publish(f"{PREFIX}command/{name}", payload)
        answer: dict[str, Any] = json.loads(self.user.wait_for(reply_to, before + 1)[-1].payload)
        assert answer.pop("id") == 7
        return answer


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, packs: Packs) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("documented")
    (folder / "broker").mkdir()
    broker = LocalBroker(folder / "broker").start()
    roots = f'[fetch]\nroots = ["{packs.folder}"]'
    device = Device(folder / "device", broker.url, extra=roots).start()
    try:
        with client(broker.url) as user:
            user.subscribe(f"{PREFIX}#")
            user.subscribe("out/#")
            told = Story(device, user)
            live(told, packs)
            yield told
    finally:
        device.stop()
        broker.stop()


def live(story: Story, packs: Packs) -> None:
    """Deploy, predict, send nonsense, lose a worker, refuse a document."""
    packed, user, device = packs.affine(1), story.user, story.device
    slot = {
        "pack": packed.pack,
        "from": f"file:{packed.directory}",
        "input": {"topic": "in/+"},
        "output": {"topic": "out/{1}"},
        "rollout": {"probation_s": 0.2},
    }

    def deploy(name: str, **slots: Any) -> None:
        document = {**json.loads(desired(name, **slots)), "telemetry": {"interval_s": 1}}
        user.publish(f"{PREFIX}desired", json.dumps(document), retain=True)

    user.publish(f"{PREFIX}metered", "false", retain=True)
    deploy("one", vib=slot)
    device.wait_for("vib", "active", packed.pack)
    user.publish("in/a", v2_request([1.0, 2.0, 3.0, 4.0], "x", "good"))
    user.publish("in/a", v2_request([1.0], "x", "bad"))
    user.publish("in/a", b"nonsense")
    user.wait_for("out/a", 2)
    user.wait_for(f"{PREFIX}dead-letter/vib")
    os.kill(device.slot("vib")["worker_pid"], signal.SIGKILL)
    until(lambda: device.slot("vib").get("worker_restarts"), "the worker's death is counted")
    elsewhere = {**slot, "from": "mqtt:", "pack": packs.affine(2).pack}
    deploy("two", vib=slot, other=elsewhere)
    user.wait_for(f"{PREFIX}blocks/request")
    user.publish(f"{PREFIX}desired", b'{"schema": 2}')
    until(lambda: len(names_of_events(story)) >= 3, "events were heard")
    user.wait_for(f"{PREFIX}telemetry", 2)
    until(
        lambda: any(
            json.loads(payload).get("slots", {}).get("vib", {}).get("latency")
            for payload in story.heard("telemetry")
        ),
        "latencies were told",
    )


def names_of_events(story: Story) -> set[str]:
    return {json.loads(payload).get("event", "") for payload in story.heard("events")}


@pytest.mark.parametrize("topic", KINDS)
def test_what_is_published_is_the_document_of_its_topic(story: Story, topic: str) -> None:
    documents = story.heard(topic)
    assert documents
    for document in documents:
        decoded(document, *KINDS[topic])


def test_a_slot_tells_the_metrics_of_the_page(story: Story) -> None:
    told = [decoded(document, Telemetry) for document in story.heard("telemetry")]
    slots = [document.slots["vib"] for document in told if "vib" in document.slots]
    assert slots
    assert all(set(slot.metrics) == set(SLOT_METRICS) for slot in slots)
    latencies = {name for slot in slots for name in slot.latency}
    assert latencies == {f"{part}.p{q}_ms" for part in LATENCY_PARTS for q in (50, 95, 99)}


def test_the_device_tells_the_metrics_of_the_page(story: Story) -> None:
    (*_, last) = story.heard("telemetry")
    missing = set(DEVICE_METRICS) - set(decoded(last, Telemetry).metrics)
    assert missing <= MAY_BE_ABSENT
    assert set(decoded(last, Telemetry).metrics) <= set(DEVICE_METRICS)


def test_events_have_the_names_of_the_page(story: Story) -> None:
    heard = names_of_events(story)
    assert {"rollout_active", "worker_died", "deployment_refused"} <= heard <= set(EVENTS)


def test_the_code_tells_the_events_of_the_page_and_no_others() -> None:
    code = "\n".join(path.read_text() for path in (REPOSITORY / "agent/daemon").glob("*.py"))
    told = set(re.findall(r'\.(?:event|failed)\(\s*"(\w+)"', code))
    told |= {f"rollout_{state}" for state in ("active", "failed", "rolled_back")}
    told |= {f"device_{condition}" for condition in CONDITIONS} | {*get_args(Verdict)} - {""}
    assert told == set(EVENTS)


def test_the_status_is_the_one_of_the_page_however_it_is_asked_for(story: Story) -> None:
    for answer in (story.device.status(), story.ask("status")):
        status = decoded(json.dumps(answer).encode(), Status)
        assert status.link.state == "connected"
        assert status.slots["vib"].worker_restarts == 1
        assert set(answer["slots"]["vib"]) <= set(example("status.json")["slots"]["vibration"])


def test_an_answer_has_the_fields_of_the_page(story: Story) -> None:
    answers = {a["id"]: a for a in map(json.loads, (m.payload for m in story.user.on("out/a")))}
    wanted = example("prediction.json")
    assert set(answers["good"]) == set(wanted)
    assert set(answers["good"]["parameters"]) == set(wanted["parameters"])
    assert set(answers["bad"]) == set(example("refusal.json"))


def test_the_device_knows_the_commands_of_the_page(story: Story) -> None:
    (known,) = re.findall(r"known: (.*)", story.ask("nonsense")["error"]["hint"])
    on_the_page = {row[0].strip("`") for row in table("Commands")}
    assert set(known.split(", ")) == on_the_page


def test_a_command_that_cannot_be_done_is_answered_with_an_error(story: Story) -> None:
    for answer in (story.ask("rollback", slot="nonsense"), story.ask("rollback")):
        assert set(answer["error"]) == {"code", "message", "hint"}


def test_the_topics_of_the_page_are_those_of_the_dialect() -> None:
    dialect = PlainMqtt("p/")
    published = (
        dialect.online(),
        dialect.offline(),
        dialect.reported(b""),
        dialect.telemetry(b""),
        dialect.event(b""),
        dialect.dead_letter("SLOT", b""),
    )
    from_device = {
        (made.topic.removeprefix("p/"), str(made.qos), "yes" if made.retain else "no")
        for made in published
    }
    from_device.add((blocks.REQUEST, "1", "no"))
    rows = [[cell.strip("`") for cell in row] for row in table("Topics")]
    assert {(topic, qos, kept) for topic, who, qos, kept, _ in rows if who == "device"} == (
        from_device
    )
    to_device = {topic.replace("NAME", "+") for topic, who, *_ in rows if who == "console"}
    subscribed = {topic.removeprefix("p/") for topic, _ in dialect.subscriptions()}
    assert to_device == subscribed | {blocks.DATA, blocks.REFUSED}


def test_what_the_page_calls_retained_is_retained(story: Story) -> None:
    kept = {row[0].strip("`") for row in table("Topics") if row[3] == "yes"}
    with client(story.device.broker_url, client_id="late") as late:
        late.subscribe(f"{PREFIX}#")
        for topic in kept:
            assert late.wait_for(f"{PREFIX}{topic}")[0].retain
        found = {m.topic.removeprefix(PREFIX) for m in late.received if m.retain}
    assert found == kept
