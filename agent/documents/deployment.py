"""The deployment: the desired document. Which pack serves in which slot, and how to get there."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agent.documents.names import Digest, Key, Positive, ShortText, Topic

# An AWS shadow holds 8 KB; the same bound everywhere keeps a deployment portable.
MAX_DEPLOYMENT_BYTES = 8 * 1024

Setting = str | int | float | bool
# Conditions of a device in which it has less to give.
Strained = Literal["warm", "hot", "throttled", "undervoltage", "pressed"]


class Input(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where sensor messages come from.

    Attributes:
        topic: An MQTT topic filter.
        qos: Of the subscription. At 1 a message is acknowledged only when its prediction has been
            handed over; at 0 it can be lost.
        drop: Which message gives way when one comes at QoS 0 and `max_in_flight` wait already.
            At QoS 1 the broker waits, and nothing is dropped.
        max_in_flight: Messages of this slot that are at the worker or being published at a time.
    """

    topic: Topic
    qos: Literal[0, 1] = 1
    drop: Literal["drop_oldest", "drop_newest"] = "drop_oldest"
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where predictions go.

    Attributes:
        topic: A topic name. `{slot}` and `{device}` stand for their names; `{1}`, `{2}` … for what
            the wildcards of `input.topic` stood for, in order.
        qos: At 1 a prediction counts as handed over when the broker has acknowledged it, at 0 when
            it is written to the connection.
        retain: The broker keeps the last prediction of each topic for later subscribers.
        reply_to: Obey a `reply_to` inside a JSON payload. An MQTT 5 response topic is always
            obeyed. Neither may name a topic of the agent's own or one that begins with `$`.
    """

    topic: Topic
    qos: Literal[0, 1] = 1
    retain: bool = False
    reply_to: bool = False


class Rollout(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the new pack takes over.

    Attributes:
        mode: `direct`: it takes over between two messages, once it has passed its self-test here.
        probation_s: How long it must then serve before it is `active`. Until then three deaths of
            its worker in a row bring the pack before it back; later it takes five.
    """

    mode: Literal["direct"] = "direct"
    probation_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 10.0


class Pin(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a pack is to be run, in place of what this device would choose. What is left out is
    chosen by measurement as always; where the rest cannot be had the deployment fails.

    Attributes:
        variant: Of the pack.
        runtime: The adapter.
        provider: What it shall compute on; `CPU` for the runtime's own kernels.
        threads: How many a run may use.
    """

    variant: ShortText = ""
    runtime: ShortText = ""
    provider: ShortText = ""
    threads: Positive | None = None


class Share(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a slot shares an accelerator of which one process is the owner, such as an Edge TPU.

    Attributes:
        priority: A slot of a higher one goes first; slots of the same have equal parts of its time.
        quota: The most of its time that the slot may take, as a share, also where it is idle.
    """

    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 0
    quota: Annotated[float, msgspec.Meta(ge=0.01, le=1)] = 1.0


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a slot does while the device is hot, slowed down or short of power or memory. By
    default nothing: it is only told.

    Attributes:
        action: `reduce_rate`: at most `rate_per_s` messages are run; what is more waits at QoS 1,
            and is dropped at QoS 0. `skip`: of each topic, one message in `one_in` is run; the
            others are acknowledged and not answered. `lighter_variant`: the best way to run the
            pack that takes clearly less CPU time serves meanwhile, if this device has one.
        on: In which conditions; docs/operations.md says what they are.
        rate_per_s: For `reduce_rate`.
        one_in: For `skip`.
    """

    action: Literal["none", "reduce_rate", "skip", "lighter_variant"] = "none"
    on: Annotated[tuple[Strained, ...], msgspec.Meta(max_length=8)] = (
        "hot",
        "throttled",
        "undervoltage",
    )
    rate_per_s: Annotated[float, msgspec.Meta(ge=0.01, le=1000)] = 1.0
    one_in: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 2


class Slot(msgspec.Struct, frozen=True, omit_defaults=True, rename={"source": "from"}):
    """What one slot shall serve.

    Attributes:
        pack: The pack's id: the digest of its manifest.
        input: Where sensor messages come from.
        output: Where predictions go.
        source: Where the pack is. `mqtt:` in blocks over the link; `https://…` or `http://…` a
            folder on a web server, the query going with each file; `file:///…` a folder below one
            of `fetch.roots`; nothing: the pack is on the device already.
        rollout: How the new pack takes over.
        settings: Options of the pack's steps by name, such as `threshold`, in place of the
            author's; docs/packs.md lists them.
        pin: How it is to be run; nothing: as this device runs it best, by measurement.
        share: Of an accelerator that other slots use too.
        policy: What it does while the device is hot, slowed down or short of power or memory.
    """

    pack: Digest
    input: Input
    output: Output
    source: Annotated[str, msgspec.Meta(max_length=2048)] = ""
    rollout: Rollout = Rollout()
    settings: Annotated[dict[Key, Setting], msgspec.Meta(max_length=64)] = {}
    pin: Pin | None = None
    share: Share = Share()
    policy: Policy = Policy()


class TelemetrySettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """How often the device tells how it is doing.

    Attributes:
        interval_s: Seconds between two telemetry documents.
    """

    interval_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 60.0


class Deployment(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole desired state of one device.

    Attributes:
        schema: The version of this format.
        deployment: A name for people and reports.
        slots: By slot. A slot that is absent is stopped; one that is as it was is left alone.
        telemetry: How often the device tells how it is doing.
    """

    schema: Literal[1]
    deployment: ShortText
    slots: Annotated[dict[Key, Slot], msgspec.Meta(max_length=64)] = {}
    telemetry: TelemetrySettings = TelemetrySettings()
