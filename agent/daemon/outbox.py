"""Telemetry, events and dead letters on their way out: to disk first, then to the link, in order.

A document is in the spool before it is sent and leaves it once the broker has it, so that neither
a lost link nor a killed agent costs one; what the spool had to drop is told by its gap records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Literal

from agent.clouds.dialect import Dialect, Publication
from agent.documents.telemetry import Stamp
from agent.errors import LinkError, StoreError
from agent.links.mqtt import MqttLink
from agent.store.spool import Record, Spool

log = logging.getLogger(__name__)

# Documents that may be on their way to the broker at a time.
MAX_IN_FLIGHT = 16

Kind = Literal["events", "telemetry", "dead-letter"]


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
        self._connected = False
        self._in_flight: dict[int, Record] = {}

    def put(self, kind: Kind, stream: str, make: Callable[[Stamp], bytes]) -> None:
        """Stamp a document, keep it, and send it as soon as the link allows."""
        wall, monotonic = self._now()
        try:
            sequence = self._spool.next_sequence(stream)
            stamp = Stamp(
                device=self._device,
                stream=stream,
                boot=self._boot,
                seq=sequence,
                ts=rfc3339(wall),
                mono_ms=int(monotonic * 1000),
                clock="synced" if self._clock_synced() else "unsynced",
            )
            self._spool.append(kind, stream, sequence, make(stamp), ts=wall)
        except StoreError as error:
            log.error("not kept: one document of %s: %s", stream, error)
            return
        self.pump()

    def connected(self, connected: bool) -> None:
        """The link came (back) or went."""
        self._connected = connected
        self._in_flight.clear()
        self.pump()

    def pump(self) -> None:
        """Send the oldest documents, a few at a time."""
        if not self._connected:
            return
        for record in self._spool.pending(limit=MAX_IN_FLIGHT):
            if len(self._in_flight) >= MAX_IN_FLIGHT:
                return
            if record.position not in self._in_flight:
                self._send(record)

    def _send(self, record: Record) -> None:
        publication = self._publication(record)
        self._in_flight[record.position] = record

        def done(ok: bool, reason: str) -> None:
            if self._in_flight.pop(record.position, None) is None:
                return
            if ok or self._connected:
                if not ok:
                    log.warning("the broker refused %s: %s", publication.topic, reason)
                self._spool.acknowledge(record.position, refused=not ok)
            self.pump()

        try:
            self._link.publish(
                publication.topic, publication.payload, qos=publication.qos, on_done=done
            )
        except LinkError as error:
            done(False, str(error))

    def _publication(self, record: Record) -> Publication:
        kind, _, rest = record.stream.partition("/")
        if kind == "dead-letter":
            return self._dialect.dead_letter(rest, record.payload)
        if kind == "telemetry":
            return self._dialect.telemetry(record.payload)
        return self._dialect.event(record.payload)


def rfc3339(wall: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(wall, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
