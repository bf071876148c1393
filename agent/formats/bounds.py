"""What keeps the readers short on any input: a budget of steps, and words that are safe to show."""

from __future__ import annotations

from agent.errors import ModelRejected

MAX_NAME_LENGTH = 1024  # of a tensor, operator or domain, in characters
MAX_TEXT_LENGTH = 8192  # of one description or metadata value, in characters
MAX_METADATA_ENTRIES = 128
MAX_RANK = 64
MAX_TENSORS_DESCRIBED = 1024  # inputs or outputs of one model
MAX_NOTES = 32
_SHOWN_LENGTH = 80


class Budget:
    """How many steps a reader may still take; a file must not decide how long we work on it."""

    __slots__ = ("_left", "_what")

    def __init__(self, steps: int, what: str) -> None:
        self._left = steps
        self._what = what

    def spend(self, steps: int = 1) -> None:
        self._left -= steps
        if self._left < 0:
            raise ModelRejected(
                f"the {self._what} model has more parts than any real model",
                hint="it is damaged, or made to keep its reader busy",
            )


def damaged(what: str, detail: str) -> ModelRejected:
    """The refusal of a file that breaks the rules of its own format."""
    return ModelRejected(
        f"the {what} model is damaged or cut short: {detail}", hint="copy or export it again"
    )


def shown(text: str) -> str:
    """A string of the file's, quoted, shortened and without control characters."""
    return repr(text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "…")


def decoded(raw: bytes | memoryview, what: str, limit: int = MAX_NAME_LENGTH) -> str:
    """UTF-8 text that a runtime will be given back unchanged, such as a tensor's name.

    Raises:
        ModelRejected: longer than `limit` bytes, not UTF-8, or with control characters.
    """
    if len(raw) > limit:
        raise damaged(what, f"a name of {len(raw)} bytes (at most {limit})")
    try:
        text = str(raw, "utf-8")
    except UnicodeDecodeError:
        raise damaged(what, "a name is not UTF-8") from None
    if not text.isprintable() and any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
        raise damaged(what, f"the name {shown(text)} holds control characters")
    return text


def readable(raw: bytes | memoryview) -> str:
    """Free text for people: shortened, undecodable bytes replaced, control characters removed."""
    text = str(raw[: 4 * MAX_TEXT_LENGTH], "utf-8", "replace")[:MAX_TEXT_LENGTH]
    return "".join(c for c in text if c in "\n\t" or c.isprintable()).strip()
