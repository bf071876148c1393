"""What goes into a chain and comes out of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.errors import BadInput
from agent.pipeline.tensors import Arrays

IdKind = Literal["payload", "correlation", "agent"]

# A longer id is no id: it would be copied into every answer and every log line.
MAX_ID_CHARACTERS = 256
MAX_REPLY_TOPIC_CHARACTERS = 512


class Incoming(msgspec.Struct, frozen=True, gc=False):
    """One message of a source. `now_ms` is monotonic; only windows by time look at it."""

    sequence: int
    topic: str
    payload: bytes | memoryview
    correlation: bytes | None = None
    # Its prediction was already made: it only refills a window or a state.
    replay: bool = False
    now_ms: float = 0.0


class Decoded(msgspec.Struct, gc=False):
    """What a codec read: one array per public input, and what else the payload said."""

    arrays: Arrays
    id: str | None = None
    reply_to: str = ""
    # The reading's own time, where the window asks for it.
    time_ms: float | None = None
    # The outputs that the request asked for; None: all.
    wanted: tuple[str, ...] | None = None


class Step(msgspec.Struct, gc=False):
    """A message made ready for the model."""

    # One array per tensor of the variant's file; None: an open window took the message in.
    inputs: Arrays | None
    id: str
    id_kind: IdKind
    source: str
    reply_to: str = ""
    # The messages that nothing here needs any more once this step's result is handed over;
    # None: just this one.
    released: tuple[int, ...] | None = None
    wanted: tuple[str, ...] | None = None


class Prediction(msgspec.Struct, gc=False):
    """The public outputs of one run."""

    tensors: Arrays
    # Index into `Chain.class_labels`; -1: this prediction names no single class.
    class_index: int = -1


class ProducedBy(msgspec.Struct, frozen=True):
    """What really runs the model; every prediction says it."""

    pack: str
    runtime: str
    provider: str
    slot: str = ""


class RejectedMessage(BadInput):
    """A message that does not fit the model, with all that is needed to answer it."""

    def __init__(
        self,
        message: str,
        *,
        id: str | None = None,  # noqa: A002 the protocol's word
        id_kind: IdKind = "payload",
        reply_to: str = "",
        released: tuple[int, ...] | None = None,
    ) -> None:
        """Describe one rejection.

        Args:
            message: What was wrong with it.
            id: The message's own id, if it could be found.
            id_kind: Where that id comes from.
            reply_to: The topic that the payload asks the answer to be sent to.
            released: As in `Step`.
        """
        super().__init__(message)
        self.id = id
        self.id_kind: IdKind = id_kind
        self.reply_to = reply_to
        self.released = released


def check_reply_to(topic: str) -> str:
    """Return a topic name that may be published to.

    Raises:
        BadInput: It is a filter, reserved for the broker (`$…`) or too long (MQTT 5, 4.7).
    """
    if len(topic) > MAX_REPLY_TOPIC_CHARACTERS or topic.startswith("$") or set(topic) & set("+#\0"):
        raise BadInput(
            "reply_to: expected a topic name without wildcards, not starting with $, of at most "
            f"{MAX_REPLY_TOPIC_CHARACTERS} characters"
        )
    return topic


def check_id(text: str) -> str:
    """Return an id that may be echoed.

    Raises:
        BadInput: It is too long.
    """
    if len(text) > MAX_ID_CHARACTERS:
        raise BadInput(f"id: expected at most {MAX_ID_CHARACTERS} characters, got {len(text)}")
    return text


def id_from_correlation(correlation: bytes | None) -> str | None:
    """Return MQTT 5 correlation data as an id: its text, or hex where it is none."""
    if not correlation or len(correlation) > MAX_ID_CHARACTERS:
        return None
    text = correlation.decode("utf-8", "replace")
    return text if text.isprintable() and "\ufffd" not in text else correlation.hex()
