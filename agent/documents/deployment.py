"""The deployment: the desired document. Which pack serves in which slot, and how to get there."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agent.documents.names import Digest, Key, ShortText, Topic

# An AWS shadow holds 8 KB; the same bound everywhere keeps a deployment portable.
MAX_DEPLOYMENT_BYTES = 8 * 1024

Setting = str | int | float | bool


class Input(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where sensor messages come from. `topic` is an MQTT topic filter."""

    topic: Topic
    qos: Literal[0, 1] = 1
    # At QoS 0 nothing can be held back at the broker: which message gives way in a full slot.
    drop: Literal["drop_oldest", "drop_newest"] = "drop_oldest"
    # Messages of this slot in the daemon and the worker at a time.
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where predictions go. `topic` may hold {slot}, {device} and {1}, {2} … : the wildcards."""

    topic: Topic
    qos: Literal[0, 1] = 1
    retain: bool = False
    # Obey a `reply_to` inside a JSON payload (MQTT 5 response topics are always obeyed).
    reply_to: bool = False


class Rollout(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the new pack takes over."""

    mode: Literal["direct"] = "direct"
    # How long the new pack must serve without trouble before the old one may go.
    probation_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 10.0


class Slot(msgspec.Struct, frozen=True, omit_defaults=True, rename={"source": "from"}):
    """What one slot shall serve."""

    pack: Digest
    input: Input
    output: Output
    # mqtt: | http(s): | file: ; absent where the platform has already placed the files.
    source: Annotated[str, msgspec.Meta(max_length=2048)] = ""
    rollout: Rollout = Rollout()
    # Values that override options of the pack's steps by name, such as `threshold`.
    settings: Annotated[dict[Key, Setting], msgspec.Meta(max_length=64)] = {}


class TelemetrySettings(msgspec.Struct, frozen=True, omit_defaults=True):
    interval_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 60.0


class Deployment(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole desired state. A slot that is absent is stopped."""

    schema: Literal[1]
    deployment: ShortText
    slots: Annotated[dict[Key, Slot], msgspec.Meta(max_length=64)] = {}
    telemetry: TelemetrySettings = TelemetrySettings()
