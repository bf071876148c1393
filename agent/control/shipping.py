"""Which way a file comes: whole, only its missing chunks, or as a delta to an older one.

All sizes are those that the manifest promises, so the choice needs no request. A way that saves
little is not taken: it costs reading, writing and one more thing that can go wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

WORTH_BYTES = 256 * 1024
WORTH_SHARE = 0.2

Kind = Literal["whole", "chunks", "delta"]


class Way(msgspec.Struct, frozen=True):
    """One way for a file to come.

    Attributes:
        kind: Which.
        wire_bytes: What must be sent for it.
        index: Which of the file's deltas, in the manifest's order.
    """

    kind: Kind
    wire_bytes: int
    index: int = 0


def choose(
    whole_bytes: int, chunk_bytes: int | None, deltas: Iterable[tuple[int, int]]
) -> tuple[Way, ...]:
    """Return the ways worth trying, the best one first, the whole file last.

    Args:
        whole_bytes: What of the whole file is still to be sent.
        chunk_bytes: What its missing chunks need; None where no list tells.
        deltas: Index and bytes of each delta whose base is in the store.
    """
    ways = [Way("delta", size, index) for index, size in deltas]
    if chunk_bytes is not None:
        # First among equals: chunks need no base of their own and no computing.
        ways.insert(0, Way("chunks", chunk_bytes))
    worth = [way for way in ways if is_worth(way.wire_bytes, whole_bytes)]
    return (*sorted(worth, key=lambda way: way.wire_bytes), Way("whole", whole_bytes))


def is_worth(wire_bytes: int, otherwise_bytes: int) -> bool:
    """Whether a way saves enough, at least 20 % and 256 KiB, against another."""
    saved = otherwise_bytes - wire_bytes
    return saved >= WORTH_BYTES and saved >= WORTH_SHARE * otherwise_bytes
