"""What every kind of link promises. A new one joins by a line in `OTHER_ENDS`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from agent.documents.deployment import MAX_DEPLOYMENT_BYTES
from agent.errors import QueueFull
from agent.links.api import Link, Owner, Stream
from agent.links.file_link import FileLink, Pace
from agent.links.registry import KINDS
from agent.store.files import Files
from tests.brokers import LocalBroker, need
from tests.links.driver import broker_link
from tests.links.heard import WITHIN_S, Heard
from tests.witness import Witness

PREFIX = "edgeward/press-7/"
STREAMS: tuple[Stream, ...] = ("events", "telemetry", "dead-letter")


class OtherEnd(Protocol):
    """A console, as far as a story about a link needs one. Each method may block."""

    def link(self, owner: Owner) -> Link:
        """A link to this end, that takes no longer than it must."""

    def want(self, document: bytes) -> None:
        """Make this what is desired."""

    def take_away(self) -> None:
        """Have nothing desired any more."""

    def reported(self) -> bytes:
        """The report that is shown."""

    def documents(self, stream: Stream, count: int) -> list[bytes]:
        """What came in a stream, at least so many."""

    def presence(self) -> str:
        """`online` or `offline`."""

    def leave(self) -> None:
        """Be unreachable."""

    def come_back(self) -> None: ...

    def close(self) -> None: ...


class Broker:
    """A broker, its retained messages, and a witness of everything else."""

    def __init__(self, folder: Path) -> None:
        need("sessions", "mqtt5")
        self.broker = LocalBroker(folder, persistent=True).start()
        self._came: dict[str, list[bytes]] = {}
        self._witness = self._listen()

    def _listen(self) -> Witness:
        witness = Witness(self.broker.port, "console")
        for topic in ("events", "telemetry", "dead-letter/+"):
            witness.subscribe(PREFIX + topic)
        return witness

    def link(self, owner: Owner) -> Link:
        return broker_link(self.broker.url, owner, prefix=PREFIX)

    def want(self, document: bytes) -> None:
        self._witness.publish(f"{PREFIX}desired", document, retain=True)

    def take_away(self) -> None:
        self.want(b"")

    def _shown(self, topic: str) -> bytes:
        with Witness(self.broker.port, "reader") as reader:
            reader.subscribe(PREFIX + topic)
            return bytes(reader.next().payload)

    def reported(self) -> bytes:
        return self._shown("reported")

    def presence(self) -> str:
        return self._shown("status").decode()

    def documents(self, stream: Stream, count: int) -> list[bytes]:
        while len(self._came.get(stream, ())) < count:
            message = self._witness.next(WITHIN_S)
            kind = message.topic.removeprefix(PREFIX).partition("/")[0]
            self._came.setdefault(kind, []).append(bytes(message.payload))
        return self._came.get(stream, [])

    def leave(self) -> None:
        self._witness.__exit__()
        self.broker.stop()

    def come_back(self) -> None:
        self.broker.start()
        self._witness = self._listen()

    def close(self) -> None:
        self._witness.__exit__()
        self.broker.stop()


class Folder:
    """A folder, as a stick that somebody pulls out."""

    PACE = Pace(look=0.02, settle=0.01, patience=0.05, report=0.0, lines=0.0, retry=0.02)

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "stick"
        self._folder.mkdir()

    def link(self, owner: Owner) -> Link:
        return FileLink(
            owner,
            Files(),
            device="press-7",
            folder=self._folder,
            report_folder=self._folder,
            lines_bytes=1 << 20,
            pace=self.PACE,
        )

    def want(self, document: bytes) -> None:
        fresh = self._folder / "desired.json.new"
        fresh.write_bytes(document)
        fresh.replace(self._folder / "desired.json")

    def take_away(self) -> None:
        (self._folder / "desired.json").unlink()

    def reported(self) -> bytes:
        return (self._folder / "reported.json").read_bytes()

    def documents(self, stream: Stream, count: int) -> list[bytes]:
        return (self._folder / f"{stream}.jsonl").read_bytes().splitlines()

    def presence(self) -> str:
        shown: str = json.loads((self._folder / "status.json").read_bytes())["status"]
        return shown

    def leave(self) -> None:
        self._folder.rename(self._folder.with_name("in a pocket"))

    def come_back(self) -> None:
        self._folder.with_name("in a pocket").rename(self._folder)

    def close(self) -> None:
        """Nothing runs."""


OTHER_ENDS: dict[str, Callable[[Path], OtherEnd]] = {"file": Folder, "mqtt": Broker}


@pytest.fixture(params=OTHER_ENDS)
def end(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OtherEnd]:
    made = OTHER_ENDS[request.param](tmp_path)
    yield made
    made.close()


@asynccontextmanager
async def linked(end: OtherEnd, *, disk_fails: bool = False) -> AsyncIterator[tuple[Link, Heard]]:
    """A link that is connected, and ended afterwards."""
    heard = Heard(disk_fails)
    link = end.link(heard.owner)
    running = asyncio.ensure_future(link.run())
    try:
        await heard.phase("connected")
        yield link, heard
    finally:
        await asyncio.wait_for(link.stop(), WITHIN_S)
        await asyncio.wait_for(running, WITHIN_S)


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 3 * WITHIN_S))


def document(number: int, size: int = 0) -> bytes:
    return b'{"n":%d,"padding":"%s"}' % (number, b"x" * size)


async def apart(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the other end does takes its time, and must not stop the link's loop."""
    return await asyncio.to_thread(call, *arguments)


