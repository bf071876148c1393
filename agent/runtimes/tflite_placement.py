"""Which operators of a loaded TFLite model a delegate has taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from agent.documents.report import Placement

# What the interpreter calls a partition whose delegate has not named it.
PARTITION = "DELEGATE"
MAX_OPERATORS_NAMED = 6

Details = Sequence[Mapping[str, Any]]


def left_out(operators: Details, partition: str = PARTITION) -> list[str] | None:
    """Name the operators that no partition computes; None where there is no partition.

    The interpreter lists a model's own operators even when a partition computes them. Those are
    the ones from which a partition's outputs follow, back to its inputs.

    Args:
        operators: As the interpreter's `_get_ops_details()` gives them.
        partition: What it calls the partitions.
    """
    partitions = [entry for entry in operators if entry["op_name"] == partition]
    if not partitions:
        return None
    own = [entry for entry in operators if entry["op_name"] != partition]
    producer = {int(t): place for place, entry in enumerate(own) for t in entry["outputs"]}
    inside: set[int] = set()
    for entry in partitions:
        ends = set(map(int, entry["inputs"]))
        waiting = list(map(int, entry["outputs"]))
        while waiting:
            tensor = waiting.pop()
            place = producer.get(tensor)
            if tensor in ends or place is None or place in inside:
                continue
            inside.add(place)
            waiting += map(int, own[place]["inputs"])
    return [entry["op_name"] for place, entry in enumerate(own) if place not in inside]


def placement(wanted: str, delegate: str, operators: Details) -> Placement:
    """Say where a loaded model runs.

    Args:
        wanted: What was asked for; nothing: whatever the library takes.
        delegate: Whose partitions there may be.
        operators: As for `left_out`.
    """
    left = left_out(operators)
    if left is None:
        why = f"{delegate} takes none of the model's operators" if wanted == delegate else ""
        return Placement(wanted or "CPU", "CPU", 1.0, 1.0, why)
    total = sum(entry["op_name"] != PARTITION for entry in operators)
    if not left or not total:
        return Placement(wanted or delegate, delegate, 1.0, 1.0)
    counted = Counter(left).most_common()
    shown = [f"{count} {name}" for name, count in counted[:MAX_OPERATORS_NAMED]]
    more = " …" if len(counted) > MAX_OPERATORS_NAMED else ""
    return Placement(
        wanted or delegate,
        delegate,
        round(1 - len(left) / total, 4),
        why=f"{len(left)} of {total} operators run elsewhere: {', '.join(shown)}{more}",
    )
