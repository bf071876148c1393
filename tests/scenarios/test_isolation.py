"""Nothing calls home, and a worker gets nothing that it does not need: seen from outside."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from agent.links.spawn import ENVIRONMENT
from tests.scenarios.conftest import Packs
from tests.scenarios.device import until
from tests.scenarios.running import Running, running, slot
from tests.worker.test_hostile_workers import as_root_without_namespaces

SECRET = "not for workers"
# Into its own socket; a call may be told in two halves.
SENT = re.compile(r"sendto\(.*, NULL, 0(\) = | <unfinished)|<... sendto resumed>")
ADDRESS = re.compile(r"sin6?_port=htons\((\d+)\).*?\"([0-9a-f.:]+)\"")


@pytest.fixture
def here(tmp_path: Path, packs: Packs) -> Iterator[Running]:
    environment = {"EDGE_TEST_SECRET": SECRET}
    with running(tmp_path, packs, environment=environment) as started:
        started.serve(vib=slot(packs.affine(1)))
        yield started


def test_the_whole_agent_talks_to_its_broker_and_to_nobody_else(
    tmp_path: Path, packs: Packs
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed (apt install strace)")
    if subprocess.run(["strace", "-qq", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here")
    log = tmp_path / "trace"
    calls = "trace=connect,sendto,sendmsg,sendmmsg,bind,socket,execve"
    # -D: the tracer stands aside, so that signals and the exit status are the agent's.
    tracer = ("strace", "-D", "-f", "-qq", "-e", calls, "-e", "signal=none", "-o", str(log))
    with running(tmp_path, packs, wrapper=tracer) as traced:
        traced.serve(vib=slot(packs.affine(1)))
        traced.predict("one")
        pid = traced.device.slot("vib")["worker_pid"]
        port = traced.broker.port
    lines = log.read_text().splitlines()
    called = {address for line in lines for address in ADDRESS.findall(line)}
    assert called == {(str(port), "127.0.0.1")}
    own = [line for line in lines if line.startswith(f"{pid} ")]
    assert own, "the worker was not traced"
    # What it sends goes into the socket that it was given; of the rest it does one thing: look
    # whether the internet is denied.
    rest = [line for line in own if not SENT.search(line)]
    assert [line for line in rest if "socket(AF_INET" not in line or "EPERM" not in line] == []


def test_a_worker_gets_a_fixed_environment_one_socket_and_no_secret(here: Running) -> None:
    pid = here.device.slot("vib")["worker_pid"]
    here.predict("it serves")
    environment = Path(f"/proc/{pid}/environ")
    try:
        data = environment.read_bytes()
    except PermissionError:
        pytest.skip("only root may look into a confined worker")
    found = dict(entry.split("=", 1) for entry in data.decode().split("\0") if entry)
    assert found == ENVIRONMENT
    assert SECRET not in Path(f"/proc/{pid}/cmdline").read_text()
    links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    assert sum(link.startswith("socket:") for link in links) == 1
    state_dir = str(here.device.state_dir)
    opened = {link for link in links if link.startswith("/") and link != "/dev/null"}
    # Of the device's folder only the pack, if the runtime keeps it open.
    assert all(link.startswith(f"{state_dir}/packs/") for link in opened), opened


def uids(pid: int) -> set[str]:
    status = Path(f"/proc/{pid}/status").read_text()
    return set(re.search(r"^Uid:\s(.*)$", status, re.MULTILINE)[1].split())  # type: ignore[index]


def test_started_as_root_without_user_namespaces_its_workers_are_another_user_s(
    tmp_path: Path, packs: Packs
) -> None:
    wrapper = tuple(as_root_without_namespaces())
    # Test folders are their user's alone, and so would be all below them.
    with TemporaryDirectory() as name:
        state_dir = Path(name) / "state"
        Path(name).chmod(0o755)
        with running(tmp_path, packs, wrapper=wrapper, state_dir=state_dir) as here:
            here.serve(vib=slot(packs.affine(2)))
            assert here.predict("m1", "in/vib", "out/vib")["outputs"][0]["data"]
            told = here.device.slot("vib")
            assert told["isolation"]["level"] == "basic"
            assert told["isolation"]["layers"]["uid"] == "60999"
            assert uids(told["worker_pid"]) == {"60999"}
            assert state_dir.stat().st_mode & 0o777 == 0o710
            own = [path for path in state_dir.iterdir() if path.is_file()]
            assert own
            assert all(path.stat().st_mode & 0o077 == 0 for path in own)


def test_where_that_user_cannot_read_the_packs_the_worker_serves_and_the_report_says_why(
    tmp_path: Path, packs: Packs
) -> None:
    wrapper = tuple(as_root_without_namespaces())
    with running(tmp_path, packs, wrapper=wrapper) as here:
        here.serve(vib=slot(packs.affine(2)))
        isolation = here.device.slot("vib")["isolation"]
        assert "uid" not in isolation["layers"]
        assert isolation["missing"]["uid"].startswith("user 60999 may not read /")


PROBE = """
import ctypes, json, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
# As a worker: the same user, and none of root's capabilities.
header = ctypes.create_string_buffer(struct.pack("<Ii", 0x20080522, 0))
assert libc.capset(header, ctypes.create_string_buffer(24)) == 0
def outcome(path):
    try:
        with open(path, "rb"):
            return "opened"
    except OSError as error:
        return type(error).__name__
json.dump({path: outcome(path) for path in sys.argv[1:]}, sys.stdout)
"""


def test_no_process_of_the_same_user_may_read_the_agents_memory_or_environment(
    tmp_path: Path, packs: Packs
) -> None:
    powerless: tuple[str, ...] = ()
    if os.geteuid() == 0:
        # Or root's capabilities would decide in place of the agent's own protection.
        powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed (apt install util-linux)")
    with running(tmp_path, packs, wrapper=powerless) as here:
        here.serve(vib=slot(packs.affine(1)))
        assert here.device.process is not None
        pid, worker = here.device.process.pid, here.device.slot("vib")["worker_pid"]
        secret = [f"/proc/{who}/{what}" for who in (pid, worker) for what in ("mem", "environ")]
        # A process that does not protect itself, so that the refusals mean something.
        idle = [*powerless, sys.executable, "-c", "input()"]
        bystander = subprocess.Popen(idle, stdin=subprocess.PIPE)
        control = f"/proc/{bystander.pid}/mem"
        try:
            until(lambda: outcomes(control) == {control: "opened"}, "the probe can read at all")
            assert outcomes(*secret) == dict.fromkeys(secret, "PermissionError")
        finally:
            bystander.communicate(b"\n")


def outcomes(*paths: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *paths], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found
