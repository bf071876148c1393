"""What a session tells its owner; `packets.Message` is one of these too."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.wire.mqtt.options import Granted
from agent.wire.mqtt.packets import Message, Oversized


class Connected(msgspec.Struct, frozen=True):
    """The broker took us in.

    Args:
        session_present: It still had our session: subscriptions, and what was not acknowledged.
        granted: What holds on this connection.
    """

    session_present: bool
    granted: Granted


class Refused(msgspec.Struct, frozen=True):
    """The broker answered CONNECT with a no; the transport is to be closed.

    Args:
        reason_code: MQTT 5 reason code, also where the broker speaks 3.1.1.
        reason: A sentence with what to do.
        retryable: It may pass without anybody changing a setting.
        try_again_now: The next attempt will differ (the older protocol version): do not wait.
    """

    reason_code: int
    reason: str
    retryable: bool
    try_again_now: bool = False


class Disconnected(msgspec.Struct, frozen=True):
    """The connection is over; where the transport still stands it is to be closed.

    Args:
        reason: A sentence.
        reason_code: MQTT 5 reason code from either side; 0 when the network ended it.
        try_again_now: As in `Refused`.
    """

    reason: str
    reason_code: int = 0
    try_again_now: bool = False


class Published(msgspec.Struct, frozen=True):
    """How a publish that had a token ended; each ends once.

    Args:
        token: What the publisher gave.
        ok: The broker has it (QoS 1) or it was handed to the transport (QoS 0).
        reason: Why not; or, with `ok`, in what the broker's limits changed it. Else empty.
    """

    token: Any
    ok: bool
    reason: str = ""


class FilterResult(msgspec.Struct, frozen=True):
    """What became of one filter of a SUBSCRIBE.

    Args:
        filter: As it was asked for.
        granted_qos: 0 or 1, maybe lower than asked for; None when refused.
        reason: Why it was refused, with what to do; else empty.
    """

    filter: str
    granted_qos: int | None
    reason: str = ""


class Subscribed(msgspec.Struct, frozen=True):
    """The broker's answer to one SUBSCRIBE."""

    results: tuple[FilterResult, ...]


Event = Message | Oversized | Connected | Refused | Disconnected | Published | Subscribed
