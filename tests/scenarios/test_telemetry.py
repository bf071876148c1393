"""What a device tells of itself: on the clock, as things happen, and after it was away."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.author.pack import Packed, pack
from agent.author.spec import Spec
from agent.documents.gap import GapDocument
from agent.documents.telemetry import DEVICE_METRICS, SLOT_METRICS, Event, Telemetry
from tests.brokers import LocalBroker
from tests.scenarios.conftest import Packs
from tests.scenarios.device import Client, until, v2_request
from tests.scenarios.models import Affine, write_affine
from tests.scenarios.running import Running, documents, running, slot

INTERVAL_S = 1.0
LABELS = ("calm", "humming", "shaking", "falling apart")
# A machine may have no such sensors, and its kernel may tell no pressure.
MAY_BE_ABSENT = {
    name
    for name in DEVICE_METRICS
    if name.startswith(("hw.", "edgeward.cpu.", "edgeward.power.")) or name.endswith(".pressure")
}


def labelled(packs: Packs) -> Packed:
    """A pack whose largest output names a class."""
    model = packs.folder / "labelled.onnx"
    if not model.exists():
        write_affine(model, Affine(1.0, 0.0))
    return pack(model, packs.folder / "labelled", spec=Spec(labels=LABELS), force=True)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, packs: Packs) -> Iterator[Running]:
    """A device that tells of itself every second."""
    with running(tmp_path_factory.mktemp("telemetry"), packs) as started:
        started.telemetry = {"interval_s": INTERVAL_S}
        for name in ("telemetry", "events", "dead-letter/#"):
            started.user.subscribe(started.topic(name))
        started.serve(vib=slot(labelled(packs)), other=slot(packs.affine(2), "other/+", "out/o"))
        yield started


def told(here: Running, number: int = 1) -> list[Telemetry]:
    """The telemetry documents from the next ones on, once there are so many."""
    known = len(here.user.on(here.topic("telemetry")))
    messages = here.user.wait_for(here.topic("telemetry"), known + number)
    return [msgspec.json.decode(m.payload, type=Telemetry) for m in messages[known:]]


# On the clock.


def test_a_document_comes_every_interval_numbered_without_a_hole(here: Running) -> None:
    told(here)  # what came before the interval was set counts into the first one
    documents_ = told(here, 3)
    first, *_, last = documents_
    assert [d.stamp.seq - first.stamp.seq for d in documents_] == [0, 1, 2]
    assert {(d.stamp.device, d.stamp.stream, d.stamp.boot) for d in documents_} == {
        ("press-7", "telemetry", first.stamp.boot)
    }
    # Never shorter; on a busy machine longer, and then it says by how much.
    assert all(d.window_s > INTERVAL_S - 0.01 for d in documents_)
    span_ms = last.stamp.mono_ms - first.stamp.mono_ms
    assert abs(span_ms - 1000 * sum(d.window_s for d in documents_[1:])) < 100
    at = [datetime.fromisoformat(d.stamp.ts.replace("Z", "+00:00")) for d in documents_]
    assert abs((at[-1] - at[0]).total_seconds() * 1000 - span_ms) < 500


def test_a_document_holds_every_metric_that_is_described(here: Running) -> None:
    (document,) = told(here)
    assert set(document.slots) == {"vib", "other"}
    for entry in document.slots.values():
        assert set(entry.metrics) == set(SLOT_METRICS)
        assert entry.worker_memory is not None
        assert 10 << 20 < entry.worker_memory < 512 << 20
        assert (entry.runtime, entry.provider) == ("onnx", "CPUExecutionProvider")
    assert set(DEVICE_METRICS) - set(document.metrics) <= MAY_BE_ABSENT
    assert set(document.metrics) <= set(DEVICE_METRICS)
    metrics = document.metrics
    assert 0 <= metrics["system.cpu.utilization"] <= 1
    assert 0 < metrics["system.filesystem.utilization"] <= 1
    assert 0 < metrics["system.memory.linux.available"] < metrics["system.memory.usage"] * 1000
    assert 5 << 20 < metrics["process.memory.usage"] < 200 << 20
    assert metrics["process.unix.file_descriptor.count"] > 5
    assert metrics["edgeward.link.connects"] >= 1


def test_counts_classes_and_latencies_are_those_of_the_window(here: Running) -> None:
    told(here)  # so that the window is a new one
    before = here.device.slot("vib")
    for number in range(30):
        row = [4.0, 0.0, 0.0, 0.0] if number < 20 else [0.0, 0.0, 0.0, 4.0]
        here.user.client.publish("in/a", v2_request(row, "x", f"count {number}"), qos=1)
    here.user.publish("in/a", b"{")
    here.answer_to("count 29", "out/a")
    counted: dict[str, int] = {}
    entry = None
    while sum(counted.values()) < 30:
        (document,) = told(here)
        entry = document.slots["vib"]
        for name, number in entry.classes.items():
            counted[name] = counted.get(name, 0) + number
        if entry.classes:
            check_latency(entry.latency)
    assert counted == {"calm": 20, "falling apart": 10}
    assert entry is not None
    for name, more in (("received", 31), ("predictions", 30), ("rejected", 1), ("sent", 30)):
        assert entry.metrics[f"edgeward.messages.{name}"] == before[name] + more
    assert entry.metrics["edgeward.messages.dead_letters"] == before["dead_letters"] + 1
    # The next window begins anew: its classes and latencies are none.
    (document,) = told(here)
    assert document.slots["vib"].classes == {}
    assert document.slots["vib"].latency == {}
    assert document.slots["vib"].metrics["edgeward.messages.predictions"] >= 30


def check_latency(latency: dict[str, float]) -> None:
    parts = ("total", "queue", "decode", "run", "encode")
    assert set(latency) == {f"{part}.p{q}_ms" for part in parts for q in (50, 95, 99)}
    for part in parts:
        p50, p95, p99 = (latency[f"{part}.p{q}_ms"] for q in (50, 95, 99))
        assert 0 <= p50 <= p95 <= p99 < 10_000
    # Each part is less than the whole; a bucket of the histogram is 9 % wide.
    for part in parts[1:]:
        assert latency[f"{part}.p99_ms"] <= latency["total.p99_ms"] * 1.1


# As it happens.


def test_outcomes_deaths_and_dead_letters_are_told_as_they_happen(
    here: Running, packs: Packs
) -> None:
    served = here.device.slot("other")
    pid = served["worker_pid"]
    os.kill(pid, signal.SIGKILL)
    death = here.event("worker_died", slot="other")
    assert death["pack"] == served["pack"]
    assert death["code"] == "worker_exited"
    assert "signal 9" in death["message"]
    assert f"(pid {pid})" in death["message"]
    deployment = here.deploy(
        vib=slot(labelled(packs)), other=slot(packs.affine(3), "other/+", "out/o")
    )
    outcome = here.event("rollout_active", slot="other", deployment=deployment)
    assert outcome["pack"] == packs.affine(3).pack
    here.user.publish(here.topic("desired"), b"{}")
    refusal = here.event("deployment_refused")
    assert refusal["code"] == "bad_document"
    for document in documents(here.user.on(here.topic("events"))):
        msgspec.convert(document, Event)
    numbers = [e["stamp"]["seq"] for e in documents(here.user.on(here.topic("events")))]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_another_interval_holds_from_its_deployment_on(here: Running, packs: Packs) -> None:
    here.telemetry = {"interval_s": 3600}
    try:
        here.serve(vib=slot(labelled(packs)))
        known = len(here.user.on(here.topic("telemetry")))
        here.user.publish("in/a", b"{")  # something that is told all the same
        letters = here.topic("dead-letter/vib")
        here.user.wait_for(letters, len(here.user.on(letters)) + 1)
        assert len(here.user.on(here.topic("telemetry"))) <= known + 1
    finally:
        here.telemetry = {"interval_s": INTERVAL_S}
        here.serve(vib=slot(labelled(packs)), other=slot(packs.affine(2), "other/+", "out/o"))


# After it was away.


class Listener:
    """Takes everything that a device tells, over restarts of the broker."""

    def __init__(self, here: Running) -> None:
        self._here = here
        self.client = Client(here.broker.url, client_id="listener", clean=False)
        for name in ("telemetry", "events", "dead-letter/#"):
            self.client.subscribe(here.topic(name))

    def told(self, name: str) -> list[dict[str, Any]]:
        return [
            json.loads(m.payload)
            for m in list(self.client.received)
            if m.topic.startswith(self._here.topic(name))
        ]

    def gaps(self) -> dict[str, GapDocument]:
        """By id: the last word of each."""
        found = [e for e in self.told("events") if e.get("kind") == "gap"]
        return {e["id"]: msgspec.convert(e, GapDocument) for e in found}


@pytest.mark.needs_broker("sessions")
def test_what_happened_while_the_link_was_away_comes_back_in_order_with_its_own_times(
    here: Running, packs: Packs
) -> None:
    listener = Listener(here)
    known = {name: len(listener.told(name)) for name in ("telemetry", "events")}
    here.broker.stop()
    until(lambda: here.device.status()["link"]["state"] != "connected", "the link is away")
    pids = []
    for _ in range(3):
        pid = until(lambda: here.device.slot("vib").get("worker_pid"), "a worker")
        os.kill(pid, signal.SIGKILL)
        pids.append(pid)
        until(lambda: here.device.slot("vib").get("worker_pid") not in (None, *pids), "another")
    here.broker.start()

    def all_told() -> bool:
        deaths = [e for e in listener.told("events") if e.get("event") == "worker_died"]
        return len(deaths) >= 3 and len(listener.told("telemetry")) >= known["telemetry"] + 3

    until(all_told, "everything is told", log=here.device)
    for name in ("telemetry", "events"):
        stamps = [d["stamp"] for d in listener.told(name) if "stamp" in d]
        numbers = [stamp["seq"] for stamp in stamps]
        once = sorted(set(numbers))
        assert once == list(range(once[0], once[-1] + 1)), name
        times = [stamp["mono_ms"] for stamp in stamps]
        assert [t for _, t in sorted(zip(numbers, times, strict=True))] == sorted(times)
    deaths = [e for e in listener.told("events") if e.get("event") == "worker_died"][-3:]
    assert [f"(pid {pid})" in e["message"] for pid, e in zip(pids, deaths, strict=True)] == [
        True
    ] * 3
    mono_ms = [e["stamp"]["mono_ms"] for e in deaths]
    assert mono_ms == sorted(mono_ms)
    listener.client.close()


# Below what the agent keeps whole at once, and more than the smallest spool holds.
LETTERS = 90
LETTER_BYTES = 40_000


@pytest.mark.needs_broker("sessions")
def test_what_a_full_spool_drops_is_told_and_the_sum_is_right_also_over_a_kill(
    tmp_path: Path, packs: Packs
) -> None:
    (tmp_path / "other").mkdir()
    other = LocalBroker(tmp_path / "other").start()
    bus = f'[bus]\nurl = "{other.url}"\n'
    with running(tmp_path, packs, limits="spool_mb = 1", extra=bus) as here:
        listener, sensor = Listener(here), Client(other.url, client_id="sensor")
        here.serve(vib=slot(packs.affine(1)))
        here.broker.stop()
        until(lambda: here.device.status()["link"]["state"] != "connected", "the link is away")
        flood(here, sensor, "before")
        here.device.kill()
        here.device.start()
        flood(here, sensor, "after")
        here.broker.start()

        def accounted() -> int:
            sent = {base64.b64decode(e["payload"])[:12] for e in listener.told("dead-letter")}
            return len(sent) + sum(gap.count for gap in lost(listener))

        until(lambda: accounted() >= 2 * LETTERS, "the sum is right", log=here.device)
        assert accounted() == 2 * LETTERS
        assert lost(listener)
        for gap in lost(listener):
            assert (gap.reason, gap.dropped, gap.exact) == ("spool_full", "oldest", True)
            assert gap.count == gap.to_seq - gap.from_seq + 1
        # The newest is there: the oldest gave way.
        newest = base64.b64decode(listener.told("dead-letter")[-1]["payload"])
        assert newest.startswith(f"{{after {LETTERS - 1:03}".encode())
        listener.client.close()
        sensor.close()
    other.stop()


def flood(here: Running, sensor: Client, name: str) -> None:
    """Send messages that nobody can read and that have no id; return when all are set aside."""
    until(lambda: here.device.slot("vib").get("worker_pid"), "a worker")
    before = here.device.slot("vib")["dead_letters"]
    for number in range(LETTERS):
        sensor.client.publish("in/a", f"{{{name} {number:03}".ljust(LETTER_BYTES), qos=1)
    until(
        lambda: here.device.slot("vib")["dead_letters"] == before + LETTERS,
        "all are set aside",
        log=here.device,
    )


def lost(listener: Listener) -> list[GapDocument]:
    return [gap for gap in listener.gaps().values() if gap.stream.startswith("dead-letter")]
