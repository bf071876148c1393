"""What can go wrong in MQTT, below `LinkError`."""

from __future__ import annotations

from agent.errors import LinkError


class MalformedPacket(LinkError):
    """Bytes from the broker that break MQTT; `reason_code` is what a DISCONNECT tells it."""

    code = "malformed_packet"

    def __init__(self, message: str, *, reason_code: int = 0x81, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason_code = reason_code


class InvalidText(LinkError):
    """A text that MQTT cannot carry: U+0000, a lone surrogate, or too long."""

    code = "invalid_text"
    retryable = False


class InvalidTopic(InvalidText):
    """A topic name or filter that MQTT forbids."""

    code = "invalid_topic"


class TopicTooLong(InvalidTopic):
    """A topic above MQTT's 65,535 bytes or above the limit that was set."""

    code = "topic_too_long"


class TooLarge(LinkError):
    """A packet above what the broker accepts; the same message will never pass."""

    code = "packet_too_large"
    retryable = False
