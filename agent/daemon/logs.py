"""The daemon's log: to stderr, and to a file that rotates where the disk takes one."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from agent.documents.text import printable

LOG_BYTES = 1024 * 1024
LOG_FILES = 3
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class SafeFormatter(logging.Formatter):
    """One record, one line, whatever is in it; the lines of a traceback are indented.

    What came from a broker, a source or a model can so neither look like a record nor reach a
    terminal as an escape sequence.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(f"    {printable(line)}" for line in text.split("\n"))


def start_logging(level: str, folder: Path) -> None:
    """Send all records to stderr, and to `agent.log` in a folder that is made where it can be."""
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
    file = logging.handlers.RotatingFileHandler(
        folder / "agent.log", maxBytes=LOG_BYTES, backupCount=LOG_FILES, delay=True
    )
    logging.basicConfig(
        level=level.upper(), handlers=[logging.StreamHandler(sys.stderr), file], force=True
    )
    for handler in logging.getLogger().handlers:
        handler.setFormatter(SafeFormatter(FORMAT))
    # A log that cannot be written (a full or read-only disk) is no reason to stop.
    logging.raiseExceptions = False
