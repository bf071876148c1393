"""Builds and runs the load generator."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench.stats import LoadReport, parse_report

OUTPUT_TOPIC = "bench/out"
_HERE = Path(__file__).parent
# A slow system is not measured for longer than a fast one.
LIMIT_MS = 4000
FOR_EVER_MS = 3_600_000


class LoadFailed(Exception):
    """The load generator did not run to its end."""


def build(folder: Path) -> list[str]:
    """Return the command of a load generator: load.c where there is a compiler, else load.py."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is not None:
        target = folder / "load"
        made = subprocess.run(
            [compiler, "-O2", "-o", str(target), str(_HERE / "load.c"), "-lm"],
            capture_output=True,
            check=False,
        )
        if made.returncode == 0:
            return [str(target)]
    return [sys.executable, "-m", "bench.load"]


@dataclass
class Driver:
    """Sends the messages of one model to one broker."""

    command: list[str]
    port: int
    qos: int
    messages: Path
    _epoch: int = field(default=0, init=False)

    def window(
        self, in_flight: int, count: int, *, limit_ms: int = LIMIT_MS, drain_ms: int = 5000
    ) -> LoadReport:
        """Keep messages in flight until `count` are answered, or for `limit_ms`."""
        return self.finish(self._start("window", in_flight, count, limit_ms, drain_ms))

    def rate(self, per_s: float, count: int, drain_ms: int = 2000) -> LoadReport:
        """Send on a schedule."""
        return self.finish(self.start_rate(per_s, count, drain_ms))

    def start_rate(self, per_s: float, count: int, drain_ms: int = 5000) -> subprocess.Popen[bytes]:
        """Begin to send on a schedule; `finish` waits for the end."""
        return self._start("rate", per_s, count, FOR_EVER_MS, drain_ms)

    def start_first(self, per_s: float, count: int) -> subprocess.Popen[bytes]:
        """Begin to send on a schedule, until something is answered."""
        return self._start("first", per_s, count, FOR_EVER_MS, 1000)

    def finish(self, running: subprocess.Popen[bytes]) -> LoadReport:
        """Wait for a load that was begun, and read what it saw.

        Raises:
            LoadFailed: It did not run to its end; says why.
        """
        out, said = running.communicate()
        if running.returncode != 0:
            raise LoadFailed(said.decode(errors="replace").strip() or "the load generator failed")
        return parse_report(out)

    def _start(
        self, mode: str, number: float, count: int, limit_ms: int, drain_ms: int
    ) -> subprocess.Popen[bytes]:
        self._epoch = self._epoch % 99 + 1
        words = (self.port, self.qos, self._epoch, OUTPUT_TOPIC, self.messages)
        more = (mode, number, count, limit_ms, drain_ms)
        return subprocess.Popen(
            [*self.command, *map(str, (*words, *more))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=_HERE.parent,
        )
