"""The outbox between a real spool and a real broker: nothing is lost but what is refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.daemon import outbox as outboxes
from agent.daemon.outbox import DEAD_LETTER, EVENTS, TELEMETRY, Outbox, as_historical
from agent.documents.telemetry import Stamp
from agent.errors import AgentError, NoSpace
from agent.links.api import Standing, Stream
from agent.store.files import Files
from agent.store.spool import Spool
from tests.brokers import LocalBroker
from tests.links.driver import broker_link, owner_of_a_link
from tests.witness import Witness

PREFIX = "edgeward/press-7/"
WITHIN_S = 10.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """One that takes one message at a time, and no telemetry."""
    started = LocalBroker(
        tmp_path_factory.mktemp("broker"),
        settings=("max_inflight_messages 1",),
        acl=("topic readwrite #", f"topic deny {PREFIX}telemetry"),
    ).start()
    yield started
    started.stop()


class Sending:
    """An outbox, its link and what it tells."""

    def __init__(self, folder: Path, url: str, **session: Any) -> None:
        self.folder = folder
        self.troubles: list[AgentError | None] = []
        self.kept_again: list[int] = []
        self.full = False
        self.connected = asyncio.Event()
        owner = owner_of_a_link(state=self._on_state)
        self.link = broker_link(url, owner, prefix=PREFIX, **session)
        self.spools: list[Spool] = []
        self.opened = asyncio.Event()
        self.outbox = Outbox(
            self._open_spool,
            self.link,
            device="press-7",
            boot="b",
            now=lambda: (time.time(), time.monotonic()),
            clock_synced=lambda: True,
            trouble=self.troubles.append,
            kept_again=self.kept_again.append,
        )

    def _open_spool(self) -> Spool:
        if self.full:
            raise NoSpace("the disk is full")
        spool = Spool(Files(), self.folder, 8 << 20, boot="b")
        spool.open()
        self.spools.append(spool)
        self.opened.set()
        return spool

    def _on_state(self, state: Standing) -> None:
        self.outbox.connected(state.phase == "connected")
        if state.phase == "connected":
            self.connected.set()

    def put(self, stream: Stream, number: int, slot: str = "") -> None:
        def make(stamp: Stamp) -> bytes:
            return msgspec.json.encode(
                {"n": number, "slot": slot, "payload": "x" * 200, "stamp": stamp}
            )

        self.outbox.put(stream, make)

    async def sent(self) -> None:
        """Wait until nothing is left to send."""
        while self.outbox._timers.keys() & {"commit", "pump"} or self.outbox._in_flight:
            await asyncio.sleep(0.01)


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 3 * WITHIN_S))


async def stop(sending: Sending, running: asyncio.Task[None]) -> None:
    sending.outbox.hold()
    await sending.link.stop()
    await running
    sending.outbox.close()


def numbers(witness: Witness, count: int) -> list[int]:
    return [json.loads(witness.next(WITHIN_S).payload)["n"] for _ in range(count)]


def test_a_link_without_room_costs_no_document(
    broker: LocalBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "SEND_AGAIN_S", 0.05)
    with Witness(broker.port) as witness:
        witness.subscribe(f"{PREFIX}events")

        async def story() -> None:
            sending = Sending(tmp_path, broker.url, max_queued=1)
            sending.outbox.open()
            for number in range(100):
                sending.put(EVENTS, number)
            running = asyncio.ensure_future(sending.link.run())
            await sending.connected.wait()
            sending.outbox._commit()
            assert sending.outbox._held is not None
            await sending.sent()
            assert sending.spools[0].lost == 0
            await stop(sending, running)

        play(story)
        assert numbers(witness, 100) == list(range(100))


def test_what_the_link_refuses_at_once_needs_no_deeper_stack(
    broker: LocalBroker, tmp_path: Path
) -> None:
    with Witness(broker.port) as witness:
        witness.subscribe(f"{PREFIX}events")

        async def story() -> None:
            sending = Sending(tmp_path, broker.url)
            sending.outbox.open()
            for number in range(900):  # no such topic: each is refused before it is sent
                sending.put(DEAD_LETTER, number, slot="a/+")
            running = asyncio.ensure_future(sending.link.run())
            await sending.connected.wait()
            await sending.sent()
            assert sending.spools[0].lost == 900
            await stop(sending, running)

        play(story)
        gap = json.loads(witness.next().payload)
        assert (gap["kind"], gap["stream"], gap["reason"]) == ("gap", "dead-letter", "refused")


def test_what_the_broker_refuses_becomes_a_gap(broker: LocalBroker, tmp_path: Path) -> None:
    with Witness(broker.port) as witness:
        witness.subscribe(f"{PREFIX}events")

        async def story() -> None:
            sending = Sending(tmp_path, broker.url)
            sending.outbox.open()
            running = asyncio.ensure_future(sending.link.run())
            await sending.connected.wait()
            sending.put(TELEMETRY, 1)
            await sending.sent()
            await stop(sending, running)

        play(story)
        gap = json.loads(witness.next().payload)
        assert (gap["stream"], gap["reason"], gap["count"]) == ("telemetry", "refused", 1)


def test_a_dead_letter_goes_to_the_topic_of_its_slot(broker: LocalBroker, tmp_path: Path) -> None:
    with Witness(broker.port) as witness:
        witness.subscribe(f"{PREFIX}dead-letter/+")

        async def story() -> None:
            sending = Sending(tmp_path, broker.url)
            sending.outbox.open()
            running = asyncio.ensure_future(sending.link.run())
            await sending.connected.wait()
            sending.put(DEAD_LETTER, 1, slot="vib")
            sending.put(DEAD_LETTER, 2, slot="temp")
            await sending.sent()
            await stop(sending, running)

        play(story)
        topics = [witness.next().topic for _ in range(2)]
        assert topics == [f"{PREFIX}dead-letter/vib", f"{PREFIX}dead-letter/temp"]


def test_what_a_stop_leaves_unsent_is_sent_after_the_next_start(
    broker: LocalBroker, tmp_path: Path
) -> None:
    with Witness(broker.port) as witness:
        witness.subscribe(f"{PREFIX}events")

        async def before() -> None:
            sending = Sending(tmp_path, broker.url)
            sending.outbox.open()
            running = asyncio.ensure_future(sending.link.run())
            await sending.connected.wait()
            for number in range(200):
                sending.put(EVENTS, number)
            sending.outbox._commit()  # and some of them are on their way
            assert sending.outbox._in_flight
            await stop(sending, running)
            assert sending.spools[0].lost == 0

        async def after() -> None:
            sending = Sending(tmp_path, broker.url)
            sending.outbox.open()
            running = asyncio.ensure_future(sending.link.run())
            await sending.connected.wait()
            await sending.sent()
            await stop(sending, running)

        play(before)
        play(after)
        received: set[int] = set()
        while len(received) < 200:
            received |= set(numbers(witness, 1))


def test_what_has_waited_for_the_link_says_that_it_is_late(
    broker: LocalBroker, tmp_path: Path
) -> None:
    with Witness(broker.port) as witness:
        witness.subscribe(f"{PREFIX}events")

        async def before() -> None:
            sending = Sending(tmp_path, broker.url)
            sending.outbox.open()
            sending.put(EVENTS, 1)
            sending.outbox.close()

        async def after() -> None:
            sending = Sending(tmp_path, broker.url)
            sending.outbox.open()
            sending.put(EVENTS, 2)
            running = asyncio.ensure_future(sending.link.run())
            await sending.connected.wait()
            sending.put(EVENTS, 3)
            await sending.sent()
            sending.outbox.connected(False)
            sending.put(EVENTS, 4)
            sending.outbox.connected(True)
            sending.put(EVENTS, 5)
            await sending.sent()
            await stop(sending, running)

        play(before)
        play(after)
        documents = [json.loads(witness.next(WITHIN_S).payload) for _ in range(5)]
        late = {one["n"]: one["stamp"].get("historical", False) for one in documents}
        assert late == {1: True, 2: True, 3: False, 4: True, 5: False}


def test_a_mark_of_lateness_changes_nothing_else() -> None:
    text = b'{"schema":1,"stamp":{"seq":7,"mono_ms":12},"big":123456789012345678901,"f":1.50}'
    marked = text.replace(b'"mono_ms":12', b'"mono_ms":12,"historical":true')
    assert as_historical(text) == marked
    assert as_historical(b'{"slot":"a","big":1.50}') == b'{"slot":"a","big":1.50}'


def test_without_a_spool_documents_are_counted_until_there_is_one(
    broker: LocalBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxes, "OPEN_AGAIN_S", 0.05)

    async def story() -> None:
        sending = Sending(tmp_path, broker.url)
        sending.full = True
        sending.outbox.open()
        for number in range(3):
            sending.put(EVENTS, number)
        assert [str(trouble) for trouble in sending.troubles] == ["the disk is full"]
        assert sending.outbox.used_bytes == 0
        sending.full = False
        await sending.opened.wait()
        assert sending.troubles[1:] == [None]
        assert sending.kept_again == [3]
        sending.put(EVENTS, 4)
        assert sending.outbox.used_bytes > 0
        sending.outbox.close()

    play(story)
