"""How a session is to be, and what the broker made of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.errors import UsageError
from agent.wire.mqtt.packets import MAX_PACKET_SIZE, encode_topic_name

QOS_2 = "QoS 2 is not offered: use QoS 1, and tell a repeat by the message's id"


# A whole packet of the largest message that is taken, unless told otherwise.
MAX_PACKET_BYTES = 1 << 20


class Will(msgspec.Struct, frozen=True):
    """What the broker publishes for us when the connection is lost.

    Args:
        topic: Where to.
        payload: At most 65,535 bytes.
        qos: 0 or 1.
        retain: The broker keeps it for later subscribers.
    """

    topic: str
    payload: bytes = b""
    qos: int = 1
    retain: bool = True

    def __post_init__(self) -> None:
        encode_topic_name(self.topic)
        if self.qos not in {0, 1}:
            raise UsageError(f"last will on {self.topic!r}: {QOS_2}")
        if len(self.payload) > 0xFFFF:
            raise UsageError(f"last will on {self.topic!r}: more than 65,535 bytes")


class ConnectOptions(msgspec.Struct, frozen=True):
    """How to connect and how much to hold.

    Args:
        client_id: Unique on the broker; two clients with one id throw each other out.
        version: 5, 4 (MQTT 3.1.1), or "auto": 5, then 4 where the broker does not know 5.
        username: Sent with the password, where the broker asks for it.
        password: Never shown.
        keep_alive_s: Longest silence, 0 to 65,535; 0 turns the detection of dead peers off.
        clean_start: Have the broker forget an earlier session at the first connection.
        session_expiry_s: How long the broker keeps the session while we are away; 0: not at all.
        will: Published by the broker when we vanish.
        receive_maximum: QoS 1 messages that may wait for our acknowledgement, 1 to 65,535.
        max_packet_size: Bytes of the largest packet we take, at least 128. The broker is not told:
            it would drop a larger message and say so to nobody; here it is skipped and counted.
        max_inflight: QoS 1 messages of ours that may wait for the broker's acknowledgement.
        max_queued: QoS 1 messages of ours that may wait to be sent.
        max_queued_bytes: Bytes of ours that may wait, for the network or for an acknowledgement.
        max_topic_bytes: Longest topic we publish or subscribe to.
        response_timeout_s: How long the broker may take for CONNACK, and to answer a ping.
    """

    client_id: str
    version: Literal[4, 5, "auto"] = "auto"
    username: str | None = None
    password: bytes | None = None
    keep_alive_s: int = 60
    clean_start: bool = False
    session_expiry_s: int = 7 * 86_400
    will: Will | None = None
    receive_maximum: int = 256
    max_packet_size: int = MAX_PACKET_BYTES
    max_inflight: int = 1024
    max_queued: int = 10_000
    max_queued_bytes: int = 16 << 20
    max_topic_bytes: int = 0xFFFF
    response_timeout_s: float = 15.0

    def __repr__(self) -> str:
        """Without the password."""
        return f"ConnectOptions(client_id={self.client_id!r}, version={self.version!r})"

    def __post_init__(self) -> None:
        if not self.client_id and not self.clean_start:
            raise UsageError("an empty client id needs clean_start: no session can be found again")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name}: expected {low} to {high}, got {value}")


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("keep_alive_s", 0, 0xFFFF),
    ("session_expiry_s", 0, 0xFFFF_FFFF),
    ("receive_maximum", 1, 0xFFFF),
    ("max_packet_size", 128, MAX_PACKET_SIZE),
    ("max_inflight", 1, 0x8000),
    ("max_queued", 0, 1 << 24),
    ("max_queued_bytes", 0, 1 << 40),
    ("max_topic_bytes", 1, 0xFFFF),
    ("response_timeout_s", 0.001, 3600),
)


class Granted(msgspec.Struct, frozen=True):
    """What holds on this connection; where the broker stated nothing, MQTT's own defaults.

    Args:
        version: 5, or 4 for MQTT 3.1.1.
        client_id: Ours, or the one the broker gave us.
        keep_alive_s: The broker's where it states one.
        session_expiry_s: How long it keeps the session.
        receive_maximum: QoS 1 messages it takes before the first is acknowledged.
        max_packet_size: Bytes of the largest packet it takes.
        max_qos: Highest QoS it takes, 0 or 1.
        retain_available: It keeps retained messages.
        wildcard_available: It takes filters with wildcards.
    """

    version: Literal[4, 5]
    client_id: str
    keep_alive_s: int
    session_expiry_s: int
    receive_maximum: int = 0xFFFF
    max_packet_size: int = MAX_PACKET_SIZE
    max_qos: int = 1
    retain_available: bool = True
    wildcard_available: bool = True
