"""What a confined process can still do, tried from inside it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.errors import IsolationUnavailable
from agent.worker import confine

PROGRAM = Path(__file__).with_name("confined.py")


def run_confined(tmp_path: Path, wrapper: Sequence[str] = ()) -> Any:
    """Run the hostile program; return what it tells, with its exit status as `status`."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    file = folder / "victim"
    file.write_text("precious")
    file.chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        unix_path = folder / "api.sock"
        unix.bind(str(unix_path))
        unix_path.chmod(0o777)
        unix.listen()
        port = str(server.getsockname()[1])
        done = subprocess.run(
            [*wrapper, sys.executable, "-I", str(PROGRAM), port, str(file), str(unix_path)],
            capture_output=True,
            timeout=50,
        )
    assert done.stdout, done.stderr.decode()
    assert file.read_text() == "precious"
    assert sorted(path.name for path in folder.iterdir()) == ["api.sock", "victim"]
    told = json.loads(done.stdout)
    told["status"] = done.returncode
    return told


def check(told: Any) -> None:
    assert {name: what for name, what in told["tries"].items() if what == "done"} == {}
    assert told["thread"]
    assert told["reads"]
    assert told["memory"] == "refused"
    assert told["capabilities"] == 0
    assert told["no_new_privs"] == 1
    assert told["dumpable"] == 0
    assert told["oom_score_adj"] >= confine.OOM_SCORE_ADJ
    assert told["report"]["syscalls"] == "seccomp"
    assert told["status"] == -signal.SIGABRT


def has_user_namespaces() -> bool:
    return subprocess.run(["unshare", "-Urn", "true"], capture_output=True).returncode == 0


def test_a_confined_process_reaches_nothing(tmp_path: Path) -> None:
    told = run_confined(tmp_path)
    check(told)
    if has_user_namespaces():
        assert told["report"] == {"network": "namespace", "syscalls": "seccomp"}


def test_it_is_the_same_for_an_ordinary_user(tmp_path: Path) -> None:
    if not has_user_namespaces():
        pytest.skip("there are no user namespaces to play an ordinary user in")
    as_user = ["unshare", "-U", "--map-user=1000", "--map-group=1000"]
    # The shell stays, so that the parent too is a process of this user.
    told = run_confined(tmp_path, [*as_user, "sh", "-c", '"$@"; exit $?', "sh"])
    assert told["status"] == 128 + signal.SIGABRT
    check(told | {"status": -signal.SIGABRT})


def test_without_namespaces_the_filter_alone_denies_the_network(tmp_path: Path) -> None:
    if not has_user_namespaces():
        pytest.skip("there are no user namespaces to take away here")
    none_left = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    told = run_confined(tmp_path, ["unshare", "-Ur", "sh", "-c", none_left, "sh"])
    check(told)
    assert told["report"]["network"] == "seccomp"
    assert "unshare: " in told["report"]["missing_namespace"]


def test_only_the_named_descriptors_stay_open() -> None:
    code = """
import os
from agent.worker import confine
kept = os.open("/dev/null", os.O_RDONLY)
others = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
confine.close_all_but({0, 1, 2, kept})
print(sorted(map(int, os.listdir("/proc/self/fd")))[:-1] == [0, 1, 2, kept])
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    ("require", "network", "served"),
    [
        ("none", "none", True),
        ("none", "namespace", True),
        ("basic", "seccomp", True),
        ("basic", "namespace", True),
        ("basic", "none", False),
        ("strong", "namespace", False),
        ("full", "namespace", False),
        ("typing error", "namespace", False),
    ],
)
def test_below_the_level_that_is_required_nothing_serves(
    require: str, network: str, served: bool
) -> None:
    report = {"network": network, "missing_namespace": "unshare: Operation not permitted"}
    if served:
        confine.demand(require, report)
        return
    with pytest.raises(IsolationUnavailable, match="Operation not permitted"):
        confine.demand(require, report)
