"""The life of messages between a sensor and its consumer: where answers go, what slots share, what
windows and states remember."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.author.pack import pack
from agent.documents.manifest import Tensor
from tests.brokers import need
from tests.scenarios.conftest import Packs
from tests.scenarios.device import until, v2_request
from tests.scenarios.running import ROW, Running, documents, running, slot

WINDOW = 100
MAX_HELD = 64
RECEIVE_MAXIMUM = 128


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, packs: Packs) -> Iterator[Running]:
    """A device with many slots."""
    with running(tmp_path_factory.mktemp("messages"), packs) as started:
        started.serve(**slots(packs))
        yield started


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, packs: Packs) -> Iterator[Running]:
    """The same, with its sensors on a connection of its own that speaks MQTT 3.1.1."""
    folder = tmp_path_factory.mktemp("messages-3-1-1")
    bus = '[bus]\nurl = "{url}"\nversion = "3.1.1"\n'
    with running(folder, packs, extra=bus) as started:
        started.serve(**slots(packs))
        yield started


def slots(packs: Packs) -> dict[str, dict[str, Any]]:
    one, two = packs.affine(1), packs.affine(2)
    slow = {"qos": 0, "max_in_flight": 2}
    return {
        "all": slot(one, "in/+", "out/all/{1}"),
        "one": slot(two, "in/a", "out/one"),
        "also": slot(two, "in/+", "out/also/{1}", input={"qos": 0}),
        "polite": slot(one, "polite/+", "out/polite", output={"reply_to": True}),
        "oldest": slot(one, "oldest/+", "out/oldest", input={**slow, "drop": "drop_oldest"}),
        "newest": slot(one, "newest/+", "out/newest", input={**slow, "drop": "drop_newest"}),
        "tumbling": slot(packs.windowed("tumbling", 4), "tumbling/+", "out/tumbling/{1}"),
        "sliding": slot(packs.windowed("sliding", 3), "sliding/+", "out/sliding/{1}"),
        "long": slot(packs.windowed("tumbling", WINDOW), "long/+", "out/long/{1}"),
    }


# Where answers go.


class Asker:
    """A client of MQTT 5, which asks and gets its answers on a topic of its own."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("mqtt://").partition(":")
        self.received: list[paho.MQTTMessage] = []
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id="asker", protocol=paho.MQTTv5
        )
        granted: list[Any] = []
        self.client.on_message = lambda client, data, message: self.received.append(message)
        self.client.on_subscribe = lambda *args: granted.append(args)
        self.client.on_connect = lambda *args: self.client.subscribe("#", 1)
        self.client.connect(host, int(port))
        self.client.loop_start()
        until(lambda: granted, "subscribed")

    def ask(self, topic: str, payload: bytes, response_topic: str, correlation: bytes) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = response_topic
        properties.CorrelationData = correlation
        self.client.publish(topic, payload, qos=1, properties=properties)

    def answers(self, topic: str, count: int = 1) -> list[paho.MQTTMessage]:
        def there() -> list[paho.MQTTMessage]:
            found = [message for message in list(self.received) if message.topic == topic]
            return found if len(found) >= count else []

        found: list[paho.MQTTMessage] = until(there, f"{count} messages on {topic}")
        return found


@pytest.fixture
def asker(here: Running) -> Iterator[Asker]:
    need("mqtt5")
    opened = Asker(here.broker.url)
    yield opened
    opened.client.disconnect()
    opened.client.loop_stop()


def request(message_id: str | None, **more: Any) -> bytes:
    whole = json.loads(v2_request(ROW, "x", message_id or ""))
    if message_id is None:
        del whole["id"]
    return json.dumps({**whole, **more}).encode()


def test_a_response_topic_is_obeyed_and_correlation_data_come_back(
    here: Running, asker: Asker
) -> None:
    asker.ask("in/b", request("mine"), "replies/me", b"\x00\xffraw")
    # Two slots take in/b, and both answer the one who asked.
    for answer in asker.answers("replies/me", 2):
        assert json.loads(answer.payload)["id"] == "mine"
        assert answer.properties is not None
        assert answer.properties.CorrelationData == b"\x00\xffraw"


