"""`edgeward run` that kills itself at its Nth save or act: `--config FILE`, EDGE_KILL_AT=N.

Every change of the disk and every act of a deployment is one point; the point before which the
process dies is chosen by number. With EDGE_KILL_AT=0 it counts them and writes the count to
EDGE_POINTS at its end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agent.cli.configuration import load_settings
from agent.control import events
from agent.daemon import app, reconciler
from agent.store.files import Files


class Points:
    """Counts points from the moment the desired document arrives."""

    def __init__(self, kill_at: int, log: Path) -> None:
        self._kill_at = kill_at
        self._log = log
        self._seen = 0
        self.armed = False

    def reached(self, what: str) -> None:
        if not self.armed:
            return
        self._seen += 1
        with self._log.open("a") as log:
            log.write(f"{self._seen} {what}\n")
        if self._seen == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


POINTS = Points(int(os.environ["EDGE_KILL_AT"]), Path(os.environ["EDGE_POINTS"]))


class KillingFiles(Files):
    """The file layer, with a point before each change."""

    def before(self, op: Any, path: Path) -> None:
        # What is written when the clock says so would come at another point in each run.
        timely = "spool" in str(path) or "power" in path.name or "log" in path.parts[-2:-1]
        if not timely:
            POINTS.reached(f"{op} {path.name[:20]}")


class KillingReconciler(reconciler.Reconciler):
    """The reconciler, with a point before and after each act."""

    def feed(self, event: events.Event, saved: asyncio.Future[None] | None = None) -> None:
        if isinstance(event, events.DesiredArrived) and event.deployment.deployment == "two":
            POINTS.armed = True
        POINTS.reached(f"after: {type(event).__name__}")
        super().feed(event, saved)

    def _perform(self, action: events.Action) -> None:
        POINTS.reached(f"before: {type(action).__name__}")
        super()._perform(action)


def main() -> int:
    vars(app)["Reconciler"] = KillingReconciler
    settings = load_settings(Path(sys.argv[sys.argv.index("--config") + 1]))
    return app.main(settings, files=KillingFiles())


if __name__ == "__main__":
    sys.exit(main())
