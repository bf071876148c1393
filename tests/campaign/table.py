"""The figures of a campaign: as JSON, and as the tables of `docs/robustness.md`."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from tests.campaign import blind
from tests.campaign.outcome import ENDS, Outcome

_LIBRARIES = ("onnxruntime", "ai-edge-litert", "numpy")
_WORST = 5


def machine() -> str:
    """Return this machine in words."""
    info = Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2].strip() for line in info.splitlines() if "model name" in line]
    found = [f"{name} {version(name)}" for name in _LIBRARIES if _is_installed(name)]
    words = (
        f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        *found,
    )
    return ", ".join(words)


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def result(
    outcomes: Sequence[Outcome], *, seed: int, seconds: float, sources: Sequence[str]
) -> dict[str, Any]:
    """Return all figures of a campaign, and every outcome that is an offence."""
    slowest = sorted(outcomes, key=lambda one: -sum(one.seconds.values()))[:_WORST]
    return {
        "files": len(outcomes),
        "seed": seed,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "sources": list(sources),
        "ends": _counts(outcomes, lambda one: one.format, lambda one: one.end),
        "forced": _counts(
            [one for one in outcomes if one.forced], lambda one: one.format, lambda one: one.forced
        ),
        "mutations": {
            kind: _counts(
                [one for one in outcomes if one.format == kind],
                lambda one: one.mutation,
                lambda one: one.end,
            )
            for kind in sorted({one.format for one in outcomes})
        },
        "codes": dict(Counter(one.code for one in outcomes if one.code).most_common()),
        "slowest": [
            {"id": one.id, "source": one.source, "end": one.end, "seconds": one.seconds}
            for one in slowest
        ],
        "offences": msgspec.to_builtins([one for one in outcomes if one.offences]),
    }


def _counts(
    outcomes: Iterable[Outcome], row: Callable[[Outcome], str], column: Callable[[Outcome], str]
) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = {}
    for one in outcomes:
        counted.setdefault(row(one), Counter())[column(one)] += 1
    return {name: dict(counted[name]) for name in sorted(counted)}


def markdown(figures: dict[str, Any]) -> str:
    """Return the tables, widest view first."""
    parts = [
        f"{figures['files']} files, seed {figures['seed']}, {figures['date']}, "
        f"{figures['seconds']:.0f} s; {figures['machine']}. "
        f"**{len(figures['offences'])} offences.**",
        _table("format", figures["ends"], total=True),
        "What a runtime did with the files that would not have come so far, loaded by force:",
        _table("format", figures["forced"]),
    ]
    for kind, counts in figures["mutations"].items():
        structured = {name: row for name, row in counts.items() if name not in blind.CHANGES}
        blindly = {name: row for name, row in counts.items() if name in blind.CHANGES}
        for title, rows in (("structured", structured), ("blind", blindly)):
            if rows:
                parts.append(_table(f"{kind}, {title}", rows))
    return "\n\n".join(parts) + "\n"


def _table(title: str, rows: dict[str, dict[str, int]], *, total: bool = False) -> str:
    ends = [end for end in (*ENDS, "lost") if any(end in row for row in rows.values())]
    lines = [f"| {title} | files | {' | '.join(ends)} |", "|---|" + "---:|" * (len(ends) + 1)]
    shown = dict(rows)
    if total:
        shown["**all**"] = dict(sum((Counter(row) for row in rows.values()), Counter[str]()))
    for name, row in shown.items():
        cells = [str(row.get(end, "")) for end in ends]
        lines.append(f"| {name} | {sum(row.values())} | {' | '.join(cells)} |")
    return "\n".join(lines)