@pytest.mark.parametrize(
    ("correlation", "message_id"), [(b"order 66", "order 66"), (b"\x00\xff", "00ff")]
)
def test_without_an_id_the_correlation_data_are_the_id(
    correlation: bytes, message_id: str, here: Running, asker: Asker
) -> None:
    asker.ask("in/b", request(None), f"replies/{message_id}", correlation)
    answer = json.loads(asker.answers(f"replies/{message_id}")[0].payload)
    assert (answer["id"], answer["parameters"]["id_from"]) == (message_id, "correlation")


def test_a_message_that_cannot_be_read_is_answered_where_it_asked_to_be(
    here: Running, asker: Asker
) -> None:
    asker.ask("in/b", b"{", "replies/bad", b"c 1")
    answer = asker.answers("replies/bad")[0]
    assert json.loads(answer.payload)["id"] == "c 1"
    assert json.loads(answer.payload)["code"] == "bad_input"


def test_nobody_can_make_the_agent_write_its_own_documents(here: Running, asker: Asker) -> None:
    mine = here.topic("desired")
    before = here.device.status()["deployment"]
    asker.ask("in/self", request("self"), mine, b"c")
    here.user.publish("polite/self", request("polite self", reply_to=mine))
    here.answer_to("self", "out/all/self")
    here.answer_to("polite self", "out/polite")
    assert here.device.status()["deployment"] == before
    assert "refused" not in here.device.status()


@pytest.mark.parametrize("version", ["here", "old"])
def test_reply_to_in_a_payload_is_obeyed_where_the_slot_allows_it(
    version: str, request_fixture: pytest.FixtureRequest
) -> None:
    device: Running = request_fixture.getfixturevalue(version)
    device.user.subscribe("elsewhere/#")
    device.user.publish("polite/a", request("allowed", reply_to="elsewhere/me"))
    device.user.publish("in/b", request("not allowed", reply_to="elsewhere/me"))
    assert device.answer_to("allowed", "elsewhere/me")
    assert device.answer_to("not allowed", "out/all/b")
    ids = [answer["id"] for answer in device.answers("elsewhere/me")]
    assert "not allowed" not in ids


@pytest.fixture
def request_fixture(request: pytest.FixtureRequest) -> pytest.FixtureRequest:
    return request


@pytest.mark.parametrize("version", ["here", "old"])
def test_a_packet_above_the_limit_is_a_dead_letter_that_says_how_large_it_was(
    version: str, request_fixture: pytest.FixtureRequest
) -> None:
    device: Running = request_fixture.getfixturevalue(version)
    letters = device.topic("dead-letter/all")
    device.user.subscribe(letters)
    for number in range(3):
        device.user.publish("in/b", request(f"huge {number}") + b" " * (2 << 20))
    device.user.publish("in/b", request("after huge ones"))
    assert device.answer_to("after huge ones", "out/all/b")["outputs"][0]["data"] == ROW
    for letter in documents(device.user.wait_for(letters, 3)):
        assert (letter["code"], letter["topic"], letter["payload"]) == ("too_large", "in/b", "")
        assert letter["payload_bytes"] > 2 << 20
    assert device.device.slot("all")["waiting"] == 0


# What slots share.


@pytest.mark.parametrize("version", ["here", "old"])
def test_slots_whose_filters_overlap_each_answer_each_message_once(
    version: str, request_fixture: pytest.FixtureRequest
) -> None:
    device: Running = request_fixture.getfixturevalue(version)
    topics = {"all": "out/all/a", "one": "out/one", "also": "out/also/a"}
    before = {name: len(device.user.on(topic)) for name, topic in topics.items()}
    for number in range(30):
        device.user.client.publish("in/a", v2_request(ROW, "x", f"shared {number}"), qos=1)
    # Whatever came twice would be there before the answers to what is sent afterwards.
    device.user.publish("in/a", v2_request(ROW, "x", "last"))
    for name, topic in topics.items():
        device.answer_to("last", topic)
        ids = [answer["id"] for answer in device.answers(topic, before[name])]
        assert ids == [*(f"shared {number}" for number in range(30)), "last"], name
        assert device.device.slot(name)["redelivered"] == 0


