"""Telemetry, events and dead letters on their way out: to disk first, then to the link, in order.

A document is in the spool before it is sent and leaves it once the broker has it, so that neither
a lost link nor a killed agent costs one; what the spool had to give up is told by its gap records.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timezone

from agent.clouds.dialect import Dialect, Publication
from agent.documents.telemetry import Stamp
from agent.errors import LinkError, StoreError
from agent.links.mqtt import MqttLink
from agent.store.messages import Entry, Kind
from agent.store.spool import Pending, Spool

log = logging.getLogger(__name__)

# Documents that may be on their way to the broker at a time.
MAX_IN_FLIGHT = 16
# Documents of one moment share one flush of the disk.
COMMIT_AFTER_S = 0.1
CHECKPOINT_EVERY_S = 5.0

EVENTS, TELEMETRY, DEAD_LETTER = "events", "telemetry", "dead-letter"


class Outbox:
    """Stamps, spools and sends.

    Args:
        now: Wall clock (seconds since 1970) and monotonic seconds.
        clock_synced: Whether the wall clock can be believed.
    """

    def __init__(
        self,
        spool: Spool,
        link: MqttLink,
        dialect: Dialect,
        *,
        device: str,
        boot: str,
        now: Callable[[], tuple[float, float]],
        clock_synced: Callable[[], bool],
    ) -> None:
        self._spool = spool
        self._link = link
        self._dialect = dialect
        self._device = device
        self._boot = boot
        self._now = now
        self._clock_synced = clock_synced
        self._pending: Pending | None = None
        self._in_flight: set[int] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def put(self, stream: str, make: Callable[[Stamp], bytes]) -> None:
        """Stamp a document, keep it, and send it as soon as the link allows.

        Args:
            stream: `events`, `telemetry` or `dead-letter/SLOT`.
            make: Encodes the document around its stamp.
        """
        wall, monotonic = self._now()
        synced = self._clock_synced()
        kind = Kind.TELEMETRY if stream == TELEMETRY else Kind.EVENT
        stamp = Stamp(
            device=self._device,
            stream=stream,
            boot=self._boot,
            seq=self._spool.next_number(stream),
            ts=rfc3339(wall),
            mono_ms=int(monotonic * 1000),
            clock="synced" if synced else "unsynced",
        )
        try:
            self._spool.append(kind, stream, make(stamp), ts_ms=int(wall * 1000), synced=synced)
        except StoreError as error:
            log.error("not kept: one document of %s: %s", stream, error)
            return
        self._later("commit", COMMIT_AFTER_S, self._commit)

    def connected(self, connected: bool) -> None:
        """The link came (back) or went."""
        self._in_flight.clear()
        self._pending = self._spool.pending() if connected else None
        self.pump()

    def pump(self) -> None:
        """Send the oldest documents, a few at a time."""
        while self._pending is not None and len(self._in_flight) < MAX_IN_FLIGHT:
            try:
                entry = self._pending.take()
            except StoreError as error:
                log.error("the spool cannot be read: %s", error)
                return
            if entry is None:
                return
            self._send(entry)

    def _send(self, entry: Entry) -> None:
        publication = self._publication(entry)
        self._in_flight.add(entry.sequence)

        def done(ok: bool, reason: str) -> None:
            if entry.sequence not in self._in_flight:
                return  # the link went meanwhile; the entry comes again
            self._in_flight.discard(entry.sequence)
            if ok:
                self._spool.acknowledge(entry.sequence)
            else:
                log.warning("the broker refused %s: %s", publication.topic, reason)
                self._spool.refuse(entry.sequence, "refused")
            self._later("checkpoint", CHECKPOINT_EVERY_S, self._checkpoint)
            self.pump()

        try:
            self._link.publish(
                publication.topic, publication.payload, qos=publication.qos, on_done=done
            )
        except LinkError as error:
            done(False, str(error))

    def _publication(self, entry: Entry) -> Publication:
        kind, _, slot = entry.stream.partition("/")
        if entry.gap is not None or kind == EVENTS:
            return self._dialect.event(entry.payload)
        if kind == DEAD_LETTER:
            return self._dialect.dead_letter(slot, entry.payload)
        return self._dialect.telemetry(entry.payload)

    def _later(self, name: str, seconds: float, act: Callable[[], None]) -> None:
        if name not in self._timers:
            self._timers[name] = asyncio.get_running_loop().call_later(seconds, act)

    def _commit(self) -> None:
        self._timers.pop("commit", None)
        try:
            self._spool.commit()
        except StoreError as error:
            log.error("some documents were lost: %s", error)
        self.pump()

    def _checkpoint(self) -> None:
        self._timers.pop("checkpoint", None)
        try:
            self._spool.checkpoint()
        except StoreError as error:
            log.error("the spool cannot note what was sent: %s", error)

    def close(self) -> None:
        """Make everything durable; nothing may be put afterwards."""
        for timer in self._timers.values():
            timer.cancel()
        self._pending = None
        try:
            self._spool.close()
        except StoreError as error:
            log.error("the spool was not closed in order: %s", error)


def rfc3339(wall: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(wall, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
