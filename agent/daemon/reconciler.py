"""Performs what control decides: save the state, do the action, feed back what came of it.

One consumer takes events in order; each action of a slot runs as one task and ends in exactly one
event. Nothing that an action raises stops the consumer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

import msgspec

from agent.control import events as e
from agent.control.lifecycle import resume, step
from agent.control.state import DeviceState, Phase
from agent.documents.report import Failure
from agent.errors import AgentError, FetchError, ImpossibleEvent, StoreError

log = logging.getLogger(__name__)

SAVE_AGAIN_S = 5.0
CANCEL_AGAIN_S = 10.0
MAX_EVENTS = 1000
MAX_MESSAGE = 1000
MAX_HINT = 500


class Performers(Protocol):
    """The acts. Each returns the fact that it achieved, or raises an `AgentError`."""

    async def fetch(self, action: e.Fetch) -> e.Fetched: ...
    async def verify(self, action: e.Verify) -> e.Verified: ...
    async def qualify(self, action: e.Qualify) -> e.Qualified: ...
    async def switch(self, action: e.Switch) -> e.Switched: ...
    async def watch(self, action: e.Watch) -> e.ProbationPassed: ...
    async def restore(self, action: e.Restore) -> e.Restored: ...
    async def wait(self, action: e.Wait) -> e.RetryDue: ...
    async def stop_slot(self, action: e.StopSlot) -> e.SlotStopped: ...


class Observers(msgspec.Struct, frozen=True):
    """Who is told of each change: after it is saved, before anything is done about it."""

    changed: Callable[[DeviceState, DeviceState, e.Event], None]
    # The state cannot be saved (a full or failed disk), or it can again (None).
    trouble: Callable[[Failure | None], None]


class Reconciler:
    """Owns the device's state. `feed` may be called from anywhere in the loop."""

    def __init__(
        self,
        state: DeviceState,
        save: Callable[[bytes], None],
        performers: Performers,
        observers: Observers,
    ) -> None:
        self.state = state
        self._save = save
        self._performers = performers
        self._observers = observers
        self._events: deque[tuple[e.Event, asyncio.Future[None] | None]] = deque()
        self._wake = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()

    def feed(self, event: e.Event, saved: asyncio.Future[None] | None = None) -> None:
        """Take a fact; it is dealt with in order of arrival. `saved` is as `settle` returns it."""
        if len(self._events) >= MAX_EVENTS and isinstance(event, (e.DesiredArrived, e.CrashLooped)):
            log.error("too many events wait for the disk; dropping %s", type(event).__name__)
            _fail(saved, StoreError("too many events wait for the disk"))
            return
        self._events.append((event, saved))
        self._wake.set()

    def settle(self, event: e.Event) -> asyncio.Future[None]:
        """Take a fact, and tell when it is safe to say that it was taken.

        Returns:
            Done once what the event changed is saved, and before anything is done about it. It has
            a `StoreError` where the event was dropped, and is cancelled by `close`.
        """
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.feed(event, saved)
        return saved

    async def run(self) -> None:
        """Resume what a restart interrupted, then deal with events for ever."""
        for action in resume(self.state):
            self._perform(action)
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._events:
                event, saved = self._events.popleft()
                try:
                    await self._take(event, saved)
                except ImpossibleEvent as error:
                    log.exception("bug: no row for %r; nothing was changed", event)
                    _fail(saved, error)

    async def close(self) -> None:
        """Stop all tasks; their rollouts go on at the next start."""
        for task in (*self._tasks.values(), *self._stopping):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._stopping, return_exceptions=True)
        for _, saved in self._events:
            if saved is not None:
                saved.cancel()

    async def _take(self, event: e.Event, saved: asyncio.Future[None] | None) -> None:
        before = self.state
        after, actions = step(before, event)
        if after is not before:
            await self._save_until_saved(after)
            self.state = after
            _log_transition(before, after, event)
            self._observers.changed(before, after, event)
        if saved is not None and not saved.done():
            saved.set_result(None)
        await self._leave(actions)
        for action in actions:
            self._perform(action)

    async def _save_until_saved(self, state: DeviceState) -> None:
        # Nothing is done that is not saved; meanwhile what serves goes on serving.
        data = msgspec.json.encode(state)
        failed = False
        while True:
            try:
                self._save(data)
            except StoreError as error:
                failed = True
                log.error("state not saved: %s", error)
                self._observers.trouble(failure_of(error))
                await asyncio.sleep(SAVE_AGAIN_S)
                continue
            if failed:
                self._observers.trouble(None)
            return

    async def _leave(self, actions: Iterable[e.Action]) -> None:
        """End the work on every abandoned rollout; none may go on while another still ends."""
        slots = {a.slot for a in actions if isinstance(a, (e.Abandon, e.StopSlot))}
        left = {self._tasks.pop(slot) for slot in slots if slot in self._tasks}
        while left:
            for task in left:
                task.cancel()
            # A cancellation can be lost: `wait_for` of Python 3.10 and 3.11 swallows one that
            # comes together with what it waits for.
            _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)

    def _perform(self, action: e.Action) -> None:
        if isinstance(action, e.Abandon):
            return
        if isinstance(action, e.StopSlot):
            stopping = asyncio.ensure_future(self._stop(action))
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)
            return
        self._tasks[action.slot] = asyncio.ensure_future(self._act(action))

    async def _stop(self, action: e.StopSlot) -> None:
        self.feed(await self._performers.stop_slot(action))

    async def _act(self, action: Any) -> None:
        performers = self._performers
        table: dict[type, Callable[[Any], Coroutine[Any, Any, e.Event]]] = {
            e.Fetch: performers.fetch,
            e.Verify: performers.verify,
            e.Qualify: performers.qualify,
            e.Switch: performers.switch,
            e.Watch: performers.watch,
            e.Restore: performers.restore,
            e.Wait: performers.wait,
        }
        try:
            event = await table[type(action)](action)
        except AgentError as error:
            progressed = isinstance(error, FetchError) and error.progressed
            event = e.StepFailed(action.slot, action.rollout, failure_of(error), progressed)
        except Exception as error:  # a bug in one action must not end the daemon
            log.exception("slot=%s %s failed", action.slot, type(action).__name__)
            text = _printable(f"{type(error).__name__}: {error}", MAX_MESSAGE)
            bug = Failure(code="internal", message=text)
            event = e.StepFailed(action.slot, action.rollout, bug)
        self.feed(event)


