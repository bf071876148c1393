"""Telemetry, events, dead letters and gaps: what a device tells beside its report.

Metric names follow OpenTelemetry's semantic conventions where one fits and stand under `edgeward.`
where none does; units are UCUM and stand in the schema's description, not in the name, except for
the latency summaries, whose names end in `_ms`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Number = int | float


class Stamp(msgspec.Struct, frozen=True, omit_defaults=True):
    """What every document of a stream carries, so that a consumer can order and tell repeats by
    (device, boot, stream, seq)."""

    device: str
    stream: str
    # Random per start of the agent.
    boot: str
    # +1 per document of the stream.
    seq: int
    # Wall clock, RFC 3339; for people.
    ts: str
    # Monotonic milliseconds since the boot of the machine.
    mono_ms: int
    clock: Literal["synced", "unsynced"] = "unsynced"
    # It was kept on disk while the link was away.
    historical: bool = False


class SlotTelemetry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One slot. Counters run since the agent's start; latencies and classes cover the window.

    `metrics` holds: edgeward.messages.received, .predicted, .absorbed, .rejected, .sent, .unsent,
    .dropped, .redelivered, .retried, .dead_letters, .bad_outputs, .acknowledged_early ({message}),
    edgeward.worker.restarts ({restart}), edgeward.state.lost ({state}),
    edgeward.messages.waiting, .in_flight, .held ({message}, now).
    """

    pack: str
    version: str = ""
    runtime: str = ""
    provider: str = ""
    metrics: dict[str, Number] = {}
    # Milliseconds, by part (total, queue, decode, run, encode) and quantile: `run.p95_ms`.
    latency: dict[str, float] = {}
    # Predictions by label (or index), the 32 most frequent; the rest under `other`.
    classes: dict[str, int] = {}
    # Resident memory of the worker, in bytes (process.memory.usage).
    worker_memory: int | None = None


class Telemetry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One document every `telemetry.interval_s`.

    `metrics` holds, of the machine: system.cpu.utilization (1), system.memory.usage (By),
    system.memory.linux.available (By), system.filesystem.utilization (1), system.uptime (s),
    hw.temperature (Cel); of the daemon: process.cpu.time (s), process.memory.usage (By),
    process.uptime (s), process.unix.file_descriptor.count ({count}), edgeward.link.connects
    ({connect}), edgeward.spool.usage (By), edgeward.messages.unrouted ({message}).
    """

    schema: Literal[1]
    kind: Literal["telemetry"]
    stamp: Stamp
    window_s: float
    slots: dict[str, SlotTelemetry] = {}
    metrics: dict[str, Number] = {}


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened, told once: a deployment's outcome, a worker's death."""

    schema: Literal[1]
    kind: Literal["event"]
    stamp: Stamp
    event: str
    slot: str = ""
    deployment: str = ""
    pack: str = ""
    code: str = ""
    message: str = ""
    hint: str = ""
    # For events that come in bursts: how many this one stands for.
    count: int = 1


class DeadLetterDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message that was set aside, with the reason; `payload` is cut at 64 KiB."""

    schema: Literal[1]
    slot: str
    topic: str
    code: str
    reason: str
    ts: str
    payload_bytes: int
    payload: bytes
    # The worker's own error document, where it sent one.
    detail: Any = None
