"""The end of a log file, and what is added to it, over rotations."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from pathlib import Path

CHUNK_BYTES = 64 * 1024
MAX_LINES = 100_000
POLL_S = 0.25


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a file, reading no more of it than needed."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        data = b""
        while position > 0 and data.count(b"\n") <= count:
            step = min(CHUNK_BYTES, position)
            position = file.seek(position - step)
            data = file.read(step) + data
    # Not splitlines: what it also takes for the end of a line could make one look like two.
    lines = data.decode(errors="replace").removesuffix("\n").split("\n") if data else []
    return lines[-count:] if count else []


def follow(path: Path, wait: Callable[[float], object] = time.sleep) -> Generator[str, None, None]:
    """Yield each line that is added from now on, for ever; a rotated file is opened anew.

    Args:
        wait: Called with seconds whenever there is nothing new.
    """
    file = path.open("rb")
    try:
        file.seek(0, os.SEEK_END)
        rest = b""
        while True:
            data = file.read(CHUNK_BYTES)
            if data:
                *lines, rest = (rest + data).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            elif _rotated(path, file.fileno()):
                file.close()
                file = path.open("rb")
            else:
                wait(POLL_S)
    finally:
        file.close()


def _rotated(path: Path, descriptor: int) -> bool:
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino)
