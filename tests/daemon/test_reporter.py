"""What the agent tells stays bounded, and a report counts as sent once the broker has it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.control.state import DeviceState
from agent.daemon.lane import DeadLetter
from agent.daemon.meters import SlotMeters
from agent.daemon.outbox import Outbox
from agent.daemon.reporter import DEAD_LETTERS_AT_ONCE, Reporter, _classes
from agent.documents.report import Failure
from agent.documents.settings import Connection, Settings
from agent.links.api import Standing
from agent.store.files import Files
from agent.store.spool import Spool
from tests.brokers import LocalBroker
from tests.links.driver import broker_link, owner_of_a_link
from tests.witness import Witness

PREFIX = "edgeward/press-7/"
FULL = Failure(code="no_space", message="the disk is full")
LOST = Failure(code="store_corrupt", message="the saved state is damaged")


@contextmanager
def telling(
    folder: Path,
    url: str = "mqtt://127.0.0.1:1",
    on_state: Callable[[Standing], None] = lambda state: None,
) -> Iterator[tuple[Reporter, Spool]]:
    settings = Settings(device_id="press-7", link=Connection(url=url), state_dir=str(folder))
    link = broker_link(url, owner_of_a_link(state=on_state), prefix=PREFIX)
    spool = Spool(Files(), folder / "spool", 8 << 20, boot="b")
    spool.open()
    outbox = Outbox(
        lambda: spool,
        link,
        device="press-7",
        boot="b",
        now=lambda: (time.time(), time.monotonic()),
        clock_synced=lambda: True,
        trouble=lambda error: None,
        kept_again=lambda count: None,
    )
    outbox.open()
    yield (
        Reporter(
            settings,
            link,
            outbox,
            state=DeviceState,
            servers={},
            progress={},
            wall=time.time,
            spool_bytes=lambda: 0,
        ),
        spool,
    )
    outbox.close()


def test_a_flood_of_dead_letters_is_counted_and_leaves_room_for_outcomes(tmp_path: Path) -> None:
    letter = DeadLetter("vib", "in/a", b"x", "bad_input", "not a number")

    async def story() -> list[dict[str, Any]]:
        with telling(tmp_path) as (reporter, spool):
            for _ in range(DEAD_LETTERS_AT_ONCE + 400):
                reporter.dead_letter(letter)
            reporter.close()
            spool.commit()
            return [json.loads(entry.payload) for entry in spool.pending()]

    told = asyncio.run(story())
    (event,) = [document for document in told if document.get("event") == "dead_letters"]
    letters = len(told) - 1
    assert DEAD_LETTERS_AT_ONCE <= letters < DEAD_LETTERS_AT_ONCE + 20
    assert event["slot"] == "vib"
    assert event["count"] + letters == DEAD_LETTERS_AT_ONCE + 400


def test_what_a_worker_nests_deeply_does_not_get_into_the_spool(tmp_path: Path) -> None:
    flat = b'{"id": null, "error": "not a number", "code": "bad_input"}'
    nested = b'{"error": ' + b"[" * 900 + b"]" * 900 + b"}"

    async def story() -> list[dict[str, Any]]:
        with telling(tmp_path) as (reporter, spool):
            for detail in (flat, nested):
                reporter.dead_letter(DeadLetter("vib", "in/a", b"x", "bad_input", "no", detail))
            reporter.close()
            spool.commit()
            return [json.loads(entry.payload) for entry in spool.pending()]

    first, second = asyncio.run(story())
    assert first["detail"] == {"id": None, "error": "not a number", "code": "bad_input"}
    assert second.get("detail") is None


def test_of_several_troubles_the_report_names_the_worst_until_each_is_over(tmp_path: Path) -> None:
    async def story() -> None:
        with telling(tmp_path) as (reporter, _):
            reporter.in_trouble("spool", FULL)
            reporter.in_trouble("lost state", LOST)
            assert reporter.report().trouble == LOST
            reporter.in_trouble("lost state", None)
            assert reporter.report().trouble == FULL
            reporter.in_trouble("spool", None)
            reporter.in_trouble("spool", None)
            assert reporter.report().trouble is None
            reporter.close()

    asyncio.run(story())


@pytest.mark.parametrize("refused", [True, False])
def test_a_report_counts_as_sent_once_the_broker_has_it(tmp_path: Path, refused: bool) -> None:
    acl = ("topic readwrite #", *((f"topic deny {PREFIX}reported",) if refused else ()))
    (tmp_path / "broker").mkdir()
    broker = LocalBroker(tmp_path / "broker", acl=acl).start()

    async def story() -> None:
        connected = asyncio.Event()

        def on_state(state: Standing) -> None:
            if state.phase == "connected":
                connected.set()

        with telling(tmp_path, broker.url, on_state) as (reporter, _):
            reporter.publish()  # does not wait for a link to come
            running = asyncio.ensure_future(reporter.link.run())
            await connected.wait()
            reporter.publish()
            assert reporter._last == b""
            # The broker answers in order: with this one, the report is answered as well.
            answered = asyncio.Event()
            reporter.link.send("events", b"{}", lambda ok, reason: answered.set())
            await answered.wait()
            trouble = reporter.report().trouble
            if refused:
                assert trouble is not None
                assert trouble.message.startswith("report not sent: the broker refused it")
            else:
                assert trouble is None
            assert (reporter._last == b"") is refused
            reporter.close()
            await reporter.link.stop()
            await running

    try:
        with Witness(broker.port) as witness:
            witness.subscribe(f"{PREFIX}reported")
            asyncio.run(asyncio.wait_for(story(), 20))
            if not refused:
                assert json.loads(witness.next().payload)["device"] == "press-7"
            assert witness.messages.empty()
    finally:
        broker.stop()


def test_classes_of_the_same_label_are_added_up() -> None:
    meters = SlotMeters()
    meters.classes.update({0: 5, 1: 3, 2: 1, 7: 2})
    plan = SimpleNamespace(manifest=SimpleNamespace(labels=("ok", "bad", "ok")))
    server: Any = SimpleNamespace(plan=plan, lane=SimpleNamespace(meters=meters))
    assert _classes(server) == {"ok": 6, "bad": 3, "7": 2}
