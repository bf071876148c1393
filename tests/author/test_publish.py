"""Deploying through a real broker to a small device that speaks the real protocol."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from agent.author import publish
from agent.author.broker import Broker, BrokerOptions
from agent.author.offer import Offer, open_pack
from agent.author.publish import (
    DeviceStatus,
    Event,
    Moved,
    Order,
    Published,
    Transferred,
    Verdict,
    deploy,
)
from agent.documents.deployment import Deployment, Input, Output, Slot
from agent.documents.report import Failure, Report, SlotPhase, SlotReport
from agent.errors import DigestMismatch, DocumentError, PackError, UsageError
from agent.wire import blocks
from tests.author.peer import CONTENT, Device, write_pack
from tests.brokers import LocalBroker


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    broker = LocalBroker(tmp_path_factory.mktemp("mosquitto")).start()
    yield broker
    broker.stop()


@pytest.fixture(autouse=True)
def quick_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """This broker is on the same machine: what it keeps comes at once."""
    monkeypatch.setattr(publish, "QUIET_S", 0.2)
    monkeypatch.setattr(publish, "QUIET_MORE_S", 0.3)


@pytest.fixture
def offer(tmp_path: Path) -> Offer:
    return open_pack(write_pack(tmp_path / "pack"))


def order_for(device: str, *, slot: str = "vibration", name: str = "d-1", **more: object) -> Order:
    target = Slot(pack="", input=Input("sensors/+"), output=Output("p/{slot}/{1}"), source="mqtt:")
    fields = {"wait": True, "timeout_s": 20.0, **more}
    return Order(device, f"edgeward/{device}/", slot, target, name, **fields)  # type: ignore[arg-type]


def run(broker: LocalBroker, offer: Offer, order: Order) -> list[Event]:
    target = replace(order.target, pack=offer.id)
    asked = replace(order, target=target)
    with Broker(BrokerOptions(broker.url)) as connection:
        return list(deploy(connection, offer, asked))


def test_a_pack_is_delivered_and_the_verdict_is_the_devices(
    mosquitto: LocalBroker, offer: Offer
) -> None:
    with Device(mosquitto.url, "good") as device:
        events = run(mosquitto, offer, order_for("good"))
    assert DeviceStatus(None) not in events
    assert device.files == {"model.onnx": CONTENT}
    assert Published("d-1") in events
    assert DeviceStatus(online=True) in events
    moved = [event.state for event in events if isinstance(event, Moved)]
    assert moved == ["fetching", "verifying", "probation", "active"]
    done = [event.done_bytes for event in events if isinstance(event, Transferred)]
    assert done == sorted(done)
    assert done[-1] == offer.total_bytes
    assert isinstance(events[-1], Verdict)
    assert events[-1].state == "active"
    slot = device.deployments[-1].slots["vibration"]
    assert (slot.pack, slot.source) == (offer.id, "mqtt:")


@pytest.mark.parametrize("state", ["failed", "rolled_back"])
def test_a_failure_on_the_device_is_the_verdict_with_its_reason(
    mosquitto: LocalBroker, offer: Offer, state: SlotPhase
) -> None:
    why = Failure(code="self_test_failed", message="output y differs", hint="train it again")
    with Device(mosquitto.url, f"bad-{state}", answers=[("qualifying", None), (state, why)]):
        events = run(mosquitto, offer, order_for(f"bad-{state}"))
    verdict = events[-1]
    assert isinstance(verdict, Verdict)
    assert (verdict.state, verdict.error) == (state, why)


def test_a_refused_document_is_a_verdict(mosquitto: LocalBroker, offer: Offer) -> None:
    why = Failure(code="bad_document", message="desired.slots: expected …")
    with Device(mosquitto.url, "picky", refuses=why):
        events = run(mosquitto, offer, order_for("picky"))
    assert events[-1] == Verdict("refused", why)


def test_other_slots_and_unknown_fields_of_the_document_are_kept(
    mosquitto: LocalBroker, offer: Offer
) -> None:
    other = {"pack": "sha256:" + "0" * 64, "input": {"topic": "a"}, "output": {"topic": "b"}}
    old = {"schema": 1, "deployment": "old", "slots": {"other": {**other, "new": 1}}, "colour": "x"}
    with Broker(BrokerOptions(mosquitto.url)) as console:
        console.publish("edgeward/two/desired", msgspec.json.encode(old), retain=True, wait=True)
        with Device(mosquitto.url, "two") as device:
            events = run(mosquitto, offer, order_for("two"))
        assert set(device.deployments[-1].slots) == {"other", "vibration"}
        console.subscribe([("edgeward/two/desired", 1)])
        message = console.next(5)
    assert message is not None
    document = msgspec.json.decode(message.payload)
    assert document["slots"]["other"]["new"] == 1
    assert document["colour"] == "x"
    assert isinstance(events[-1], Verdict)
    assert events[-1].state == "active"


def test_two_deployments_at_one_moment_end_with_both_slots(
    mosquitto: LocalBroker, offer: Offer
) -> None:
    results: dict[str, list[Event]] = {}

    def work(slot: str) -> None:
        results[slot] = run(mosquitto, offer, order_for("race", slot=slot, name=f"d-{slot}"))

    with Device(mosquitto.url, "race") as device:
        workers = [threading.Thread(target=work, args=(slot,)) for slot in ("one", "two")]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(timeout=40)
    assert set(device.deployments[-1].slots) == {"one", "two"}
    verdicts = [results[slot][-1] for slot in ("one", "two")]
    assert [v.state for v in verdicts if isinstance(v, Verdict)] == ["active", "active"]


def test_a_document_that_takes_the_slot_away_ends_the_wait(
    mosquitto: LocalBroker, offer: Offer
) -> None:
    def overtake(device: Device, desired: Deployment) -> None:
        if len(device.deployments) == 1:
            slot = replace(desired.slots["vibration"], pack="sha256:" + "0" * 64)
            newer = Deployment(1, "newer", {"vibration": slot})
            document = msgspec.json.encode(newer)
            device.broker.publish(f"{device.prefix}desired", document, retain=True, wait=True)

    with Device(mosquitto.url, "busy", answers=[], on_desired=overtake):
        events = run(mosquitto, offer, order_for("busy"))
    assert isinstance(events[-1], Verdict)
    assert events[-1].state == "overtaken"


def test_a_device_that_serves_slots_without_a_document_is_not_stopped_by_accident(
    mosquitto: LocalBroker, offer: Offer
) -> None:
    served = Report(1, "1", "odd", slots={"camera": SlotReport("active")})
    with Device(mosquitto.url, "odd") as device:
        device.report(served)
        with pytest.raises(UsageError, match=r"serves camera.*--replace"):
            run(mosquitto, offer, order_for("odd"))
        events = run(mosquitto, offer, order_for("odd", replace=True))
    assert isinstance(events[-1], Verdict)
    assert events[-1].state == "active"


def test_a_document_that_is_none_is_only_replaced_when_asked(
    mosquitto: LocalBroker, offer: Offer
) -> None:
    with Broker(BrokerOptions(mosquitto.url)) as console:
        console.publish("edgeward/broken/desired", b'{"schema":7}', retain=True, wait=True)
    with pytest.raises(UsageError, match=r"not valid.*--replace"):
        run(mosquitto, offer, order_for("broken"))
    events = run(mosquitto, offer, order_for("broken", replace=True, timeout_s=0.01))
    assert Published("d-1") in events


def test_an_absent_device_ends_in_time_and_says_what_to_look_at(
    mosquitto: LocalBroker, offer: Offer
) -> None:
    events = run(mosquitto, offer, order_for("nobody", timeout_s=0.05))
    assert events.count(DeviceStatus(None)) == 1
    verdict = events[-1]
    assert isinstance(verdict, Verdict)
    assert verdict.state == "timed_out"
    assert verdict.error is not None
    assert "has not answered this deployment" in verdict.error.message
    assert "--prefix" in verdict.error.hint


def test_without_waiting_it_ends_when_the_device_has_the_pack(
    mosquitto: LocalBroker, offer: Offer
) -> None:
    with Device(mosquitto.url, "hurry", answers=[("verifying", None)]) as device:
        events = run(mosquitto, offer, order_for("hurry", wait=False))
        assert device.files == {"model.onnx": CONTENT}
    assert isinstance(events[-1], Verdict)
    assert events[-1].state == "published"


def test_a_file_that_changes_while_it_is_served_is_refused(
    mosquitto: LocalBroker, offer: Offer
) -> None:
    path = offer.directory / "model.onnx"
    heard: list[blocks.BlockRefused] = []

    with Broker(BrokerOptions(mosquitto.url)) as device:
        device.subscribe([("edgeward/cut/desired", 1), (f"edgeward/cut/{blocks.REFUSED}", 1)])

        def play() -> None:
            assert device.next(10) is not None
            path.write_bytes(b"short")
            file = offer.files["model.onnx"]
            request = blocks.BlockRequest(
                1, offer.id, "model.onnx", file.digest, blocks.BLOCK_BYTES, ((0, 1),)
            )
            device.publish(f"edgeward/cut/{blocks.REQUEST}", blocks.encode_request(request))
            refused = device.next(10)
            assert refused is not None
            heard.append(blocks.decode_refusal(refused.payload))

        player = threading.Thread(target=play)
        player.start()
        run(mosquitto, offer, order_for("cut", timeout_s=2))
        player.join(timeout=10)
    assert heard
    assert heard[0].code == "unreadable"
    assert "shorter" in heard[0].message


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("input", Input("a/#/b"), "desired.slots.vibration.input.topic"),
        ("output", Output("p/{2}"), "desired.slots.vibration.output.topic"),
        ("settings", {"Not a key": 1}, "desired.slots.vibration.settings"),
    ],
)
def test_an_order_that_no_device_could_take_is_refused_here(
    mosquitto: LocalBroker, offer: Offer, field: str, value: object, path: str
) -> None:
    order = order_for("never")
    target = replace(order.target, **{field: value})
    with pytest.raises(DocumentError, match=path):
        run(mosquitto, offer, replace(order, target=target))


def test_a_pack_is_checked_before_it_is_offered(tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "pack")
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(DigestMismatch, match=r"model\.onnx is not the file"):
        open_pack(folder)
    assert open_pack(folder, check=False).manifest.name == "model"
    (folder / "model.onnx").unlink()
    with pytest.raises(PackError, match="cannot be read"):
        open_pack(folder)
    with pytest.raises(UsageError, match="holds no pack"):
        open_pack(tmp_path)
