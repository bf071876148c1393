"""The pieces of the confinement: plans, levels, the trial, and how a template makes do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.documents.report import Isolation
from agent.errors import IsolationUnavailable
from agent.wire.worker import COMPILES_AS
from agent.worker import confine, landlock, view
from agent.worker.confine import LAYERS, Held, Plan
from agent.worker.kernel import LayerUnavailable
from agent.worker.ladder import LEVELS, REMEDIES, demand, level_of
from agent.worker.policies import POLICIES, STAND_ALLOW_LIST, STRICT
from agent.worker.seccomp import CONDITIONS, DENIED, NETLINK
from agent.worker.trial import Trial
from agent.worker.view import View

ALL = {
    "namespaces": "user net mnt pid ipc",
    "network": "namespace",
    "root": "private",
    "landlock": "ABI 7",
    "syscalls": "allow-list",
    "memory": "cgroup",
}


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
    ("change", "level"),
    [
        ({}, "full"),
        ({"memory": "rlimit_data"}, "strong"),
        ({"landlock": ""}, "strong"),
        ({"root": ""}, "strong"),
        ({"namespaces": "user net"}, "strong"),
        ({"landlock": "", "root": ""}, "basic"),
        ({"syscalls": ""}, "basic"),
        ({"namespaces": "user"}, "basic"),
        ({"namespaces": "", "network": "syscalls", "root": ""}, "basic"),
        ({"network": ""}, "none"),
    ],
)
def test_the_level_is_that_of_the_layers_that_hold(change: dict[str, str], level: str) -> None:
    assert level_of({name: how for name, how in (ALL | change).items() if how}) == level


@pytest.mark.parametrize("place", range(4))
def test_below_the_level_that_is_required_nothing_serves(place: int) -> None:
    isolation = Isolation(LEVELS[place], missing={"user": "unshare: Operation not permitted"})
    for require in LEVELS[: place + 1]:
        demand(require, isolation)
    for too_much in [*map(str, LEVELS[place + 1 :]), "typing error"]:
        with pytest.raises(IsolationUnavailable, match="Operation not permitted") as caught:
            demand(too_much, isolation)
        assert "user namespaces" in caught.value.hint


def test_what_builds_on_a_missing_layer_is_missing_too() -> None:
    assert Plan().without("user", "x").layers == {"uid", "landlock", "syscalls", "allow_list"}
    assert "root" not in Plan().without("mnt", "x").layers
    assert "allow_list" not in Plan().without("syscalls", "x").layers
    assert Plan().without("root", "why").missing == {"root": "why"}


def test_every_layer_with_a_remedy_can_be_missing() -> None:
    assert set(REMEDIES) <= {*LAYERS, "cgroup_memory"}


def test_a_trial_finds_what_a_plain_look_finds() -> None:
    plan = Trial(Plan()).result()
    assert "syscalls" in plan.layers
    assert ("landlock" in plan.layers) != ("landlock" in plan.missing)
    assert set(plan.missing).isdisjoint(plan.layers)


def test_a_layer_that_does_not_deny_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The trial's child is a fork of this process.
    monkeypatch.setattr("agent.worker.seccomp.deny", lambda *_: None)
    monkeypatch.setattr("agent.worker.landlock.restrict", lambda *_: 7)
    plan = Trial(Plan()).result()
    assert plan.missing["syscalls"] == plan.missing["landlock"] == "it does not deny"
    assert {"syscalls", "allow_list", "landlock"}.isdisjoint(plan.layers)


def test_a_trial_that_breaks_is_followed_by_one_without_what_broke_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def break_off(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr("agent.worker.root.enter", break_off)
    plan = Trial(Plan()).result()
    assert "root" not in plan.layers
    assert "syscalls" in plan.layers


@pytest.mark.parametrize(
    ("abi", "files", "network", "scopes"),
    [
        (1, (1 << 13) - 1, 0, 0),
        (2, (1 << 14) - 1, 0, 0),
        (3, (1 << 15) - 1, 0, 0),
        (4, (1 << 15) - 1, 3, 0),
        (5, (1 << 16) - 1, 3, 0),
        (6, (1 << 16) - 1, 3, 3),
        (7, (1 << 16) - 1, 3, 3),
    ],
)
def test_of_landlock_only_what_its_version_knows_is_asked(
    abi: int, files: int, network: int, scopes: int
) -> None:
    assert landlock.handled(abi) == (files, network, scopes)


@pytest.mark.parametrize(("abi", "size"), [(1, 8), (3, 8), (4, 16), (5, 16), (6, 24), (7, 24)])
def test_an_older_landlock_gets_the_shorter_request(
    abi: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def refuse(number: int, step: str, fields: bytes, *rest: object) -> int:
        sizes.append(len(fields))
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(landlock, "version", lambda: abi)
    monkeypatch.setattr(landlock, "syscall", refuse)
    with pytest.raises(LayerUnavailable, match="not implemented"):
        landlock.restrict([])
    assert sizes == [size]


def test_a_policy_names_calls_that_are_denied_otherwise() -> None:
    for name, policy in POLICIES.items():
        assert policy.calls <= {*DENIED, *CONDITIONS, NETLINK}, name
        assert all(path.startswith("/") for path in (*policy.devices, *policy.reads))
    strict = POLICIES[STRICT]
    assert (strict.devices, strict.reads, strict.calls) == ((), (), frozenset())
    assert strict.allow_list
    assert {"onnx", "tflite"} <= STAND_ALLOW_LIST


def test_a_view_has_no_programs_no_settings_and_one_pack(tmp_path: Path) -> None:
    code = f"""