@pytest.mark.parametrize("name", ["oldest", "newest"])
@pytest.mark.parametrize("version", ["here", "old"])
def test_at_qos_0_a_full_slot_drops_what_it_says_and_counts_it(
    name: str, version: str, request_fixture: pytest.FixtureRequest
) -> None:
    device: Running = request_fixture.getfixturevalue(version)
    before = device.device.slot(name)
    # A worker that does not get on: two messages are with it, two wait, the rest must give way.
    os.kill(before["worker_pid"], signal.SIGSTOP)
    try:
        for number in range(40):
            device.user.client.publish(f"{name}/a", v2_request(ROW, "x", str(number)), qos=0)
            if number == 1:
                until(lambda: device.device.slot(name)["in_flight"] == 2, "two are in flight")
        until(lambda: device.device.slot(name)["received"] == 40, "all are in")
    finally:
        os.kill(before["worker_pid"], signal.SIGCONT)
    device.user.wait_for(f"out/{name}", 4)
    kept = {"oldest": ["0", "1", "38", "39"], "newest": ["0", "1", "2", "3"]}
    assert [answer["id"] for answer in device.answers(f"out/{name}")] == kept[name]
    assert device.device.slot(name)["dropped"] == 36
    assert device.device.slot(name)["worker_pid"] == before["worker_pid"]


# What windows remember.


def reading(value: float) -> bytes:
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [value]}
    return json.dumps({"id": f"{value:g}", "inputs": [tensor]}).encode()


def send(device: Running, topic: str, *values: float) -> None:
    for value in values:
        device.user.publish(topic, reading(value))


def sums(device: Running, topic: str, count: int) -> list[float]:
    """What the windows held, in order; a sum of powers of two tells its terms."""
    answers = documents(device.user.wait_for(topic, count))
    return [answer["outputs"][0]["data"][0] for answer in answers]


def test_a_tumbling_window_predicts_once_and_is_acknowledged_then(here: Running) -> None:
    before = here.device.slot("tumbling")
    send(here, "tumbling/a", 1, 2, 4)
    send(here, "tumbling/b", 16)
    until(lambda: here.device.slot("tumbling")["held"] == before["held"] + 4, "they are held")
    assert here.answers("out/tumbling/a") == []
    send(here, "tumbling/a", 8, 16)
    assert sums(here, "out/tumbling/a", 1) == [15.0]
    assert here.answers("out/tumbling/a")[0]["id"] == "8"
    until(lambda: here.device.slot("tumbling")["held"] == before["held"] + 2, "four are released")
    # The other source has its own window.
    send(here, "tumbling/b", 32, 64, 128)
    assert sums(here, "out/tumbling/b", 1) == [240.0]


def test_a_sliding_window_predicts_with_each_reading_once_it_is_full(here: Running) -> None:
    send(here, "sliding/a", 1, 2, 4, 8, 16)
    assert sums(here, "out/sliding/a", 3) == [7.0, 14.0, 28.0]
    assert here.device.slot("sliding")["held"] == 2


