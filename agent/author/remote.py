"""A device from afar: what the broker keeps of it, and commands to it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec

from agent.author.broker import Broker
from agent.errors import LinkUnreachable

# Retained messages come right after the subscription.
QUIET_S = 1.0
ANSWER_WITHIN_S = 5.0


def command(
    broker: Broker,
    prefix: str,
    name: str,
    request: Mapping[str, Any],
    timeout_s: float = ANSWER_WITHIN_S,
) -> dict[str, Any]:
    """Send a command to a device and wait for its answer.

    Args:
        broker: Connected.
        prefix: The device's topics, ending in a slash.
        name: Below `command/`.
        request: What the command needs.
        timeout_s: How long to wait.

    Returns:
        The answer; with an object under `error` where the device says no.

    Raises:
        LinkUnreachable: No answer came.
    """
    token = secrets.token_hex(8)
    reply_to = f"{prefix}command/{name}/response/{token}"
    broker.subscribe([(reply_to, 1)])
    payload = msgspec.json.encode({**request, "id": token, "reply_to": reply_to})
    broker.publish(f"{prefix}command/{name}", payload, wait=True)
    end = time.monotonic() + timeout_s
    while (left_s := end - time.monotonic()) > 0:
        message = broker.next(left_s)
        if message is not None and message.topic == reply_to:
            answer = _object(message.payload)
            answer.pop("id", None)
            return answer
    raise LinkUnreachable(
        f"the device below {prefix} did not answer {name!r} within {timeout_s:g} s",
        hint="is its agent running and connected to this broker?",
    )


def status(broker: Broker, prefix: str, device: str) -> dict[str, Any]:
    """What can be known of a device now.

    Returns:
        Its own answer where it is online, else its last report; `link.state` says which
        (`connected`, or `offline`). `telemetry` is there when a document passed by.

    Raises:
        LinkUnreachable: The broker knows nothing of such a device.
    """
    topics = [f"{prefix}{name}" for name in ("status", "reported", "telemetry")]
    broker.subscribe([(topic, 1) for topic in topics])
    kept: dict[str, bytes] = {}
    end = time.monotonic() + QUIET_S
    while (message := broker.next(end - time.monotonic())) is not None:
        kept[message.topic] = message.payload
        if kept.keys() >= set(topics[:2]):
            break
    presence, reported, telemetry = (kept.get(topic, b"") for topic in topics)
    if not presence and not reported:
        raise LinkUnreachable(
            f"the broker at {broker.url} knows nothing of device {device} below {prefix}",
            hint="check --device and --prefix; has its agent ever connected here?",
        )
    found = _object(reported)
    found["link"] = {"state": presence.decode(errors="replace") or "unknown"}
    if presence == b"online":
        with suppress(LinkUnreachable):
            found = command(broker, prefix, "status", {})
    if telemetry:
        found["telemetry"] = _object(telemetry)
    return found


def _object(payload: bytes) -> dict[str, Any]:
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(payload, type=dict[str, Any])
    return {}
