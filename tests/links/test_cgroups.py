"""Control groups for workers, on a folder that plays the kernel's part."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import IsolationUnavailable
from agent.links import cgroups
from agent.links.cgroups import WorkerGroups

SERVICE = "system.slice/edgeward.service"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A delegated group with this process and a child of it."""
    monkeypatch.setattr(cgroups, "_is_delegated", lambda group: group.name == "edgeward.service")
    service = tmp_path / "fs" / SERVICE
    service.mkdir(parents=True)
    (tmp_path / "fs" / "cgroup.controllers").write_text("cpu memory pids\n")
    (service / "cgroup.controllers").write_text("memory pids\n")
    (service / "cgroup.subtree_control").write_text("")
    (service / "cgroup.procs").write_text("41\n42\n")
    (tmp_path / "own").write_text(f"1:name=systemd:/x\n0::/{SERVICE}\n")
    return tmp_path


def find(tree: Path) -> WorkerGroups:
    return WorkerGroups.find(tree / "fs", tree / "own")


def test_the_agent_moves_to_a_leaf_and_enables_the_controllers(tree: Path) -> None:
    find(tree)
    service = tree / "fs" / SERVICE
    # The kernel moves at each write; this file keeps the last.
    assert (service / "daemon" / "cgroup.procs").read_text() == "42"
    assert (service / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_an_agent_that_was_put_into_a_leaf_finds_the_group_above_it(tree: Path) -> None:
    (tree / "own").write_text(f"0::/{SERVICE}/main\n")
    (tree / "fs" / SERVICE / "main").mkdir()
    find(tree)
    assert (tree / "fs" / SERVICE / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_a_worker_gets_a_group_with_its_limits(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = find(tree)
    group = tree / "fs" / SERVICE / "worker-7"
    make = Path.mkdir

    def mkdir(path: Path, *rest: bool) -> None:
        make(path, *rest)
        (path / "cgroup.procs").write_text("")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    descriptor = groups.open(7, 100)
    os.write(descriptor, b"0")
    os.close(descriptor)
    found = {path.name: path.read_text() for path in group.iterdir()}
    assert found == {
        "cgroup.procs": "0",
        "memory.max": str(100 * 2**20 + cgroups.EXTRA_BYTES),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "256",
    }


def test_a_worker_that_was_ended_for_its_memory_is_known(tree: Path) -> None:
    groups = find(tree)
    group = tree / "fs" / SERVICE / "worker-7"
    group.mkdir()
    assert not groups.ran_out_of_memory(7)
    (group / "memory.events").write_text("low 0\nmax 3\noom 1\noom_kill 0\n")
    assert not groups.ran_out_of_memory(7)
    (group / "memory.events").write_text("low 0\nmax 3\noom 1\noom_kill 1\n")
    assert groups.ran_out_of_memory(7)
    (group / "memory.events").unlink()
    groups.remove(7)
    groups.remove(7)
    assert not group.exists()


def no_unified(tree: Path) -> None:
    (tree / "own").write_text("4:memory:/x\n")


def no_controller(tree: Path) -> None:
    (tree / "fs" / SERVICE / "cgroup.controllers").write_text("pids\n")


def not_delegated(tree: Path) -> None:
    (tree / "own").write_text("0::/user.slice/session-1.scope\n")


def no_file(tree: Path) -> None:
    (tree / "own").unlink()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (no_unified, "no unified control groups"),
        (no_controller, "the controller memory is not enabled for edgeward.service"),
        (not_delegated, "no control group was delegated"),
        (no_file, "No such file"),
    ],
)
def test_where_there_is_no_such_group_it_says_why(
    change: Callable[[Path], None], why: str, tree: Path
) -> None:
    change(tree)
    with pytest.raises(IsolationUnavailable, match=why) as caught:
        find(tree)
    assert "Delegate=memory pids" in caught.value.hint


def test_roots_own_session_is_not_taken_for_delegated(tmp_path: Path) -> None:
    assert cgroups._is_delegated(tmp_path) == (os.geteuid() != 0)
