"""Telemetry, events and dead letters on their way out: to disk first, then to the link, in order.

A document is in the spool before it is sent and leaves it once the other end has it, so that
neither a lost link nor a killed agent costs one; what the spool had to give up is told by its gap
records. While the disk takes no spool at all, documents are only counted, and the spool is tried
again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import msgspec

from agent.documents.telemetry import Stamp
from agent.errors import AgentError, LinkError, QueueFull, StoreError
from agent.links.api import Link, Stream
from agent.store.messages import Entry, Kind
from agent.store.spool import Pending, Spool

log = logging.getLogger(__name__)

# Documents that may be on their way to the broker at a time.
MAX_IN_FLIGHT = 16
# Documents of one moment share one flush of the disk.
COMMIT_AFTER_S = 0.1
CHECKPOINT_EVERY_S = 5.0
# A flush stops the event loop: on a slow disk it may take this share of the time, not more.
FLUSH_SHARE = 0.1
# One flush that took long must not silence the device.
FLUSH_PAUSE_LAST_S = 5.0
SEND_AGAIN_S = 1.0
OPEN_AGAIN_S = 60.0

EVENTS: Stream = "events"
TELEMETRY: Stream = "telemetry"
DEAD_LETTER: Stream = "dead-letter"
# Deployment outcomes are given up last, whatever the sensors send.
KINDS: dict[Stream, Kind] = {
    EVENTS: Kind.EVENT,
    TELEMETRY: Kind.TELEMETRY,
    DEAD_LETTER: Kind.TELEMETRY,
}
STREAMS: dict[str, Stream] = {stream: stream for stream in KINDS}


class _Addressed(msgspec.Struct, frozen=True):
    """What is read of a dead letter to know whose it is."""

    slot: str = ""


class Outbox:
    """Stamps, spools and sends.

    Args:
        open_spool: Makes and opens a spool; raises `StoreError` while the disk takes none.
        now: Wall clock (seconds since 1970) and monotonic seconds.
        clock_synced: Whether the wall clock can be believed.
        trouble: Told why documents cannot be kept, and None once they can again.
        kept_again: Told how many documents were not kept before a spool was there.
    """

    def __init__(
        self,
        open_spool: Callable[[], Spool],
        link: Link,
        *,
        device: str,
        boot: str,
        now: Callable[[], tuple[float, float]],
        clock_synced: Callable[[], bool],
        trouble: Callable[[AgentError | None], None],
        kept_again: Callable[[int], None],
    ) -> None:
        self._open_spool = open_spool
        self._link = link
        self._device = device
        self._boot = boot
        self._now = now
        self._clock_synced = clock_synced
        self._trouble = trouble
        self._kept_again = kept_again
        self._failing = False
        self._spool: Spool | None = None
        self._pending: Pending | None = None
        # Taken from the spool, and not taken by the link yet.
        self._held: Entry | None = None
        self._connected = False
        # Entries up to this one were made before the link came, and have waited for it.
        self._waited = 0
        self._in_flight: set[int] = set()
        self._pumping = False
        self._ending = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._flush_s = 0.0
        self._not_kept = 0

    @property
    def used_bytes(self) -> int:
        """Room taken on disk."""
        return self._spool.used_bytes if self._spool is not None else 0

    def open(self) -> None:
        """Open the spool, or go on without one and try again later."""
        self._timers.pop("open", None)
        try:
            self._spool = self._open_spool()
        except StoreError as error:
            self._failed("no spool", error)
            self._later("open", OPEN_AGAIN_S, self.open)
            return
        self._pending = self._spool.pending()
        self._waited = self._spool.newest
        self._works()
        count, self._not_kept = self._not_kept, 0
        if count:
            self._kept_again(count)
        self.pump()

    def put(self, stream: Stream, make: Callable[[Stamp], bytes]) -> None:
        """Stamp a document, keep it, and send it as soon as the link allows.

        Args:
            stream: `EVENTS`, `TELEMETRY` or `DEAD_LETTER`.
            make: Encodes the document around its stamp.
        """
        if self._spool is None:
            self._not_kept += 1
            return
        wall, monotonic = self._now()
        synced = self._clock_synced()
        stamp = Stamp(
            device=self._device,
            stream=stream,
            boot=self._boot,
            seq=self._spool.next_number(stream),
            ts=rfc3339(wall),
            mono_ms=int(monotonic * 1000),
            clock="synced" if synced else "unsynced",
        )
        ts_ms = int(wall * 1000)
        try:
            self._spool.append(KINDS[stream], stream, make(stamp), ts_ms=ts_ms, synced=synced)
        except StoreError as error:
            self._failed(f"a document of {stream} is lost", error)
            return
        self._later("commit", self._flush_after(COMMIT_AFTER_S), self._commit)

    def connected(self, connected: bool) -> None:
        """The link came (back) or went. What it has taken it brings to the broker by itself."""
        came, self._connected = connected and not self._connected, connected
        if came and self._spool is not None:
            self._waited = self._spool.newest
        if connected:
            self.pump()

    def hold(self) -> None:
        """Send nothing more; what the broker has not taken is sent after the next start."""
        self._ending = True

    def pump(self) -> None:
        """Send the oldest documents, a few at a time."""
        if self._pumping:
            return  # the link answered at once; the loop below goes on
        self._pumping = True
        try:
            while self._may_send():
                entry = self._held or self._take()
                if entry is None:
                    return
                self._held = None if self._send(entry) else entry
        finally:
            self._pumping = False

    def _may_send(self) -> bool:
        return (
            not self._ending
            and len(self._in_flight) < MAX_IN_FLIGHT
            and "pump" not in self._timers
            and self._link.state.phase == "connected"
        )

    def _take(self) -> Entry | None:
        try:
            return self._pending.take() if self._pending is not None else None
        except StoreError as error:
            self._failed("the spool cannot be read", error)
            self._later("pump", SEND_AGAIN_S, self._pump_again)
            return None

    def _send(self, entry: Entry) -> bool:
        """Hand an entry to the link; False where that has no room at this moment."""
        stream, payload, slot = self._addressed(entry)
        self._in_flight.add(entry.sequence)

        def done(ok: bool, reason: str) -> None:
            self._done(entry, ok, f"{stream}: {reason}")

        try:
            self._link.send(stream, payload, done, slot=slot)
        except QueueFull:
            self._in_flight.discard(entry.sequence)
            self._later("pump", SEND_AGAIN_S, self._pump_again)
            return False
        except LinkError as error:
            done(False, str(error))
        return True

    def _done(self, entry: Entry, ok: bool, reason: str) -> None:
        self._in_flight.discard(entry.sequence)
        if self._spool is None or (self._ending and not ok):
            return  # the link was stopped; the entry comes again
        if ok:
            self._spool.acknowledge(entry.sequence)
        else:
            log.warning("the link refused a document of %s", reason)
            self._spool.refuse(entry.sequence, "refused")
        self._later("checkpoint", self._flush_after(CHECKPOINT_EVERY_S), self._checkpoint)
        self._pump_again()

    def _addressed(self, entry: Entry) -> tuple[Stream, bytes, str]:
        """The stream of an entry, its document, and the slot of a dead letter."""
        if entry.gap is not None:
            return EVENTS, entry.payload, ""
        late = entry.sequence <= self._waited
        payload = as_historical(entry.payload) if late else entry.payload
        stream = STREAMS.get(entry.stream.partition("/")[0], TELEMETRY)
        if stream != DEAD_LETTER:
            return stream, payload, ""
        return stream, payload, msgspec.json.decode(payload, type=_Addressed).slot

    # -- the disk -------------------------------------------------------------------------------

    def _later(self, name: str, seconds: float, act: Callable[[], None]) -> None:
        if name not in self._timers and not self._ending:
            self._timers[name] = asyncio.get_running_loop().call_later(seconds, act)

    def _pump_again(self) -> None:
        timer = self._timers.pop("pump", None)
        if timer is not None:
            timer.cancel()
        self.pump()

    def _flush_after(self, seconds: float) -> float:
        return max(seconds, min(FLUSH_PAUSE_LAST_S, self._flush_s / FLUSH_SHARE))

    def _flush(self, name: str, flush: Callable[[], None], failed: str) -> None:
        self._timers.pop(name, None)
        started = self._now()[1]
        try:
            flush()
        except StoreError as error:
            self._failed(failed, error)
        else:
            self._works()
        self._flush_s = self._now()[1] - started

    def _commit(self) -> None:
        assert self._spool is not None
        self._flush("commit", self._spool.commit, "some documents are lost")
        self.pump()

    def _checkpoint(self) -> None:
        assert self._spool is not None
        self._flush("checkpoint", self._spool.checkpoint, "what was sent cannot be noted")

    def _failed(self, what: str, error: AgentError) -> None:
        if not self._failing:  # a full disk is one line, not one for each document
            log.error("%s: %s", what, error)
        self._failing = True
        self._trouble(error)

    def _works(self) -> None:
        if self._failing:
            log.info("documents are kept again")
            self._failing = False
            self._trouble(None)

    def close(self) -> None:
        """Make everything durable; nothing may be put afterwards."""
        self.hold()
        for timer in self._timers.values():
            timer.cancel()
        spool, self._spool = self._spool, None
        if spool is None:
            return
        try:
            spool.close()
        except StoreError as error:
            log.error("the spool was not closed in order: %s", error)


def as_historical(payload: bytes) -> bytes:
    """Return a document whose stamp says that it comes late; one without a stamp as it is."""
    document = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
    if "stamp" not in document:
        return payload
    stamp = msgspec.json.decode(document["stamp"], type=dict[str, Any])
    stamp["historical"] = True
    return msgspec.json.encode({**document, "stamp": stamp})


def rfc3339(wall: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(wall, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
