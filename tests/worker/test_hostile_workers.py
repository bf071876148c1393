"""A worker that is somebody else's program: what it tries is stopped, by which layers, and what is
left where a layer is missing. docs/isolation.md shows the same as a table."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.worker.attacked import run_hostile, succeeded

ROOTED = Path(__file__).with_name("rooted.py")
# What the filter of system calls alone stops.
BY_CALLS_ONLY = {
    "fork",
    "clone",
    "make a socket pair",
    "open a netlink socket",
    "make a user namespace",
    "change the root",
    "use a key",
    "outlive the daemon",
    "become dumpable",
    "fill shared memory",
    "fill a growing mapping",
    "fill a memory file",
    "fill System V memory",
}
# The names of the host's processes show in the host's /proc; never a secret in an argument list.
NAMES = {"list processes"}
# Without namespaces and Landlock a file is as readable as it is to the agent's user.
READABLE = {"read /etc/passwd", "read the daemon's state", "read another pack"}
WITHOUT = {
    "user": NAMES,
    "net": set(),
    "mnt": NAMES,
    "ipc": set(),
    "pid": set(),
    "root": NAMES,
    "landlock": set(),
    "syscalls": BY_CALLS_ONLY,
    "allow_list": set(),
}
LEVELS = {"user": "basic", "net": "basic", "syscalls": "basic"}


def has_user_namespaces() -> bool:
    return subprocess.run(["unshare", "-Urn", "true"], capture_output=True).returncode == 0


needs_namespaces = pytest.mark.skipif(
    not has_user_namespaces(), reason="there are no user namespaces here"
)


def as_another_user() -> list[str]:
    """Return a command line that makes what follows an ordinary user's."""
    wrappers = [
        ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"],
        ["unshare", "-U", "--map-user=1000", "--map-group=1000"],
    ]
    for wrapper in wrappers:
        command = [*wrapper, sys.executable, "-c", "import msgspec, agent"]
        if shutil.which(wrapper[0]) and not subprocess.run(command, capture_output=True).returncode:
            return wrapper
    pytest.skip("there is no other user to be here")


