"""Looks at a worker while it owes an answer for unusually long, and says when it hangs."""

from __future__ import annotations

import logging

from msgspec.structs import replace

from agent.control import hangs
from agent.control.hangs import DEADLINE_ONLY, Look, Patience, Watch
from agent.daemon.workers import Worker
from agent.links import process

log = logging.getLogger(__name__)

# A look that comes so much too early is none that has to be made again.
EARLY_S = 0.0005


class Watcher:
    """Watches one worker. It keeps no clock: it is called when `next_look_at` has come."""

    def __init__(self, worker: Worker, patience: Patience) -> None:
        self._worker = worker
        self._patience = _possible(worker.pid, patience)
        # Since when the answer is owed that is being watched for.
        self._since = -1.0
        self._watch: Watch | None = None

    def first_look_s(self, deadline_s: float) -> float:
        """How long a message may be in hand before anything is looked at."""
        return min(deadline_s, self._patience.first_look_s) if self._patience.judges else deadline_s

    def look(self, now: float, since: float, payload_bytes: int, *, cold: bool = False) -> str:
        """Look at the worker; say why it hangs, or nothing.

        Args:
            now: Monotonic seconds.
            since: When it last answered, or was given what it has.
            payload_bytes: Of the largest message that it has.
            cold: It has answered nothing yet.
        """
        if since != self._since:
            self._since, self._watch = since, None
        if not self._patience.judges or now < since + self._patience.first_look_s - EARLY_S:
            return ""
        look = self._look(now)
        if look is None:
            self._watch = None
            return ""
        before = self._watch
        self._watch = hangs.watch(look) if before is None else before.after(look, self._patience)
        return hangs.why_hung(self._watch, self._patience, payload_bytes, cold=cold)

    def next_look_at(self, since: float, deadline_s: float) -> float:
        """When to call `look` again for what is owed since then."""
        last = since + deadline_s
        if self._watch is not None and self._since == since:
            return min(last, self._watch.last.at + self._watch.next_look_s)
        return min(last, since + self.first_look_s(deadline_s))

    def _look(self, now: float) -> Look | None:
        # The stream of a process that has ended is seen to end before its id can be another's.
        if not self._worker.is_connected:
            return None
        pid, last = self._worker.pid, self._watch.last if self._watch is not None else None
        try:
            cpu_s = process.cpu_s(pid)
            moved = last is not None and cpu_s != last.cpu_s
            asleep = self._patience.judges_sleep and not moved and process.is_asleep(pid)
        except OSError:
            return None
        return Look(now, cpu_s, asleep)


def _possible(pid: int, patience: Patience) -> Patience:
    """Return how a worker can be judged on this machine; what it hides leaves the deadline."""
    if not patience.judges:
        return patience
    try:
        process.cpu_s(pid)
    except OSError as error:
        log.info("worker=%s its deadline alone tells when it hangs: %s", pid, error)
        return DEADLINE_ONLY
    try:
        process.is_asleep(pid)
    except OSError as error:
        log.info("worker=%s only its deadline tells when it hangs asleep: %s", pid, error)
        return replace(patience, judges_sleep=False)
    return patience