def kill_worker(device: Running, name: str) -> None:
    pid = device.device.slot(name)["worker_pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: device.device.slot(name).get("worker_pid") not in (None, pid), f"{name}: another")


def test_open_windows_survive_the_death_of_their_worker(here: Running) -> None:
    send(here, "tumbling/c", 1, 2)
    send(here, "sliding/c", 1, 2, 4)
    assert sums(here, "out/sliding/c", 1) == [7.0]
    until(lambda: here.device.slot("tumbling")["absorbed"] >= 2, "both are in")
    for name in ("tumbling", "sliding"):
        kill_worker(here, name)
    send(here, "tumbling/c", 4, 8)
    send(here, "sliding/c", 8)
    assert sums(here, "out/tumbling/c", 1) == [15.0]
    assert sums(here, "out/sliding/c", 2) == [7.0, 14.0]


@pytest.mark.needs_broker("sessions")
def test_open_windows_survive_the_death_of_the_agent_as_far_as_they_are_unacknowledged(
    here: Running,
) -> None:
    send(here, "tumbling/d", 1, 2)
    send(here, "long/d", *(1 for _ in range(WINDOW - 20)))
    until(lambda: here.device.slot("long")["absorbed"] == WINDOW - 20, "all are in")
    early = here.device.slot("long")["acknowledged_early"]
    assert early == WINDOW - 20 - MAX_HELD
    here.device.kill()
    here.device.start()
    send(here, "tumbling/d", 4, 8)
    assert sums(here, "out/tumbling/d", 1) == [15.0]
    # What was acknowledged early is what the crash cost, no more and no less.
    send(here, "long/d", *(1 for _ in range(20)))
    until(lambda: here.device.slot("long")["absorbed"] == WINDOW - early, "the rest is in")
    send(here, "long/d", *(1 for _ in range(early)))
    assert sums(here, "out/long/d", 1) == [WINDOW]


# What states remember.


def test_no_source_sees_the_state_that_another_leaves_in_a_model(
    here: Running, shared_models: Path, packs: Packs
) -> None:
    index = json.loads((shared_models / "index.json").read_text())
    (model,) = (m for m in index["models"] if m["name"] == "hey_jarvis_wakeword")
    packed = pack(shared_models / model["file"], packs.folder / "hey-jarvis", force=True)
    here.serve(**slots(packs), ear=slot(packed, "ear/+", "out/ear/{1}"))
    (tensor,) = packed.manifest.inputs
    expected = {f"s{number}": each for number, each in enumerate(model["expected"])}
    streams = {name: np.load(shared_models / e["input_tensor"]) for name, e in expected.items()}
    # Step by step in turn: were the state shared, the answers of both would change.
    for step in range(66):
        for name, frames in streams.items():
            block = frames[3 * step : 3 * step + 3].reshape(1, 3, 40)
            here.user.client.publish(f"ear/{name}", v2_of(tensor, block, str(step)), qos=1)
    for name, wanted in expected.items():
        answers = documents(here.user.wait_for(f"out/ear/{name}", 66))
        heard = [answer["outputs"][0]["data"][0] for answer in answers]
        assert np.abs(np.array(heard) - np.array(wanted["raw_outputs"])).max() <= 12, name
        assert Counter(answer["id"] for answer in answers).most_common(1)[0][1] == 1


def v2_of(tensor: Tensor, array: Any, message_id: str) -> str:
    given = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(array.shape),
        "data": array.ravel().tolist(),
    }
    return json.dumps({"id": message_id, "inputs": [given]})


def test_a_slot_that_is_stuck_keeps_no_document_no_command_and_no_other_slot_s_messages(
    tmp_path: Path, packs: Packs
) -> None:
    one, two = packs.affine(1), packs.affine(2)
    with running(tmp_path, packs, limits="worker_deadline_s = 600") as stuck:
        stuck.serve(vib=slot(one))
        pid = stuck.device.slot("vib")["worker_pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            for number in range(2 * RECEIVE_MAXIMUM):
                stuck.user.client.publish("in/a", v2_request(ROW, "x", str(number)), qos=1)
            until(
                lambda: stuck.device.slot("vib")["received"] >= RECEIVE_MAXIMUM,
                "the window is full",
            )
            stuck.deploy(vib=slot(one), other=slot(two, "other/+", "out/other"))
            stuck.device.wait_for("other", "active", two.pack)
            stuck.user.subscribe("out/other")
            stuck.user.publish("other/a", request("past the stuck one"))
            assert stuck.answer_to("past the stuck one", "out/other")
        finally:
            os.kill(pid, signal.SIGCONT)
        stuck.user.wait_for("out/a", 2 * RECEIVE_MAXIMUM)