def as_root_without_namespaces() -> list[str]:
    """Return a command line by which what follows is root's, where nobody has namespaces."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a worker another user")
    wrapper = [sys.executable, str(ROOTED)]
    tried = subprocess.run([*wrapper, sys.executable, "-c", ""], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"root may not take its namespaces here: {tried.stderr.splitlines()[-1]}")
    return wrapper


def check_rights(result: Any) -> None:
    told = result["told"]
    if "syscalls" not in told["isolation"]["layers"]:
        # Then it has made itself a user namespace, with every right inside it.
        return
    assert told["may"] == {
        "thread": True,
        "pack": "done",
        "processors": "done",
        "processor": "done",
        "imports": "done",
    }
    assert (told["capabilities"], told["no_new_privs"], told["dumpable"]) == (0, 1, 0)


@needs_namespaces
def test_with_all_layers_nothing_succeeds() -> None:
    result = run_hostile()
    assert succeeded(result) == set()
    check_rights(result)
    isolation = result["told"]["isolation"]
    assert isolation["layers"]["root"] == "private"
    assert isolation["layers"]["syscalls"] == "allow-list"
    assert isolation["level"] == "strong"


@needs_namespaces
@pytest.mark.parametrize("layer", WITHOUT)
def test_without_one_layer_the_others_hold(layer: str) -> None:
    result = run_hostile(off=[layer])
    assert succeeded(result) == WITHOUT[layer]
    check_rights(result)
    isolation = result["told"]["isolation"]
    assert isolation["missing"][layer] == "switched off"
    assert isolation["level"] == LEVELS.get(layer, "strong")


@needs_namespaces
@pytest.mark.parametrize("layer", ["", "root", "landlock", "pid", "syscalls"])
def test_it_is_the_same_for_an_ordinary_user(layer: str) -> None:
    result = run_hostile(as_another_user(), off=[layer] if layer else [])
    # Of an ordinary user the kernel counts the threads, so even without the filter no fork bomb.
    assert succeeded(result) == (WITHOUT[layer] if layer else set())
    check_rights(result)


@needs_namespaces
def test_without_namespaces_the_level_is_basic_and_landlock_guards_files() -> None:
    none_left = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    result = run_hostile(["unshare", "-Ur", "sh", "-c", none_left, "sh"])
    isolation = result["told"]["isolation"]
    assert isolation["level"] == "basic"
    assert isolation["layers"]["network"] == "syscalls"
    assert isolation["missing"]["user"] == "unshare: No space left on device"
    left = NAMES if "landlock" in isolation["layers"] else NAMES | READABLE
    assert succeeded(result) == left
    check_rights(result)


# What a process of another user may not do to one of root's, nor to its files.
BY_USER = {
    *("read the daemon's state", "read another pack", "read the daemon's environment"),
    *("read the daemon's memory", "trace the daemon", "kill the daemon", "limit the daemon"),
    *("slow the daemon", "move the daemon", "mount", "set the clock", "change the root"),
}


def test_root_without_user_namespaces_makes_a_worker_another_user() -> None:
    result = run_hostile(as_root_without_namespaces(), private=True)
    isolation = result["told"]["isolation"]
    assert isolation["level"] == "basic"
    assert isolation["layers"]["uid"] == "60999"
    assert isolation["missing"]["user"] == "unshare: No space left on device"
    assert "uid" not in isolation["missing"]
    left = NAMES if "landlock" in isolation["layers"] else NAMES | {"read /etc/passwd"}
    assert succeeded(result) == left
    check_rights(result)


def test_another_user_alone_has_no_say_over_the_daemon_and_its_files() -> None:
    result = run_hostile(as_root_without_namespaces(), private=True, only=["uid"])
    assert result["told"]["isolation"]["layers"]["uid"] == "60999"
    assert not succeeded(result) & BY_USER
    without = run_hostile(as_root_without_namespaces(), private=True, only=[])
    assert succeeded(without) >= {"read the daemon's state", "read another pack", "kill the daemon"}


def test_who_is_not_root_needs_no_other_user() -> None:
    isolation = run_hostile(as_another_user(), off=["user"])["told"]["isolation"]
    assert "uid" not in {**isolation["layers"], **isolation["missing"]}


@needs_namespaces
def test_a_user_that_cannot_be_had_is_told() -> None:
    # In this namespace there is none but root.
    none_left = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    isolation = run_hostile(["unshare", "-Ur", "sh", "-c", none_left, "sh"])["told"]["isolation"]
    assert isolation["missing"]["uid"].startswith("user 60999: ")


def test_the_filter_alone_is_basic_and_does_not_guard_what_the_user_may_read() -> None:
    result = run_hostile(only=["syscalls", "allow_list"])
    assert result["told"]["isolation"]["level"] == "basic"
    assert succeeded(result) == NAMES | READABLE
    check_rights(result)


def test_with_no_layer_there_is_no_level() -> None:
    result = run_hostile(only=[])
    assert result["told"]["isolation"].get("level", "none") == "none"
    # The attacks are real: each that a layer is said to stop succeeds without any.
    assert succeeded(result) >= BY_CALLS_ONLY | NAMES | READABLE | {
        "connect by TCP",
        "send by UDP",
        "connect to a Unix socket",
        "connect to an abstract socket",
        "start a program",
        "write a file",
        "append to a file",
        "create a file",
        "truncate a file",
        "kill the daemon",
        "watch the daemon",
        "limit the daemon",
    }


@needs_namespaces
@pytest.mark.parametrize(
    ("policy", "more"),
    [
        ("edgetpu-pci", set()),
        ("edgetpu-usb", {"open a netlink socket"}),
        ("gpu", {"fill a memory file", "fill shared memory", "fill a growing mapping"}),
    ],
)
def test_a_weaker_policy_allows_what_it_names_and_no_more(policy: str, more: set[str]) -> None:
    result = run_hostile(policy=policy)
    assert succeeded(result) == more
    assert result["told"]["isolation"]["policy"] == policy
    check_rights(result)


@pytest.mark.parametrize(
    ("death", "status"),
    [
        ("exit", 0),
        ("abort", -signal.SIGABRT),
        ("crash", -signal.SIGSEGV),
        ("signal", -signal.SIGSEGV),
        ("cpu", -signal.SIGXCPU),
    ],
)
def test_how_it_ended_can_be_told_from_its_status(death: str, status: int) -> None:
    assert run_hostile(die=death)["status"] == status
