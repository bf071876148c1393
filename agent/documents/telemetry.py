"""Telemetry, events and dead letters: what a device tells beside its report.

Names follow OpenTelemetry's semantic conventions where one fits and stand under `edgeward.` where
none does. Units are UCUM and stand in the tables here, not in the names, except for the latency
summaries, whose names end in `_ms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Number = int | float

# Name → unit, and what is counted.
SLOT_METRICS: Mapping[str, tuple[str, str]] = {
    "edgeward.messages.unrouted": (
        "{message}",
        "for a filter that the slot had before; acknowledged and not counted as received",
    ),
    "edgeward.messages.received": ("{message}", "came from the broker, repeats among them"),
    "edgeward.messages.predictions": ("{message}", "were answered with a prediction"),
    "edgeward.messages.absorbed": ("{message}", "went into an open window and need no answer"),
    "edgeward.messages.rejected": ("{message}", "do not fit the model"),
    "edgeward.messages.sent": ("{message}", "answers handed over, error answers among them"),
    "edgeward.messages.unsent": ("{message}", "answers that could not be handed over"),
    "edgeward.messages.dropped": ("{message}", "given up at QoS 0, since too many waited"),
    "edgeward.messages.skipped": (
        "{message}",
        "not run, as the slot's policy says; acknowledged and not answered",
    ),
    "edgeward.messages.redelivered": ("{message}", "marked by the broker as a repeat"),
    "edgeward.messages.retried": ("{message}", "tried again, since their worker ended"),
    "edgeward.messages.dead_letters": ("{message}", "set aside, with the reason"),
    "edgeward.messages.bad_outputs": ("{message}", "got an answer that the manifest forbids"),
    "edgeward.messages.acknowledged_early": (
        "{message}",
        "before their prediction, in a long window; a killed agent loses them",
    ),
    "edgeward.worker.restarts": ("{restart}", "of the worker, after it ended by itself"),
    "edgeward.worker.states_lost": ("{state}", "windows or states that had to begin anew"),
    "edgeward.messages.waiting": ("{message}", "for the worker, now"),
    "edgeward.messages.in_flight": ("{message}", "at the worker or being published, now"),
    "edgeward.messages.held": ("{message}", "in open windows, now"),
}
DEVICE_METRICS: Mapping[str, tuple[str, str]] = {
    "system.cpu.utilization": ("1", "share of all processors, since the last document"),
    "system.memory.usage": ("By", "taken"),
    "system.memory.linux.available": ("By", "left without swapping"),
    "system.filesystem.utilization": ("1", "of the file system with `state_dir`"),
    "system.uptime": ("s", "since the machine booted"),
    "hw.temperature": ("Cel", "of the hottest sensor"),
    "hw.power": ("W", "of the channel that shows most, mostly the whole board's"),
    "hw.cpu.speed": ("Hz", "of the fastest processor"),
    "hw.cpu.speed.limit": ("Hz", "what that can do at most"),
    "edgeward.cpu.speed_share": ("1", "of that, what it does now"),
    "edgeward.cpu.throttled": ("1", "1: the processor is slowed down, or its clock is capped"),
    "edgeward.power.undervoltage": ("1", "1: the supply's voltage is too low"),
    "edgeward.cpu.pressure": ("1", "share of ten seconds in which some task waited for it"),
    "edgeward.memory.pressure": ("1", "the same"),
    "edgeward.io.pressure": ("1", "the same"),
    "process.cpu.time": ("s", "used by the daemon"),
    "process.memory.usage": ("By", "resident memory of the daemon, without workers"),
    "process.uptime": ("s", "since the daemon started"),
    "process.unix.file_descriptor.count": ("{count}", "open in the daemon"),
    "edgeward.link.connects": ("{connect}", "times that the link was made"),
    "edgeward.spool.usage": ("By", "taken on disk by what is to be sent"),
}
LATENCY_PARTS: Mapping[str, str] = {
    "total": "from the message's arrival at the agent to its answer from the worker",
    "queue": "of that, neither decoding nor running nor encoding",
    "decode": "payload, window and steps before the model",
    "run": "the model",
    "encode": "steps after the model, and the answer",
}
# Conditions of the device, the worst last.
CONDITIONS: Mapping[str, str] = {
    "well": "none of the others",
    "warm": "within 10 °C of hot",
    "pressed": "tasks wait for memory a tenth of their time or more",
    "hot": "at the temperature of its profile, 80 °C where that says nothing, or above",
    "throttled": "the processor is slowed down",
    "undervoltage": "the supply's voltage is too low",
}
EVENTS: Mapping[str, str] = {
    "deployment_refused": "a desired document was refused whole",
    "rollout_active": "a pack has passed its probation, or serves already",
    "rollout_failed": "a rollout failed, or a pack with none before it keeps dying",
    "rollout_rolled_back": "the pack before serves again",
    "worker_died": "a worker ended by itself or was ended; another one is started",
    "state_damaged": "a start found the saved state damaged; with one generation left it goes on",
    "dead_letters": "messages were set aside faster than they are kept; `count` of them only count",
    "message_too_large": "a document or command above the limit of the link was thrown away unread",
    "device_well": "no condition holds any more; this and the next are told as they begin",
    "device_warm": "the device is warm",
    "device_pressed": "memory is short",
    "device_hot": "the device is hot",
    "device_throttled": "the processor is slowed down",
    "device_undervoltage": "the supply's voltage is too low",
    "way_failed": "the chosen way to run a pack failed, and the next one serves",
    "way_restored": "the chosen way to run a pack serves again",
    "policy_applied": "a slot does less, as its policy says",
    "policy_lifted": "it serves as always again",
    "power_lost": "the machine restarted without being shut down, while slots were served",
    "power_supply": "the same, and the power supply is the likely reason",
    "documents_not_kept": "the disk took nothing for a while, and `count` documents are lost",
}


class Stamp(msgspec.Struct, frozen=True, omit_defaults=True):
    """Orders the documents of a stream. The same (device, boot, stream, seq) is the same document.

    Attributes:
        device: The device's id.
        stream: `telemetry` or `events`.
        boot: Random for each start of the agent.
        seq: The number of the document in its stream, over all starts: 1, 2, 3 …; a number that
            does not come is counted in a gap record.
        ts: When it was made, by the wall clock, RFC 3339 in UTC.
        mono_ms: When it was made, in milliseconds since the machine booted.
        clock: Whether the kernel held the wall clock for right.
        historical: It waited on disk for the link, so it tells of then and not of now.
    """

    device: str
    stream: str
    boot: str
    seq: int
    ts: str
    mono_ms: int
    clock: Literal["synced", "unsynced"] = "unsynced"
    historical: bool = False


class SlotTelemetry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One slot.

    Attributes:
        pack: The pack that serves.
        version: From its manifest.
        runtime: The inference library; this and the next are absent while no worker is there.
        provider: What that library computes on.
        metrics: Counters since the agent's start, and what is so now (table below).
        latency: Of the window, in milliseconds, within 4.5 %: `total`, `queue`, `decode`, `run`
            and `encode`, each as `.p50_ms`, `.p95_ms` and `.p99_ms`.
        classes: Predictions of the window by label (or index): the 32 most frequent, the others
            under `other`.
        worker_memory: Resident memory of the worker, in bytes.
        condition: The worst that the device was in during the window, so while `latency` was
            measured (table below); absent while nothing is known.
        policy: What the slot's policy does at present; absent: nothing.
    """

    pack: str
    version: str = ""
    runtime: str = ""
    provider: str = ""
    metrics: dict[str, Number] = {}
    latency: dict[str, float] = {}
    classes: dict[str, int] = {}
    worker_memory: int | None = None
    condition: str = ""
    policy: str = ""


