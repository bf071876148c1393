"""Messages that no model can digest, and models that some messages kill: the stream goes on."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.scenarios.conftest import Packs
from tests.scenarios.device import until, v2_request
from tests.scenarios.running import ROW, Running, documents, running, slot

DEADLINE_S = 1.0
LIMITS = f"worker_memory_mb = 256\nworker_deadline_s = {DEADLINE_S}\n"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, packs: Packs) -> Iterator[Running]:
    """A device with a harmless slot and one whose model some messages kill."""
    with running(tmp_path_factory.mktemp("bad-messages"), packs, limits=LIMITS) as started:
        started.user.subscribe(started.topic("dead-letter/#"))
        started.user.subscribe(started.topic("events"))
        started.serve(
            vib=slot(packs.affine(1)),
            risky=slot(packs.treacherous(1), "risk/+", "out/risk/{1}"),
        )
        yield started


# Payloads.


class Bad(NamedTuple):
    """A payload, the id under which its answer must come (None: a dead letter), and some words."""

    payload: bytes
    id: str | None
    words: str = ""


def v2(**changes: Any) -> bytes:
    """A good request, with some members changed or (None) left out."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ROW}
    whole = {"id": "bad", "inputs": [tensor]}
    for name, value in changes.items():
        place = whole if name in whole else tensor
        if value is None:
            del place[name]
        else:
            place[name] = value
    return json.dumps(whole).encode()


