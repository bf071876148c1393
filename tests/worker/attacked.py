"""What a hostile worker has around it: listeners, files that everybody may write, a victim."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

FILES = (
    *("state/device.json", "other/model", "pack/model"),
    *("open/victim", "open/second", "open/third"),
)
PROGRAM = Path(__file__).with_name("confined.py")


def run_hostile(wrapper: Sequence[str] = (), *, private: bool = False, **setting: Any) -> Any:
    """Run `confined.py` amid things to attack; return what it tells.

    Args:
        wrapper: A command line to run it, and its victim, by.
        private: The daemon's files and other packs are for their owner alone.
        setting: Of `confined.Setting`, beyond what is to attack.
    """
    # Test folders are their user's alone; these are everybody's.
    with tempfile.TemporaryDirectory() as folder:
        return _run(Path(folder), wrapper, private, setting)


def _run(folder: Path, wrapper: Sequence[str], private: bool, setting: dict[str, Any]) -> Any:
    for name in ("state", "other", "pack", "open"):
        (folder / name).mkdir()
    for name in FILES:
        (folder / name).write_text("precious")
    # Nothing but the confinement is in the way.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)
        if wrapper[:1] == ["setpriv"]:
            os.chown(path, 1000, 1000)
    if private:
        for name in ("state", "other"):
            (folder / name).chmod(0o700)
    abstract = f"edgeward-test-{os.getpid()}-{id(folder)}"
    with ExitStack() as kept:
        server = kept.enter_context(socket.create_server(("127.0.0.1", 0)))
        addresses = [str(folder / "open" / "api.sock"), "\0" + abstract]
        for address in addresses:
            listener = kept.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(address)
            listener.listen()
        Path(addresses[0]).chmod(0o777)
        idle = [*wrapper, sys.executable, "-c", "input()"]
        victim = kept.enter_context(subprocess.Popen(idle, stdin=subprocess.PIPE))
        around = {
            "port": server.getsockname()[1],
            "unix": addresses[0],
            "abstract": abstract,
            "victim": victim.pid,
            "state": str(folder / "state" / "device.json"),
            "other": str(folder / "other" / "model"),
            "pack": str(folder / "pack"),
            "file": str(folder / "open" / "victim"),
        }
        done = subprocess.run(
            [*wrapper, sys.executable, str(PROGRAM), json.dumps(around | setting)],
            capture_output=True,
            timeout=50,
            env=dict(os.environ, PYTHONPATH=str(PROGRAM.parents[2])),
        )
        victim.kill()
        for place in ("/tmp", "/dev/shm"):
            Path(place, f"edgeward-hostile-{victim.pid}").unlink(missing_ok=True)
    assert done.stdout, done.stderr.decode()
    assert not done.stderr, done.stderr.decode()
    return json.loads(done.stdout)


def succeeded(result: Any) -> set[str]:
    """Return the attacks that nothing has stopped."""
    return {name for name, what in result["told"]["tries"].items() if what == "done"}