def test_every_kind_of_link_is_held_to_this() -> None:
    assert set(OTHER_ENDS) == set(KINDS)


def test_what_was_desired_before_and_what_is_desired_later_both_come(end: OtherEnd) -> None:
    async def story() -> None:
        await apart(end.want, document(1))
        async with linked(end) as (_, heard):
            await heard.until(lambda: heard.desired == [document(1)])
            await apart(end.want, document(2))
            await heard.until(lambda: heard.desired[-1] == document(2))

    play(story)


def test_the_newest_of_several_changes_comes_last(end: OtherEnd) -> None:
    async def story() -> None:
        async with linked(end) as (_, heard):
            for number in range(20):
                await apart(end.want, document(number))
            await heard.until(lambda: heard.desired and heard.desired[-1] == document(19))
            told = [json.loads(each)["n"] for each in heard.desired]
            assert told == sorted(told)

    play(story)


def test_what_changed_while_the_other_end_was_away_comes_when_it_is_back(end: OtherEnd) -> None:
    async def story() -> None:
        async with linked(end) as (_, heard):
            await apart(end.leave)
            assert (await heard.phase("waiting")).last_error
            await apart(end.come_back)
            await apart(end.want, document(7))
            await heard.until(lambda: document(7) in heard.desired)
            await heard.phase("connected")
            assert heard.states[-1].last_error is None

    play(story)


def test_a_document_that_was_taken_away_is_told_as_nothing(end: OtherEnd) -> None:
    async def story() -> None:
        await apart(end.want, document(1))
        async with linked(end) as (_, heard):
            await heard.until(lambda: heard.desired == [document(1)])
            await apart(end.take_away)
            await heard.until(lambda: heard.desired == [document(1), b""])

    play(story)


def test_what_could_not_be_saved_comes_again(end: OtherEnd) -> None:
    async def story() -> None:
        await apart(end.want, document(1))
        async with linked(end, disk_fails=True) as (_, heard):
            await heard.until(lambda: heard.desired)
            # Some other ends offer it again only to a new connection.
            await apart(end.leave)
            known, heard.disk_fails = len(heard.desired), False
            await apart(end.come_back)
            await heard.until(lambda: heard.desired[known:] == [document(1)])

    play(story)


