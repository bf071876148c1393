"""Choice by measurement over a folder of models: what is chosen, what is out and why, and whether a
second, independent contest agrees.

    python -m bench.choices MODELS [--budget SECONDS]

MODELS is a folder with an `index.json` whose `models` each have a `file`. The table is Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agent.author.bench import bench
from agent.author.folder import open_pack
from agent.author.pack import pack
from agent.cli.here import device_here
from agent.control.contest import Outcome
from agent.control.objections import PlanLimits
from agent.control.plan import Plan, plan
from agent.device.profiles import load
from agent.documents.choice import Way
from agent.documents.settings import Settings
from agent.errors import AgentError


class Row(NamedTuple):
    model: str
    candidates: int
    chosen: str
    median_ms: str
    # Times as fast as the first candidate, which one would run without measuring.
    gain: str
    # In a second contest: the chosen way's median over the best one's.
    again: str
    out: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.choices")
    parser.add_argument("models", type=Path)
    parser.add_argument("--budget", type=float, default=5.0)
    asked = parser.parse_args()
    device = device_here(Settings())
    recognised = load().recognise(device)
    print(f"profile {recognised.name}, {device.cpu.usable:g} processors\n")
    print("| model | ways | chosen | median | gain | again | out or left out |")
    print("|---|---:|---|---:|---:|---:|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, file in _models(asked.models):
            try:
                opened = open_pack(pack(file, Path(folder) / name).directory)
            except AgentError as error:
                print(f"| {name} | | not packed | | | | {error.message} |")
                continue
            planned = plan(opened.manifest, device, recognised, PlanLimits(variants=16))
            ways = [candidate.way for candidate in planned.candidates]
            memory_bytes = device.memory.available_bytes // 2
            first, second = (
                bench(opened, ways, budget_s=asked.budget, memory_bytes=memory_bytes)
                for _ in range(2)
            )
            print("| " + " | ".join(map(str, _row(name, ways, planned, first, second))) + " |")
            sys.stdout.flush()
    return 0


def _models(folder: Path) -> Iterator[tuple[str, Path]]:
    index = json.loads((folder / "index.json").read_text())
    for model in index["models"]:
        yield model["name"], folder / model["file"]


def _row(name: str, ways: list[Way], planned: Plan, first: Outcome, second: Outcome) -> Row:
    out = [f"{tried.way}: {tried.excluded}" for tried in first.tried if tried.excluded]
    reasons = "; ".join((*out, *planned.refused)).replace("|", "/") or "-"
    if not first.passed:
        return Row(name, len(ways), "nothing", "", "", "", reasons)
    chosen = first.passed[0]
    before = _median(first, ways[0])
    best_again = min(tried.median_ms or 0.0 for tried in second.passed)
    return Row(
        name,
        len(ways),
        str(chosen.way),
        f"{chosen.median_ms:.3g} ms",
        f"{before / (chosen.median_ms or 1):.2f}" if before else "-",
        f"{_median(second, chosen.way) / best_again:.2f}",
        reasons,
    )


def _median(outcome: Outcome, way: Way) -> float:
    found = (tried.median_ms for tried in outcome.passed if tried.way == way)
    return next(found, None) or 0.0


if __name__ == "__main__":
    raise SystemExit(main())
