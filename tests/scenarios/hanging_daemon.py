"""`edgeward run` whose ONNX models hang, or take long, when they are told to: `--config FILE`.

A run takes as many milliseconds of processor time as the first number of its input says. From
`ASLEEP` on it sleeps for ever, from `SPINNING` on it computes for ever. Told by a signal, the next
run does so: SIGUSR1 sleeps, SIGUSR2 computes.

The same file, started with a runtime's name in place of `--config`, is the template of that daemon.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

PROGRAM = Path(__file__)
# Powers of two, which any kind of float holds.
ASLEEP, SPINNING = 2.0**60, 2.0**61
_MODULE = "tests.scenarios.hanging_daemon"


class Session:
    """A session of ONNX Runtime that is told by its input how to behave."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._told = 0.0
        for sign, how in ((signal.SIGUSR1, ASLEEP), (signal.SIGUSR2, SPINNING)):
            signal.signal(sign, lambda *_, how=how: self._tell(how))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, arrays: Any) -> Any:
        told = max(float(next(iter(arrays.values())).flat[0]), self._told)
        if told >= SPINNING:
            _spin()
        if told >= ASLEEP:
            _sleep()
        ends = time.thread_time() + told / 1000
        while time.thread_time() < ends:
            pass
        return self._session.run(arrays)

    def _tell(self, how: float) -> None:
        self._told = how


class Runtime:
    """ONNX Runtime, whose sessions are told how to behave."""

    def __init__(self) -> None:
        from agent.runtimes.onnx import OnnxRuntime

        self._runtime = OnnxRuntime()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def load(self, model: Path, wanted: Any, *, outputs: Sequence[str] = ()) -> Session:
        return Session(self._runtime.load(model, wanted, outputs=outputs))


def _spin() -> NoReturn:
    while True:
        pass


def _sleep() -> NoReturn:
    while True:
        time.sleep(1000)


def be_template() -> None:
    from agent.runtimes import registry
    from agent.worker.__main__ import main

    registry.BUILT_IN["onnx"] = f"{_MODULE}:Runtime"
    main()


def be_daemon() -> int:
    from agent.cli.configuration import load_settings
    from agent.daemon import app

    config = Path(sys.argv[sys.argv.index("--config") + 1])
    python = sys.executable
    stand_in = config.with_name("python")
    template = f'shift 3; exec {python} -I {PROGRAM} "$@"'
    stand_in.write_text(
        f'#!/bin/sh\nif [ "$3" = agent.worker ]; then {template}; fi\nexec {python} "$@"\n'
    )
    stand_in.chmod(0o755)
    sys.executable = str(stand_in)
    return app.main(load_settings(config))


if __name__ == "__main__":
    if "--config" in sys.argv:
        sys.exit(be_daemon())
    be_template()
