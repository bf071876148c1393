"""When which fetch may run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from agent.control.traffic import METERED_KIB_S, PATIENCE_S
from agent.daemon.fetch_turns import Entry, Turns
from agent.documents.settings import FetchSettings
from agent.errors import FetchError, FetchPostponed


class World:
    """A clock of its own, and fetches that run until they are told to end."""

    def __init__(self, **settings: Any) -> None:
        self.seconds = 0.0
        # Local time is what the machine of the test makes of it: only differences count here.
        self.wall = 1_800_000_000.0
        self.turns = Turns(
            FetchSettings(**settings), wall=lambda: self.wall, now=lambda: self.seconds
        )
        self.running: dict[str, int] = {}
        self.starts: list[tuple[str, int]] = []
        self.changed = asyncio.Event()

    def work(self, name: str, release: asyncio.Event) -> Callable[[int], Awaitable[None]]:
        async def work(kib_s: int) -> None:
            self.running[name] = kib_s
            self.starts.append((name, kib_s))
            self.changed.set()
            try:
                await release.wait()
            finally:
                del self.running[name]
                self.changed.set()

        return work

    async def until(self, running: dict[str, int]) -> None:
        while self.running != running:
            self.changed.clear()
            await self.changed.wait()


async def fetching(
    world: World, name: str, release: asyncio.Event, scheme: str = "https", urgent: bool = False
) -> None:
    with world.turns.entered(scheme) as entry:
        entry.urgent = urgent
        await world.turns.run(entry, world.work(name, release))


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, timeout=20))


def test_what_a_slot_waits_for_that_serves_nothing_overtakes_and_the_other_goes_on() -> None:
    async def story() -> None:
        world, first, second = World(), asyncio.Event(), asyncio.Event()
        patient = asyncio.ensure_future(fetching(world, "patient", first))
        await world.until({"patient": 0})
        urgent = asyncio.ensure_future(fetching(world, "urgent", second, urgent=True))
        await world.until({"urgent": 0})
        second.set()
        await urgent
        await world.until({"patient": 0})
        first.set()
        await patient
        assert world.starts == [("patient", 0), ("urgent", 0), ("patient", 0)]

    run(story())


def test_no_fetch_waits_for_ever_behind_a_slow_one() -> None:
    async def story() -> None:
        world, release = World(), asyncio.Event()
        urgent = asyncio.ensure_future(fetching(world, "urgent", release, urgent=True))
        patient = asyncio.ensure_future(fetching(world, "patient", release))
        await world.until({"urgent": 0})
        world.seconds += PATIENCE_S
        world.turns.look()
        await world.until({"urgent": 0, "patient": 0})
        release.set()
        await asyncio.gather(urgent, patient)

    run(story())


def test_a_medium_of_this_machine_needs_no_turn_and_no_window() -> None:
    async def story() -> None:
        world = World(window="00:00-00:01", metered="refuse", max_kib_s=5)
        world.turns.metered(True)
        release = asyncio.Event()
        local = asyncio.ensure_future(fetching(world, "stick", release, scheme="file"))
        await world.until({"stick": 0})
        release.set()
        await local

    run(story())


def test_fetches_share_the_limit_and_one_that_is_left_gets_it_all() -> None:
    async def story() -> None:
        world, first, second = World(max_kib_s=100), asyncio.Event(), asyncio.Event()
        one = asyncio.ensure_future(fetching(world, "one", first))
        await world.until({"one": 100})
        two = asyncio.ensure_future(fetching(world, "two", second))
        await world.until({"one": 50, "two": 50})
        first.set()
        await one
        await world.until({"two": 100})
        second.set()
        await two

    run(story())


def test_a_connection_that_becomes_metered_stops_what_runs() -> None:
    async def story() -> None:
        world, release = World(metered="refuse"), asyncio.Event()
        one = asyncio.ensure_future(fetching(world, "one", release))
        await world.until({"one": 0})
        world.turns.metered(True)
        with pytest.raises(FetchPostponed, match="metered"):
            await one
        assert world.running == {}
        with pytest.raises(FetchPostponed):
            await fetching(world, "blocks", release, scheme="mqtt")
        world.turns.metered(False)
        release.set()
        await fetching(world, "one", release)

    run(story())


def test_a_metered_connection_may_be_used_slowly() -> None:
    async def story() -> None:
        world, release = World(metered="slow"), asyncio.Event()
        one = asyncio.ensure_future(fetching(world, "one", release))
        await world.until({"one": 0})
        world.turns.metered(True)
        await world.until({"one": METERED_KIB_S})
        release.set()
        await one

    run(story())


def test_a_window_ends_what_runs_and_an_unset_clock_knows_none() -> None:
    async def story() -> None:
        import time

        world, release = World(), asyncio.Event()
        hour = time.localtime(world.wall).tm_hour
        window = f"{hour:02}:00-{(hour + 1) % 24:02}:00"
        world.turns = Turns(
            FetchSettings(window=window), wall=lambda: world.wall, now=lambda: world.seconds
        )
        one = asyncio.ensure_future(fetching(world, "one", release))
        await world.until({"one": 0})
        world.wall += 2 * 3600
        world.turns.look()
        with pytest.raises(FetchPostponed, match=window):
            await one
        world.wall = 3600.0
        release.set()
        await fetching(world, "one", release)

    run(story())


def test_errors_and_cancellations_of_the_work_come_through() -> None:
    async def story() -> None:
        world, release = World(), asyncio.Event()

        async def fails(kib_s: int) -> None:
            raise FetchError("no")

        with world.turns.entered("https") as entry, pytest.raises(FetchError, match="no"):
            await world.turns.run(entry, fails)
        one = asyncio.ensure_future(fetching(world, "one", release))
        await world.until({"one": 0})
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        assert world.running == {}

    run(story())


def test_work_that_ends_late_is_waited_for_also_when_cancelled_twice() -> None:
    async def story() -> None:
        world, ended = World(), asyncio.Event()
        begun, let_go = asyncio.Event(), asyncio.Event()

        async def slow_to_end(kib_s: int) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await let_go.wait()
                ended.set()

        async def one() -> None:
            with world.turns.entered("https") as entry:
                assert isinstance(entry, Entry)
                await world.turns.run(entry, slow_to_end)

        task = asyncio.ensure_future(one())
        await begun.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    run(story())
