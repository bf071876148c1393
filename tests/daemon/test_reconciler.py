"""The reconciler saves before it acts, tells when it has saved, and ends what was left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.control import events as e
from agent.control.state import DeviceState
from agent.daemon.reconciler import MAX_EVENTS, Observers, Reconciler, failure_of
from agent.documents.choice import Choice, Way
from agent.documents.deployment import Deployment, Input, Output, Slot
from agent.errors import DocumentError, FetchError, NoSpace, StoreError

A, B = (f"sha256:{letter * 64}" for letter in "ab")


def desired(name: str, **packs: str) -> e.DesiredArrived:
    slots = {
        slot: Slot(pack=pack, input=Input(f"{slot}/+"), output=Output("out/{1}"), source="mqtt:")
        for slot, pack in packs.items()
    }
    return e.DesiredArrived(Deployment(schema=1, deployment=name, slots=slots), digest=name)


async def nothing() -> None:
    return


async def never() -> None:
    await asyncio.Event().wait()


@dataclass
class Acts:
    """Performers that succeed at once, except where a test says how an act goes."""

    how: dict[tuple[str, str], Callable[[], Awaitable[None]]] = field(default_factory=dict)
    begun: list[tuple[str, str]] = field(default_factory=list)
    serving: dict[str, str] = field(default_factory=dict)

    async def _go(self, kind: str, slot: str) -> None:
        self.begun.append((kind, slot))
        await self.how.get((kind, slot), nothing)()

    async def fetch(self, action: e.Fetch) -> e.Fetched:
        await self._go(f"fetch {action.target.pack[7]}", action.slot)
        return e.Fetched(action.slot, action.rollout)

    async def verify(self, action: e.Verify) -> e.Verified:
        return e.Verified(action.slot, action.rollout)

    async def qualify(self, action: e.Qualify) -> e.Qualified:
        return e.Qualified(action.slot, action.rollout, Choice(Way("main", "onnx")))

    async def switch(self, action: e.Switch) -> e.Switched:
        await self._go(f"switch {action.target.pack[7]}", action.slot)
        self.serving[action.slot] = action.target.pack
        return e.Switched(action.slot, action.rollout)

    async def watch(self, action: e.Watch) -> e.ProbationPassed:
        return e.ProbationPassed(action.slot, action.rollout)

    async def restore(self, action: e.Restore) -> e.Restored:
        self.serving[action.slot] = action.target.pack
        return e.Restored(action.slot, action.rollout)

    async def wait(self, action: e.Wait) -> e.RetryDue:
        await never()
        raise AssertionError

    async def stop_slot(self, action: e.StopSlot) -> e.SlotStopped:
        self.serving.pop(action.slot, None)
        return e.SlotStopped(action.slot)


@dataclass
class Bench:
    """A reconciler whose every saved change can be waited for."""

    acts: Acts = field(default_factory=Acts)
    save: Callable[[bytes], None] = lambda data: None

    def __post_init__(self) -> None:
        self._changed = asyncio.Event()
        self.reconciler = Reconciler(
            DeviceState(),
            lambda data: self.save(data),
            self.acts,
            Observers(changed=lambda *_: self._changed.set(), trouble=lambda failure: None),
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        async def there() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(there(), 5)

    def is_active(self, name: str, pack: str) -> bool:
        entry = self.reconciler.state.slots.get(name)
        ended = entry is not None and entry.rollout is None and entry.outcome is not None
        return bool(ended and entry and entry.serving and entry.serving.pack == pack)


def with_bench(story: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        bench = Bench()
        running = asyncio.ensure_future(bench.reconciler.run())
        try:
            await story(bench)
        finally:
            await bench.reconciler.close()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_an_event_is_settled_only_once_its_state_is_saved() -> None:
    async def story(bench: Bench) -> None:
        saved: list[bytes] = []
        bench.save = saved.append
        settled = bench.reconciler.settle(desired("one", vib=A))
        assert saved == []
        await asyncio.wait_for(settled, 5)
        assert b'"deployment":"one"' in saved[0]

    with_bench(story)


def test_an_event_is_not_settled_while_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(bench: Bench) -> None:
        full = True
        refused = asyncio.Event()

        def save(data: bytes) -> None:
            if full:
                refused.set()
                raise NoSpace("the disk is full")

        bench.save = save
        settled = bench.reconciler.settle(desired("one", vib=A))
        await asyncio.wait_for(refused.wait(), 5)
        assert not settled.done()
        assert bench.acts.begun == []
        full = False
        await asyncio.wait_for(settled, 5)

    monkeypatch.setattr("agent.daemon.reconciler.SAVE_AGAIN_S", 0.01)
    with_bench(story)


def test_an_event_that_changes_nothing_is_settled_and_one_that_is_dropped_says_so() -> None:
    async def story(bench: Bench) -> None:
        await asyncio.wait_for(bench.reconciler.settle(e.Fetched("vib", 7)), 5)
        fed = [bench.reconciler.settle(desired(str(n))) for n in range(MAX_EVENTS + 1)]
        with pytest.raises(StoreError, match="too many events"):
            await fed[-1]

    with_bench(story)


def test_every_slot_that_is_left_is_cancelled_before_any_is_waited_for() -> None:
    """A slow end of one slot's fetch leaves no time in which another slot's switch completes."""

    async def story(bench: Bench) -> None:
        slow_end, at_the_switch = asyncio.Event(), asyncio.Event()

        async def ends_slowly() -> None:
            try:
                await never()
            finally:
                await slow_end.wait()

        async def switches_soon() -> None:
            at_the_switch.set()
            await never()

        async def ended() -> None:
            await bench.until(lambda: bench.is_active("vib", A))

        bench.reconciler.feed(desired("one", vib=A))
        await ended()
        bench.acts.how = {
            ("fetch b", "cam"): ends_slowly,
            ("switch b", "vib"): switches_soon,
        }
        bench.reconciler.feed(desired("two", cam=B, vib=B))
        await asyncio.wait_for(at_the_switch.wait(), 5)
        switching = bench.reconciler._tasks["vib"]
        bench.reconciler.feed(desired("three", cam=A, vib=A))
        await asyncio.wait_for(asyncio.wait((switching,)), 5)
        assert switching.cancelled()
        slow_end.set()
        await ended()
        assert bench.acts.serving["vib"] == A

    with_bench(story)


def test_a_lost_cancellation_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(bench: Bench) -> None:
        async def swallows_one() -> None:
            try:
                await never()
            except asyncio.CancelledError:
                await never()

        bench.acts.how = {("fetch b", "vib"): swallows_one}
        bench.reconciler.feed(desired("one", vib=B))
        await bench.until(lambda: "vib" in bench.reconciler.state.slots)
        bench.reconciler.feed(desired("two", vib=A))
        await bench.until(lambda: bench.is_active("vib", A))

    monkeypatch.setattr("agent.daemon.reconciler.CANCEL_AGAIN_S", 0.01)
    with_bench(story)


def test_a_reported_failure_is_bounded_and_prints() -> None:
    failure = failure_of(FetchError("\x1b[2J" + "m" * 5000 + "\n", hint="h\r\n" * 5000))
    assert len(failure.message) == 1000
    assert failure.message.startswith("\\x1b[2Jmmm")
    assert len(failure.hint) == 500
    assert failure.hint.startswith("h\\r\\nh")
    assert failure_of(DocumentError("a", "b", "c\ud800")).message.isprintable()
    assert failure_of(FetchError("as it is: µs")).message == "as it is: µs"