GOOD = v2()
DEEP = b"[" * 50_000
BAD = {
    "cut short": Bad(GOOD[:-9], "bad"),
    "cut short, no id": Bad(b'{"inputs": [', None),
    "empty": Bad(b"", None),
    "garbage": Bad(bytes(range(256)) * 8, None),
    "a number": Bad(b"42", None),
    "an array": Bad(b"[1, 2, 3, 4]", None),
    "not UTF-8": Bad(b'{"id": "\xff\xfe", "inputs": []}', None),
    "lists in place of inputs": Bad(b'{"id": "bad", "inputs": ' + DEEP, "bad", "inputs[0]"),
    "an unknown member nested too deeply": Bad(b'{"id": "bad", "more": ' + DEEP, "bad", "nested"),
    "nested too deeply, no id": Bad(DEEP, None),
    "nested data": Bad(GOOD.replace(b"[1.0", b"[" * 900 + b"1.0"), "bad"),
    "oversized": Bad(b'{"id": "bad", "inputs": "' + b"x" * 200_000, "bad", "at most"),
    "oversized, no id": Bad(b"x" * 200_000, None, "at most"),
    "no inputs": Bad(v2(inputs=[]), "bad"),
    "inputs of another type": Bad(v2(inputs={"x": 1}), "bad"),
    "an input twice": Bad(v2(inputs=2 * json.loads(GOOD)["inputs"]), "bad", "once"),
    "an unknown input": Bad(v2(name="y"), "bad", "inputs[0].name"),
    "an input with a long name": Bad(v2(name="y" * 60_000), "bad", "inputs[0].name"),
    "another datatype": Bad(v2(datatype="INT32"), "bad", "expected FP32"),
    "an unknown datatype": Bad(v2(datatype="FP31"), "bad", "expected FP32"),
    "a datatype of another type": Bad(v2(datatype=32), "bad"),
    "another shape": Bad(v2(shape=[1, 3]), "bad", "shape"),
    "another rank": Bad(v2(shape=[1, 2, 2]), "bad", "shape"),
    "a negative shape": Bad(v2(shape=[-1, -4]), "bad", "shape"),
    "a huge shape": Bad(v2(shape=[2**62, 2**62]), "bad", "shape"),
    "a shape beyond 64 bits": Bad(v2(shape=[2**70, 4]), "bad"),
    "a shape of a hundred dimensions": Bad(v2(shape=[1] * 100), "bad"),
    "too few values": Bad(v2(data=[1.0, 2.0]), "bad", "4 values"),
    "too many values": Bad(v2(data=[1.0] * 5), "bad", "4 values"),
    "no data": Bad(v2(data=None), "bad", "none"),
    "text": Bad(v2(data=["a", "b", "c", "d"]), "bad"),
    "NaN": Bad(GOOD.replace(b"1.0", b"NaN"), "bad"),
    "infinity": Bad(GOOD.replace(b"1.0", b"Infinity"), "bad"),
    "null": Bad(GOOD.replace(b"1.0", b"null"), "bad"),
    "a number beyond FP64": Bad(GOOD.replace(b"1.0", b"1e999"), "bad"),
    "a number beyond FP32": Bad(GOOD.replace(b"1.0", b"1e39"), "bad"),
    "a number of many digits": Bad(GOOD.replace(b"1.0", b"9" * 20_000), "bad"),
    "an unknown output": Bad(GOOD[:-1] + b', "outputs": [{"name": "z"}]}', "bad", "outputs[0]"),
    "an id that is a number": Bad(v2(id=7), None, "id"),
    "an id that is true": Bad(v2(id=True), None, "id"),
    "an id that is a list": Bad(v2(id=["bad"]), None, "id"),
    "an id that is an object": Bad(v2(id={"bad": 1}), None, "id"),
    "an id of 300 characters": Bad(v2(id="i" * 300), None, "id"),
    "half a character as id": Bad(GOOD.replace(b"bad", b"\\ud800"), None),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_payload_is_answered_or_set_aside_and_the_next_message_is_served(
    name: str, here: Running
) -> None:
    bad = BAD[name]
    letters = here.topic("dead-letter/vib")
    answered, aside = len(here.user.on("out/bad")), len(here.user.on(letters))
    before = here.device.slot("vib")
    here.user.publish("in/bad", bad.payload)
    assert here.predict(f"after {name}", "in/bad", "out/bad")["outputs"][0]["data"] == ROW
    after = here.device.slot("vib")
    assert after["rejected"] == before["rejected"] + 1
    assert after["worker_pid"] == before["worker_pid"]
    first = here.answers("out/bad", answered)[0]
    if bad.id is not None:
        assert (first["id"], first["code"]) == (bad.id, "bad_input")
        assert bad.words in first["error"]
        assert len(first["error"]) < 1000
        return
    assert first["id"] == f"after {name}"
    (letter,) = documents(here.user.wait_for(letters, aside + 1)[aside:])
    assert (letter["code"], letter["topic"]) == ("bad_input", "in/bad")
    assert base64.b64decode(letter["payload"]) == bad.payload[: 64 * 1024]
    assert letter["payload_bytes"] == len(bad.payload)
    assert bad.words in letter["detail"]["error"]
    assert here.device.slot("vib")["dead_letters"] == before["dead_letters"] + 1


@pytest.mark.parametrize("payload", [v2(id=None), v2(id="")], ids=["none", "empty"])
def test_a_message_without_an_id_gets_one_that_is_marked_as_made_here(
    payload: bytes, here: Running
) -> None:
    answered = len(here.user.on("out/anonymous"))
    here.user.publish("in/anonymous", payload)
    (answer,) = documents(here.user.wait_for("out/anonymous", answered + 1)[answered:])
    assert answer["id"]
    assert answer["parameters"]["id_from"] == "agent"


def test_a_payload_that_no_packet_may_hold_does_not_end_the_connection(here: Running) -> None:
    here.user.publish("in/bad", b"x" * (3 << 20))
    assert here.predict("after 3 MiB", "in/bad", "out/bad")["outputs"][0]["data"] == ROW
    assert here.device.status()["link"]["state"] == "connected"


# Messages that kill.


class Deadly(NamedTuple):
    """A row that the model does not survive, and what must be told of it."""

    row: list[float]
    code: str
    reason: str


DEADLY = {
    "hang": Deadly([1e18, 0.0, 0.0, 0.0], "worker_timed_out", f"within {DEADLINE_S:g} s"),
    "memory": Deadly([0.0, 1e9, 0.0, 0.0], "memory_limit", "the limit of 256 MB"),
    "bad output": Deadly([0.0, 0.0, -1.0, 0.0], "bad_output", "not valid"),
}


@pytest.mark.parametrize("name", DEADLY)
def test_a_message_that_kills_its_worker_is_tried_twice_then_set_aside_and_the_others_answered(
    name: str, here: Running
) -> None:
    deadly = DEADLY[name]
    source, answers = f"risk/{name[:3]}", f"out/risk/{name[:3]}"
    letters = here.topic("dead-letter/risky")
    aside = len(here.user.on(letters))
    before = here.device.slot("risky")
    order = [f"{name} {number}" for number in range(6)]
    for number, message_id in enumerate(order):
        row = deadly.row if number == 2 else ROW
        here.user.client.publish(source, v2_request(row, "x", message_id), qos=1)
    here.user.wait_for(answers, 5)
    assert [answer["id"] for answer in here.answers(answers)] == order[:2] + order[3:]
    (letter,) = documents(here.user.wait_for(letters, aside + 1)[aside:])
    assert letter["code"] == deadly.code
    assert deadly.reason in letter["reason"]
    assert json.loads(base64.b64decode(letter["payload"]))["id"] == order[2]
    after = here.device.slot("risky")
    assert after["state"] == "active"
    assert after["dead_letters"] == before["dead_letters"] + 1
    assert after["worker_restarts"] == before["worker_restarts"] + 2
    assert after["worker_pid"] != before["worker_pid"]
    deaths = [e for e in documents(here.user.on(here.topic("events"))) if e["slot"] == "risky"]
    assert [e["code"] for e in deaths if e["event"] == "worker_died"][-2:] == [deadly.code] * 2


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV, signal.SIGILL, signal.SIGTERM])
def test_a_worker_ended_by_any_signal_is_replaced_and_nothing_is_lost(
    sign: signal.Signals, here: Running
) -> None:
    source, answers = f"in/{sign.name}", f"out/{sign.name}"
    before = here.device.slot("vib")
    for number in range(40):
        here.user.client.publish(source, v2_request(ROW, "x", f"{sign.name} {number}"), qos=1)
        if number == 20:
            os.kill(before["worker_pid"], sign)
    here.user.wait_for(answers, 40)
    ids = [answer["id"] for answer in here.answers(answers)]
    assert list(dict.fromkeys(ids)) == [f"{sign.name} {number}" for number in range(40)]
    until(
        lambda: here.device.slot("vib").get("worker_pid") not in (None, before["worker_pid"]),
        "another worker",
    )
