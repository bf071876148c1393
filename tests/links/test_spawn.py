"""How a template process is started and waited for."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

import pytest

from agent.links.spawn import CONTROL, Child, Spawned, spawn

# Tells on its control socket what it sees of itself, and lives until that is closed.
_TELLS = f"""
import os, socket
control = socket.socket(fileno={CONTROL})
print("printed", flush=True)
control.send(repr((dict(os.environ), os.getsid(0) == os.getpid(), sorted(
    int(n) for n in os.listdir("/proc/self/fd") if int(n) <= {CONTROL}))).encode())
control.recv(1)
"""


def start(code: str) -> Spawned:
    return spawn("test", [sys.executable, "-I", "-c", code], {"LANG": "C.UTF-8"})


def close(spawned: Spawned) -> None:
    spawned.control.close()
    os.close(spawned.output)


def test_it_gets_its_socket_its_environment_and_a_session_of_its_own() -> None:
    spawned = start(_TELLS)
    assert select.select([spawned.control], [], [], 20.0)[0]
    environment, leads, descriptors = eval(spawned.control.recv(4096))
    assert environment["LANG"] == "C.UTF-8"
    assert "PATH" not in environment
    assert leads
    assert descriptors == [0, 1, 2, CONTROL]
    assert os.read(spawned.output, 100) == b"printed\n"
    close(spawned)
    assert spawned.child.wait(20.0) == 0


def test_low_descriptors_that_are_closed_here_are_no_trouble() -> None:
    # A program that was started with its standard streams closed.
    inner = (
        "import os, sys\n"
        "from agent.links.spawn import spawn\n"
        "spawned = spawn('test', [sys.executable, '-I', '-c', sys.argv[1]], {})\n"
        "import select\n"
        "assert select.select([spawned.control], [], [], 20.0)[0]\n"
        "assert spawned.control.recv(4096)\n"
        "spawned.control.close()\n"
        "sys.exit(spawned.child.wait(20.0))\n"
    )
    code = f"import os, sys\nfor n in (0, 1, 2): os.close(n)\nsys.path[:0] = {sys.path!r}\n{inner}"
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code, _TELLS], dict(os.environ))
    assert Child(pid).wait(40.0) == 0


def test_waiting_has_a_deadline_and_tells_the_signal_afterwards() -> None:
    spawned = start(_TELLS)
    with pytest.raises(TimeoutError):
        spawned.child.wait(0.01)
    spawned.child.kill()
    assert spawned.child.wait(20.0) == -9
    spawned.child.kill()  # of no effect: the number may be another's by now
    assert spawned.child.wait() == -9
    close(spawned)


def test_a_program_that_is_not_there_leaves_nothing_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileNotFoundError):
        spawn("test", ["/nowhere/python"], {})
    assert len(list(Path("/proc/self/fd").iterdir())) == before