class Telemetry(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the device is doing, once every `telemetry.interval_s`.

    Attributes:
        schema: The version of this format.
        kind: Tells it from the other documents of a stream.
        stamp: Which document this is, and of when.
        window_s: How many seconds latencies and classes cover.
        slots: By slot, those that serve.
        metrics: Of the machine and of the daemon (table below).
        condition: The device's at present (table below); absent while nothing is known.
        power_mode: As the board calls it; absent where it has none.
    """

    schema: Literal[1]
    kind: Literal["telemetry"]
    stamp: Stamp
    window_s: float
    slots: dict[str, SlotTelemetry] = {}
    metrics: dict[str, Number] = {}
    condition: str = ""
    power_mode: str = ""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened, told once.

    Attributes:
        schema: The version of this format.
        kind: Tells it from a gap record, which comes on the same topic.
        stamp: Which document this is, and of when.
        event: What happened (table below).
        slot: Where.
        deployment: Whose rollout ended.
        pack: Which pack it was to bring, or the worker that died had.
        code: Why, as a code of docs/errors.md.
        message: Why, as a sentence.
        hint: What to do about it.
        count: How many such events this one stands for.
    """

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
    count: int = 1


class DeadLetterDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message that was set aside, with the reason.

    Attributes:
        schema: The version of this format.
        slot: Whose message.
        topic: Where it came from.
        code: A code of docs/errors.md, or `publish_refused` or `too_large`.
        reason: A sentence.
        ts: When it was set aside, RFC 3339 in UTC.
        payload_bytes: How long the message was.
        payload: Its first 64 KiB; empty where it was `too_large`.
        detail: The answer that the worker gave, where it gave one.
    """

    schema: Literal[1]
    slot: str
    topic: str
    code: str
    reason: str
    ts: str
    payload_bytes: int
    payload: bytes
    detail: Any = None
