"""Text that others wrote, made fit for a terminal, a log line or a report."""

from __future__ import annotations


def printable(text: str, max_characters: int = 1 << 30) -> str:
    """Return a text in which each character that does not print stands as its escape.

    A broker, a source or a model could otherwise write lines of its own into a log, or have a
    terminal do what the escape sequences say (CWE-117, CWE-150).

    Args:
        text: Of any origin.
        max_characters: What is longer is cut, and ends in `…`.
    """
    if len(text) > max_characters:
        text = text[: max_characters + 1]
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
        )
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"
