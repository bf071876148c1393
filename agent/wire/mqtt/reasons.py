"""Reason codes as sentences: what a broker means, and what a person can do about it.

MQTT 5.0, 2.4; the five return codes of a 3.1.1 CONNACK are mapped to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Reason(NamedTuple):
    """One reason code.

    Args:
        says: What it means.
        advice: What to do about it; empty when waiting is enough.
        retryable: The same attempt can succeed later without anybody changing a setting.
    """

    says: str
    advice: str = ""
    retryable: bool = True


UNSUPPORTED_VERSION: Final = 0x84
FROM_3_1_1: Mapping[int, int] = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}

_REASONS: Mapping[int, Reason] = {
    0x00: Reason("success"),
    0x04: Reason("disconnected with will message"),
    0x10: Reason("no matching subscribers"),
    0x11: Reason("no subscription existed"),
    0x80: Reason("unspecified error", "the broker's log may say more"),
    0x81: Reason("malformed packet", "the broker's log may say more", retryable=False),
    0x82: Reason("protocol error", "the broker's log may say more", retryable=False),
    0x83: Reason("implementation specific error", "the broker's log may say more"),
    0x84: Reason("unsupported protocol version", "allow the other MQTT version", retryable=False),
    0x85: Reason("client identifier not valid", "choose another client id", retryable=False),
    0x86: Reason("bad user name or password", "check user name and password file", retryable=False),
    0x87: Reason("not authorized", "give this client the right on the broker", retryable=False),
    0x88: Reason("server unavailable"),
    0x89: Reason("server busy"),
    0x8A: Reason("banned", "ask the broker's operator to lift the ban", retryable=False),
    0x8B: Reason("server shutting down"),
    0x8C: Reason("bad authentication method", "the broker wants a login we lack", retryable=False),
    0x8D: Reason("keep alive timeout", "the network may be too slow for the keep alive"),
    0x8E: Reason("session taken over", "another client uses the same client id: change one"),
    0x8F: Reason("topic filter invalid", "correct the topic filter", retryable=False),
    0x90: Reason("topic name invalid", "the broker does not allow this topic", retryable=False),
    0x91: Reason("packet identifier in use"),
    0x92: Reason("packet identifier not found"),
    0x93: Reason("receive maximum exceeded"),
    0x94: Reason("topic alias invalid"),
    0x95: Reason("packet too large", "send less, or raise the broker's limit", retryable=False),
    0x96: Reason("message rate too high", "send more slowly"),
    0x97: Reason("quota exceeded", "send less, or raise the broker's quota"),
    0x98: Reason("administrative action", "an operator closed the connection"),
    0x99: Reason("payload format invalid", "", retryable=False),
    0x9A: Reason("retain not supported", "send without retain", retryable=False),
    0x9B: Reason("QoS not supported", "ask for a lower QoS", retryable=False),
    0x9C: Reason("use another server", "the broker has moved for now: see its address"),
    0x9D: Reason("server moved", "change the url to the broker's new address", retryable=False),
    0x9E: Reason("shared subscriptions not supported", "", retryable=False),
    0x9F: Reason("connection rate exceeded"),
    0xA0: Reason("maximum connect time"),
    0xA1: Reason("subscription identifiers not supported", "", retryable=False),
    0xA2: Reason("wildcard subscriptions not supported", "name each topic", retryable=False),
}


def reason(code: int) -> Reason:
    """Look a reason code up; an unknown one from 0x80 is a failure that says so."""
    return _REASONS.get(code) or Reason(
        f"reason code 0x{code:02X}", "the broker's log may say more"
    )


def sentence(code: int, from_broker: str = "", server_reference: str | None = None) -> str:
    """Say a reason code for a person, with the broker's own words where it sent some."""
    row = reason(code)
    text = row.says
    if from_broker:
        text += f": {from_broker[:200]!r}"
    if server_reference:
        text += f", broker points to {server_reference[:200]!r}"
    return f"{text} ({row.advice})" if row.advice else text