from agent.worker import view
from agent.worker.policies import POLICIES
seen = view.add(view.of_machine(), POLICIES["strict"], {str(tmp_path)!r})
for bind in seen.binds: print(bind.path)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    paths = done.stdout.split()
    assert str(tmp_path) in paths
    for hidden in ("/", "/etc", "/usr", "/usr/bin", "/home", "/root", "/tmp", "/var", "/proc"):
        assert hidden not in paths
    assert "/proc/cpuinfo" in paths


def test_what_compiles_is_a_policy_of_its_own_and_writes_only_where_it_may(tmp_path: Path) -> None:
    for of, name in COMPILES_AS.items():
        policy, strict = POLICIES[name], POLICIES[of]
        assert (policy.devices, policy.reads) == (strict.devices, strict.reads)
        assert policy.compiles
        assert policy.calls > strict.calls
        seen = view.add(View(()), policy, "/pack", str(tmp_path))
        assert seen.filled() == [str(tmp_path)]
        assert "/pack" in seen.readable()
        assert str(tmp_path) not in seen.readable()
    assert [name for name, policy in POLICIES.items() if policy.compiles] == [*COMPILES_AS.values()]
    # What serves from it can only read it.
    seen = view.add(View(()), POLICIES[STRICT], "/pack", str(tmp_path))
    assert (seen.filled(), str(tmp_path) in seen.readable()) == ([], True)


def test_nothing_is_compiled_where_nothing_confines_writing() -> None:
    for layers in ({"root": "private"}, {"landlock": "ABI 7"}):
        confine.check_compiles(Held("compile", layers, {}))
    confine.check_compiles(Held(STRICT, {}, {}))
    with pytest.raises(IsolationUnavailable, match="neither a private root nor Landlock"):
        confine.check_compiles(Held("compile", {"syscalls": "deny-list"}, {}))


WRITES = """
import os, sys
from pathlib import Path
from agent.worker import confine, view
from agent.worker.confine import Plan
from agent.worker.policies import POLICIES
off, policy, pack, cache = sys.argv[1:]
plan = Plan()
for layer in off.split():
    plan = plan.without(layer, "off")
seen = view.add(view.of_machine(), POLICIES[policy], pack, cache)
confine.confine(plan, seen, policy)
def attempt(what):
    try:
        what()
    except OSError:
        return "no"
    return "yes"
own, beside = Path(cache), Path(cache).parent / "beside"
print(*(attempt(what) for what in (
    lambda: (own / "old").read_bytes(),
    lambda: (own / "new").write_bytes(b"x"),
    lambda: (own / "new").rename(own / "newer"),
    lambda: beside.write_bytes(b"x"),
    lambda: (Path(pack) / "model").write_bytes(b"x"),
    lambda: (own / "new").symlink_to("/etc"),
    lambda: (own / "sub").mkdir(),
    lambda: os.mkfifo(own / "pipe"),
)))
"""


@pytest.mark.parametrize("off", ["", "root", "landlock"])
@pytest.mark.parametrize("policy", ["compile", STRICT])
def test_what_compiles_writes_into_one_folder_and_what_serves_into_none(
    tmp_path: Path, policy: str, off: str
) -> None:
    pack, cache = tmp_path / "pack", tmp_path / "cache"
    for folder in (pack, cache):
        folder.mkdir()
    (cache / "old").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-c", WRITES, off, policy, str(pack), str(cache)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "LayerUnavailable" in done.stderr:
        pytest.skip(f"a layer cannot be had here: {done.stderr.splitlines()[-1]}")
    old, new, renamed, *others = done.stdout.split()
    assert old == "yes", done.stderr
    assert (new, renamed) == (("yes", "yes") if policy == "compile" else ("no", "no"))
    assert set(others) == {"no"}
