"""The measurements: each starts one system on a fresh broker and returns figures by name."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import processes, stats
from bench.broker import Broker
from bench.driver import Driver, LoadFailed
from bench.stats import LoadReport
from bench.systems import Agents, Job, Running, System

Figures = dict[str, float]

PROBES_PER_S, PROBES = 200, 12_000
SENSOR_RATE = 200.0
OPEN_LOOP_RATE = 500.0


@dataclass(frozen=True)
class Scenario:
    """A model, a quality of service and a broker.

    Args:
        name: Stands in results.
        window_1: Messages at one in flight.
        window_64: Messages at 64 in flight.
    """

    name: str
    model: str
    qos: int
    no_delay: bool
    window_1: int
    window_64: int

    @property
    def title(self) -> str:
        broker = "" if self.no_delay else ", default broker"
        return f"{self.model} QoS {self.qos}{broker}"


SCENARIOS = (
    Scenario("tab-0", "tab", 0, True, 4000, 16_000),
    Scenario("tab-1", "tab", 1, True, 4000, 16_000),
    Scenario("tab-1-default", "tab", 1, False, 4000, 16_000),
    Scenario("kws-0", "kws", 0, True, 1500, 4000),
    Scenario("img-0", "img", 0, True, 1500, 4000),
)


@dataclass(frozen=True)
class Bench:
    """Where things are, and how long to measure."""

    work: Path
    prepared: Path
    load: list[str]
    agents: Agents
    # Divides the numbers of messages.
    haste: int = 1
    problems: list[str] = field(default_factory=list)

    def steady(self, system: System, scenario: Scenario) -> Figures:
        """Start to first answer; round trips one at a time; 64 in flight; memory after that."""
        with self._started(system, scenario) as (running, driver, figures):
            driver.window(1, 300)
            driver.window(64, 1000)
            figures |= self._window(running, driver, 1, scenario.window_1 // self.haste)
            figures |= self._window(running, driver, 64, scenario.window_64 // self.haste)
            if scenario.model == "tab":
                count = int(OPEN_LOOP_RATE * 2)
                report = self._checked(driver.rate(OPEN_LOOP_RATE, count), "open loop")
                figures |= _latencies("open", report)
            figures |= _memory(running)
        return figures

    def kill(self, system: System, scenario: Scenario) -> Figures:
        """Kill what holds the model while sensors send; the scripts are started again."""
        with self._started(system, scenario) as (running, driver, figures):
            driver.window(1, 300)
            load = driver.start_rate(SENSOR_RATE, 1000)
            time.sleep(1.5)
            killed_s = running.crash()
            report = driver.finish(load)
            figures["next_ms"] = stats.next_answer_ms(report, killed_s)
            figures["silence_ms"] = stats.longest_silence_ms(report, killed_s, killed_s + 2)
            figures |= _losses(report)
        return figures

    def switch(self, system: System, scenario: Scenario) -> Figures:
        """Let version 2 take over while sensors send."""
        with self._started(system, scenario) as (running, driver, figures):
            driver.window(1, 300)
            load = driver.start_rate(SENSOR_RATE, 1000)
            time.sleep(1.0)
            ordered_s = running.order_new()
            report = driver.finish(load)
            found = stats.switch(report, ordered_s, "1", "2")
            if found is None:
                raise LoadFailed(f"{system.name}: version 2 never answered")
            figures |= {key: float(value) for key, value in found._asdict().items()}
            figures |= _losses(report)
        return figures

    def idle(self) -> Figures:
        """The daemon alone, without a slot."""
        with self._folder() as folder, Broker(folder, no_delay=True) as broker:
            agent = self.agents.start_idle(Job(self.prepared, folder, broker.port, "tab", 0))
            try:
                time.sleep(0.5)  # what it does at the start is over
                return {"idle_mb": processes.pss_mb(processes.tree(agent.root))}
            finally:
                agent.stop()

    def bring_packs(self, scenarios: list[Scenario]) -> None:
        """Let agents prove every pack once, so that each start finds it in the store."""
        for model, qos in sorted({(scenario.model, scenario.qos) for scenario in scenarios}):
            with self._folder() as folder, Broker(folder, no_delay=True) as broker:
                self.agents.bring_pack(Job(self.prepared, folder, broker.port, model, qos))

    # -- parts --------------------------------------------------------------------------------

    @contextmanager
    def _started(
        self, system: System, scenario: Scenario
    ) -> Iterator[tuple[Running, Driver, Figures]]:
        with self._folder() as folder, Broker(folder, no_delay=scenario.no_delay) as broker:
            job = Job(self.prepared, folder, broker.port, scenario.model, scenario.qos)
            messages = self.prepared / "messages" / f"{scenario.model}.bin"
            driver = Driver(self.load, broker.port, scenario.qos, messages)
            before = len(self.problems)
            probing = driver.start_first(PROBES_PER_S, PROBES)
            started_s = time.monotonic()
            running = system.start(job)
            try:
                first = driver.finish(probing)
                if not first.arrivals:
                    log = (folder / "log").read_text(errors="replace")[-2000:]
                    raise LoadFailed(f"{system.name} never answered; it said:\n{log}")
                figures = {"start_ms": (first.arrivals[0][0] - started_s) * 1e3}
                yield running, driver, figures
            finally:
                running.stop()
            for number in range(before, len(self.problems)):
                self.problems[number] = f"{scenario.name} {system.name}: {self.problems[number]}"

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(dir=self.work))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _window(self, running: Running, driver: Driver, in_flight: int, count: int) -> Figures:
        before_s = processes.cpu_s(processes.tree(running.root))
        report = driver.window(in_flight, count)
        used_s = processes.cpu_s(processes.tree(running.root)) - before_s
        name = f"w{in_flight}"
        self._checked(report, name)
        return _latencies(name, report) | {
            f"{name}_rate": report.answered / report.wall_s,
            f"{name}_cpu_us": used_s / report.answered * 1e6,
            f"{name}_load_share": report.cpu_s / used_s if used_s else 0.0,
            f"{name}_stalls": float(stats.stalls(report)),
        }

    def _checked(self, report: LoadReport, where: str) -> LoadReport:
        for what in ("lost", "duplicates", "wrong", "stray", "disordered"):
            count = getattr(report, what)
            if count:
                self.problems.append(f"{where}: {count} {what} of {report.sent}")
        return report


def _latencies(name: str, report: LoadReport) -> Figures:
    ascending = report.latencies_us
    return {
        f"{name}_p50_us": stats.percentile(ascending, 50),
        f"{name}_p99_us": stats.percentile(ascending, 99),
        f"{name}_max_us": ascending[-1],
    }


def _losses(report: LoadReport) -> Figures:
    names = ("sent", "lost", "duplicates", "split", "wrong", "disordered")
    return {name: float(getattr(report, name)) for name in names}


def _memory(running: Running) -> Figures:
    pids = processes.tree(running.root)
    try:
        return {
            "tree_mb": processes.pss_mb(pids),
            "alone_mb": processes.alone_mb(pids),
            "root_mb": processes.pss_mb([running.root]),
        }
    except PermissionError:
        return {}
