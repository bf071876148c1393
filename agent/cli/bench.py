"""`edgeward bench`: how fast each way to run a pack is on this machine, and which one is chosen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.author.bench import bench as measure
from agent.author.folder import OpenedPack, open_pack, require_whole
from agent.cli import exits, options
from agent.cli.commands import HELP_SETTINGS
from agent.cli.here import device_here, settings_here
from agent.control.contest import Outcome
from agent.control.objections import PlanLimits
from agent.control.plan import Plan, plan
from agent.control.profiles import Recognised
from agent.device.profiles import load
from agent.documents.choice import Tried, Way
from agent.documents.deployment import Pin
from agent.documents.device import Device

_MB = 1e6
_DASH = "-"


@click.command(
    context_settings=HELP_SETTINGS,
    epilog="\b\nExamples:\n"
    "  edgeward bench build/vibration\n"
    "  edgeward bench build/vibration --variant int8 --budget 5 --json\n\n"
    + exits.epilog(exits.DONE, exits.FAILED, exits.USAGE, exits.BAD_PACK, exits.WILL_NOT_RUN),
)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--variant", default="", help="Measure only this variant.")
@click.option("--runtime", default="", help="Measure only this runtime.")
@click.option("--provider", default="", help="Measure only this provider; CPU for none.")
@click.option("--threads", type=click.IntRange(1, 256), help="Measure only so many threads.")
@click.option(
    "--budget", type=click.FloatRange(0.0, 3600.0), help="Seconds for measuring, all together."
)
@options.config
@options.as_json
def bench(
    directory: Path,
    variant: str,
    runtime: str,
    provider: str,
    threads: int | None,
    budget: float | None,
    config: Path | None,
    as_json: bool,
) -> int:
    """Measure every way to run the pack in DIRECTORY here, and say which a device would choose.

    Each way passes the pack's self-test first, in a process of its own, and is then measured in
    turn with the others. A slot's `pin` takes the same names.
    """
    opened = open_pack(directory)
    require_whole(opened)
    device = device_here(settings_here(config))
    recognised = load().recognise(device)
    pin = Pin(variant, runtime, provider, threads)
    planned = plan(opened.manifest, device, recognised, PlanLimits(variants=16), pin)
    outcome = _hold(opened, planned, device, recognised, budget, quiet=as_json)
    if as_json:
        print(msgspec.json.encode(_document(opened, recognised, planned, outcome)).decode())
    else:
        _show(opened, planned, outcome)
    return exits.DONE if outcome.passed else exits.WILL_NOT_RUN


def _hold(
    opened: OpenedPack,
    planned: Plan,
    device: Device,
    recognised: Recognised,
    budget_s: float | None,
    *,
    quiet: bool,
) -> Outcome:
    console = Console(stderr=True)
    ways = [candidate.way for candidate in planned.candidates]
    with console.status("") as status:

        def on_step(way: Way, what: str) -> None:
            if not quiet:
                status.update(f"{what} {escape(str(way))}")

        return measure(
            opened,
            ways,
            budget_s=recognised.limits.measure_s if budget_s is None else budget_s,
            memory_bytes=device.memory.available_bytes // 2,
            on_step=on_step,
        )


def _document(
    opened: OpenedPack, recognised: Recognised, planned: Plan, outcome: Outcome
) -> dict[str, Any]:
    return {
        "schema": 1,
        "pack": opened.pack,
        "name": opened.manifest.name,
        "version": opened.manifest.version,
        "profile": recognised.name,
        "chosen": outcome.passed[0].way if outcome.passed else None,
        "because": outcome.because,
        "tried": outcome.tried,
        "left_out": planned.refused,
    }


def _show(opened: OpenedPack, planned: Plan, outcome: Outcome) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(f"{escape(opened.manifest.name)} {escape(opened.manifest.version)}")
    if outcome.tried:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("way", "median", "best", "p95", "CPU", "first", "memory", ""):
            table.add_column(column, justify="left" if column in ("way", "") else "right")
        for place, tried in enumerate(outcome.tried):
            table.add_row(*_row(tried, chosen=place == 0 and bool(outcome.passed)))
        console.print(table)
    if outcome.passed:
        console.print(f"chosen: {escape(str(outcome.passed[0].way))}: {outcome.because}")
    for reason in planned.refused:
        console.print(f"left out: {escape(reason)}")


def _row(tried: Tried, *, chosen: bool) -> tuple[str, ...]:
    way = escape(str(tried.way))
    if tried.excluded or tried.median_ms is None:
        return (way, *(_DASH,) * 6, escape(f"out: {tried.excluded}"))
    memory = f"{(tried.peak_memory_bytes or 0) / _MB:.0f} MB"
    times = (tried.median_ms, tried.best_ms, tried.p95_ms, tried.cpu_ms, tried.first_ms)
    got = tried.placement.got if tried.placement is not None else ""
    note = f"{got}{', limited by heat' if tried.limited_by_heat else ''}"
    shown = f"[bold]{way}[/]" if chosen else way
    return (shown, *(f"{ms:.3g} ms" if ms is not None else _DASH for ms in times), memory, note)