def test_a_deployment_of_any_size_does_no_harm_and_the_next_one_comes(end: OtherEnd) -> None:
    async def story() -> None:
        async with linked(end) as (_, heard):
            await apart(end.want, document(1, 3 << 20))
            await heard.until(lambda: heard.thrown_away or heard.troubles)
            told = heard.thrown_away[-1] if heard.thrown_away else heard.troubles[-1]
            assert "bytes" in str(told)
            await apart(end.want, document(2, MAX_DEPLOYMENT_BYTES // 2))
            await heard.until(lambda: len(heard.desired) == 1)
            assert heard.desired == [document(2, MAX_DEPLOYMENT_BYTES // 2)]

    play(story)


def test_a_report_is_done_once_it_is_shown_and_a_newer_one_takes_its_place(end: OtherEnd) -> None:
    async def story() -> None:
        async with linked(end) as (link, heard):
            for number in range(10):
                link.report(document(number), heard.on_done(number))
            await heard.until(lambda: len(heard.done) == 10)
            assert heard.done == [(number, True, "") for number in range(10)]
            assert await apart(end.reported) == document(9)

    play(story)


@pytest.mark.parametrize("stream", STREAMS)
def test_documents_arrive_in_order_and_are_done_in_order(end: OtherEnd, stream: Stream) -> None:
    async def story() -> None:
        async with linked(end) as (link, heard):
            for number in range(40):
                link.send(stream, document(number), heard.on_done(number), slot="vib")
            await heard.until(lambda: len(heard.done) == 40)
            assert heard.done == [(number, True, "") for number in range(40)]
            assert await apart(end.documents, stream, 40) == [document(n) for n in range(40)]

    play(story)


def test_what_was_taken_while_the_other_end_was_away_reaches_it_later(end: OtherEnd) -> None:
    async def story() -> None:
        async with linked(end) as (link, heard):
            await apart(end.leave)
            await heard.phase("waiting")
            link.report(document(0), heard.on_done("report"))
            for number in range(10):
                link.send("events", document(number), heard.on_done(number))
            assert heard.done == []
            await apart(end.come_back)
            await heard.until(lambda: len(heard.done) == 11)
            assert all(ok for _, ok, _ in heard.done)
            assert await apart(end.reported) == document(0)

    play(story)


def test_what_a_link_holds_is_bounded(end: OtherEnd) -> None:
    async def story() -> None:
        async with linked(end) as (link, heard):
            await apart(end.leave)
            await heard.phase("waiting")
            with pytest.raises(QueueFull):
                for number in range(100_000):
                    link.send("events", document(number), heard.on_done(number))
            await apart(end.come_back)
            await heard.phase("connected")

    play(story)


def test_it_can_be_seen_that_the_agent_is_there_and_that_it_left(end: OtherEnd) -> None:
    async def story() -> None:
        async with linked(end):
            assert await apart(end.presence) == "online"
        assert await apart(end.presence) == "offline"

    play(story)


def test_a_link_that_is_stopped_is_done_with_everything(end: OtherEnd) -> None:
    async def story() -> None:
        heard = Heard()
        link = end.link(heard.owner)
        running = asyncio.ensure_future(link.run())
        await heard.phase("connected")
        await apart(end.leave)
        await heard.phase("waiting")
        link.report(document(1), heard.on_done("report"))
        link.send("events", document(2), heard.on_done("event"))
        await asyncio.wait_for(link.stop(), WITHIN_S)
        await asyncio.wait_for(running, WITHIN_S)
        assert sorted((what, ok) for what, ok, _ in heard.done) == [
            ("event", False),
            ("report", False),
        ]
        assert all(reason for *_, reason in heard.done)
        assert link.state.phase == "stopped"
        await apart(end.come_back)

    play(story)


def test_a_link_that_never_ran_can_be_stopped(end: OtherEnd) -> None:
    async def story() -> None:
        heard = Heard()
        link = end.link(heard.owner)
        assert link.state.phase == "stopped"
        await asyncio.wait_for(link.stop(), WITHIN_S)

    play(story)


def test_an_end_that_is_away_from_the_start_is_waited_for(end: OtherEnd) -> None:
    async def story() -> None:
        await apart(end.leave)
        heard = Heard()
        link = end.link(heard.owner)
        running = asyncio.ensure_future(link.run())
        assert (await heard.phase("waiting")).last_error
        await apart(end.come_back)
        await heard.phase("connected")
        await asyncio.wait_for(link.stop(), WITHIN_S)
        await asyncio.wait_for(running, WITHIN_S)

    play(story)
