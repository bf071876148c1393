"""One process of a campaign: `python -m tests.campaign.lane FOLDER`.

Reads orders from standard input and writes an outcome for each to standard output, one JSON object
a line. It is the parent of every template and worker, so it shows whether a parent can be hurt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from tests.campaign.course import Course, adopt_orphans
from tests.campaign.mutations import Mutated, mutate
from tests.campaign.outcome import Outcome
from tests.campaign.sources import Source

NICENESS = 10


class Order(msgspec.Struct, frozen=True):
    """Take file `number` of the campaign with this seed, or the bytes in `file`."""

    seed: int
    number: int
    file: str = ""
    source: str = ""
    mutation: str = ""


def current(folder: Path, pid: int) -> Path:
    """Return where a lane puts the bytes that it is at work on."""
    return folder / f"current-{pid}"


def main() -> None:
    """Obey until standard input ends."""
    folder = Path(sys.argv[1])
    os.nice(NICENESS)
    adopt_orphans()
    sources = msgspec.json.decode((folder / "sources.json").read_bytes(), type=list[Source])
    origins = [source.origin() for source in sources]
    scratch = folder / f"lane-{os.getpid()}"
    scratch.mkdir()
    course = Course(sources, scratch)
    try:
        for line in sys.stdin.buffer:
            order = msgspec.json.decode(line, type=Order)
            if order.file:
                file = Mutated(order.source, order.mutation, Path(order.file).read_bytes())
            else:
                file = mutate(origins, order.seed, order.number)
            # For who watches, should this process not live through it.
            current(folder, os.getpid()).write_bytes(file.data)
            _tell(course.take(f"{order.seed}-{order.number}", file))
    finally:
        course.close()


def _tell(outcome: Outcome) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