def failure_of(error: AgentError) -> Failure:
    """The reported form of an error: bounded, and in characters that print.

    What a source, a broker or a model wrote into an error must not reach a terminal as it is.
    """
    return Failure(
        code=error.code,
        message=_printable(error.message, MAX_MESSAGE),
        hint=_printable(error.hint, MAX_HINT),
        retryable=error.retryable,
    )


def _printable(text: str, limit: int) -> str:
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _fail(saved: asyncio.Future[None] | None, error: Exception) -> None:
    if saved is not None and not saved.done():
        saved.set_exception(error)
        saved.exception()  # whoever fed the event need not look


def _log_transition(before: DeviceState, after: DeviceState, event: e.Event) -> None:
    name = getattr(event, "slot", "")
    old = _phase(before, name)
    new = _phase(after, name)
    failure = getattr(event, "failure", None)
    code = f" code={failure.code} {failure.message}" if failure is not None else ""
    if name:
        log.info("slot=%s %s -> %s%s", name, old, new, code)
    else:
        log.info("deployment=%s%s", after.deployment, code)


def _phase(state: DeviceState, name: str) -> str:
    entry = state.slots.get(name)
    if entry is None:
        return "absent"
    if entry.rollout is not None:
        return Phase(entry.rollout.phase).value
    return entry.outcome.state if entry.outcome is not None else "idle"
