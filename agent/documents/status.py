"""The status: what `edgeward status --json` prints, and what the command `status` answers."""

from __future__ import annotations

import msgspec

from agent.documents.report import Report, SlotReport


class LinkStatus(msgspec.Struct, frozen=True):
    """Where a connection stands.

    Attributes:
        state: `connected`; `connecting`; `waiting` or `refused` before another attempt; `stopped`.
            From afar, where the device does not answer: what its topic `status` says.
        error: Why it is not connected.
    """

    state: str
    error: str = ""


class SlotStatus(SlotReport, frozen=True, omit_defaults=True, kw_only=True):
    """One slot, as in the report. The rest is there where the slot serves.

    Attributes:
        received, unrouted, predictions, absorbed, rejected, sent, unsent, dropped, skipped,
            redelivered, retried, dead_letters, bad_outputs, acknowledged_early, worker_restarts,
            state_lost: Counters since the agent's start, as in telemetry.
        waiting, in_flight, held: Messages now, as there.
        bus: Where the slot's connection for sensor messages and predictions stands.
        worker_pid: The process that holds the model; null while there is none.
        owner_pid: The process that runs it on a device which slots share; absent where there is
            none.
        owner_memory_bytes: Resident memory of that process, for all its slots together.
        latency_ms: `p50`, `p95` and `p99` from arrival to answer, since the last telemetry
            document; null where there was no message.
        policy: What the slot's policy does at present; absent: nothing.
    """

    received: int = 0
    unrouted: int = 0
    predictions: int = 0
    absorbed: int = 0
    rejected: int = 0
    sent: int = 0
    unsent: int = 0
    dropped: int = 0
    skipped: int = 0
    redelivered: int = 0
    retried: int = 0
    dead_letters: int = 0
    bad_outputs: int = 0
    acknowledged_early: int = 0
    worker_restarts: int = 0
    state_lost: int = 0
    waiting: int = 0
    in_flight: int = 0
    held: int = 0
    bus: LinkStatus | None = None
    worker_pid: int | None = None
    owner_pid: int | None = None
    owner_memory_bytes: int | None = None
    latency_ms: dict[str, float | None] = msgspec.field(default_factory=dict)
    policy: str = ""


class Status(Report, frozen=True, omit_defaults=True, kw_only=True):
    """The report as it is now.

    Attributes:
        slots: By slot, with counters.
        link: Where the link stands.
        condition: The device's at present, as in telemetry; absent while nothing is known.
        conditions: All that hold, the worst first.
        temperature_c: Of the hottest sensor; absent where none tells.
    """

    slots: dict[str, SlotStatus] = msgspec.field(default_factory=dict)  # type: ignore[assignment]
    link: LinkStatus
    condition: str = ""
    conditions: tuple[str, ...] = ()
    temperature_c: float | None = None
