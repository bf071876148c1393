"""Measure the agent beside hand-written scripts: `python -m bench` (`make bench`)."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import msgspec

from bench import table
from bench.broker import NoBroker, find_mosquitto, mosquitto_version
from bench.driver import LoadFailed, build
from bench.measure import SCENARIOS, Bench, Figures, Scenario
from bench.systems import REPOSITORY, Agents, System, SystemFailed, all_systems

MODELS = ("tab", "kws", "img")


def main() -> int:
    """Run the benchmark and print the table; a missed limit is shown, not an error.

    Returns:
        0 when everything was measured, 1 when something did not work.
    """
    options = _options()
    if options.one_cpu:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    try:
        find_mosquitto()
        with tempfile.TemporaryDirectory(prefix="edgeward-bench-") as folder:
            results, problems = _run(Path(folder), options)
    except (NoBroker, LoadFailed, SystemFailed) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    _print(results, problems, options)
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--quick", action="store_true", help="2 rounds, a quarter of the messages")
    parser.add_argument("--only", default="", help="of tab,kws,img,kill,switch; default: all")
    parser.add_argument("--systems", default="", help="of agent,expert,plain; default: all")
    parser.add_argument(
        "--one-cpu", action="store_true", help="all on one CPU: steadier, to compare two versions"
    )
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    options = parser.parse_args()
    options.only = options.only.split(",") if options.only else [*MODELS, "kill", "switch"]
    if options.quick:
        options.rounds = min(options.rounds, 2)
    return options


class _Collected:
    """Figures of all rounds, told as they come."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.results: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )

    def take(self, number: int, scenario: str, system: str, figures: Figures) -> None:
        for name, value in figures.items():
            self.results[scenario][system][name].append(value)
        shown = "  ".join(f"{k} {v:,.0f}" for k, v in figures.items() if k in _TOLD)
        print(
            f"round {number + 1}/{self.rounds}  {scenario:<14} {system:<7} {shown}",
            file=sys.stderr,
            flush=True,
        )


_TOLD = ("w1_p50_us", "w1_cpu_us", "w64_rate", "w64_cpu_us", "next_ms", "pause_ms", "lost",
         "idle_mb")  # fmt: skip


def _run(folder: Path, options: argparse.Namespace) -> tuple[table.Results, list[str]]:
    prepared = folder / "prepared"
    prepared.mkdir()
    print("making models, packs and messages", file=sys.stderr)
    subprocess.run(
        [sys.executable, "-m", "bench.prepare", str(prepared)], check=True, cwd=REPOSITORY
    )
    states = folder / "states"
    states.mkdir()
    agents = Agents(states)
    haste = 4 if options.quick else 1
    bench = Bench(folder, prepared, build(folder), agents, haste)
    if bench.load[-1] == "bench.load":
        print("no C compiler: the load generator is Python and costs more", file=sys.stderr)
    wanted = options.systems.split(",") if options.systems else ["agent", "expert", "plain"]
    systems = [system for name, system in all_systems(agents).items() if name in wanted]
    scenarios = [scenario for scenario in SCENARIOS if scenario.model in options.only]
    of_tab = next(scenario for scenario in SCENARIOS if scenario.name == "tab-1")
    if "agent" in wanted:
        bench.bring_packs([*scenarios, of_tab])
    collected = _Collected(options.rounds)
    _rounds(collected, bench, systems, scenarios)
    for name, measure in (("kill", bench.kill), ("switch", bench.switch)):
        if name in options.only:
            _events(collected, name, measure, systems, of_tab)
    if "agent" in wanted:
        for number in range(options.rounds):
            collected.take(number, "idle", "agent", bench.idle())
    return collected.results, bench.problems


def _rounds(
    collected: _Collected, bench: Bench, systems: list[System], scenarios: list[Scenario]
) -> None:
    for scenario in scenarios:
        for number in range(collected.rounds):
            for system in systems:
                figures = bench.steady(system, scenario)
                collected.take(number, scenario.name, system.name, figures)


def _events(
    collected: _Collected,
    name: str,
    measure: Callable[[System, Scenario], Figures],
    systems: list[System],
    scenario: Scenario,
) -> None:
    for number in range(collected.rounds):
        for system in systems:
            collected.take(number, name, system.name, measure(system, scenario))


def _print(results: table.Results, problems: list[str], options: argparse.Namespace) -> None:
    rows, missed = table.lines(results)
    print(table.as_markdown(rows) if options.markdown else table.as_text(rows))
    print(f"\n{_about(options.rounds)}")
    print("values are medians of rounds; ratios: median of the rounds' own (least–largest)")
    _print_load_share(results)
    for problem in problems:
        print(f"wrong: {problem}")
    print(f"{missed} limits missed" if missed else "every limit that was measured is kept")
    if options.json:
        everything = {"about": _about(options.rounds), "results": results, "problems": problems}
        options.json.write_bytes(msgspec.json.encode(everything))


def _print_load_share(results: table.Results) -> None:
    shares = [
        share
        for systems in results.values()
        for figures in systems.values()
        for name, values in figures.items()
        if name.endswith("_load_share")
        for share in values
    ]
    if shares:
        shares.sort()
        middle, most = shares[len(shares) // 2], shares[-1]
        print(
            f"the load generator used {middle:.0%} of the measured system's CPU, at most {most:.0%}"
        )


def _about(rounds: int) -> str:
    names = ("onnxruntime", "paho-mqtt", "numpy", "orjson")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"{rounds} rounds on {platform.system()} {platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} CPUs; "
        f"Python {platform.python_version()}, mosquitto {mosquitto_version()}, {versions}"
    )


if __name__ == "__main__":
    sys.exit(main())
