"""Template processes: how they start, fork, tell, and end."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakKeyDictionary

import msgspec
import psutil
import pytest

from agent.documents.manifest import Tensor
from agent.errors import (
    IsolationUnavailable,
    MemoryLimit,
    RuntimeUnavailable,
    WorkerExited,
    WorkerTimedOut,
)
from agent.links import spawn
from agent.links import template as templates
from agent.links.template import TemplateProcess, describe_exit, start_template
from agent.links.worker import BlockingWorker
from agent.wire import frames
from agent.wire.worker import Load, TemplateEvent
from tests.runtimes import models
from tests.scenarios.device import until
from tests.worker.packs import make_pack, v2

DEADLINE_S = 30.0
X, Y = Tensor("x", "FP32", (1, 4)), Tensor("y", "FP32", (1, 4))
REQUEST = v2({"x": ("FP32", [1, 4], [1.0] * 4)})


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("relu")
    return make_pack(folder, models.relu_tflite(), "tflite", [X], [Y])


@pytest.fixture
def template() -> Iterator[TemplateProcess]:
    process = start_template("tflite")
    yield process
    process.kill()


def event_of(template: TemplateProcess, wanted: str, worker: int = 0) -> TemplateEvent:
    """Wait for an event; those that come with it are kept for the next call."""
    kept = _KEPT.setdefault(template, [])
    deadline = time.monotonic() + DEADLINE_S
    while True:
        for event in kept:
            if (event.event, event.worker) == (wanted, worker):
                kept.remove(event)
                return event
        left = max(0.0, deadline - time.monotonic())
        assert select.select([template.control], [], [], left)[0], kept
        found = template.read_events()
        assert found is not None, kept
        kept += found


_KEPT: WeakKeyDictionary[TemplateProcess, list[TemplateEvent]] = WeakKeyDictionary()


def load_of(pack: Path) -> Load:
    return Load(directory=str(pack), pack="p", variant="cpu")


def load_into(stream: socket.socket, pack: Path, load: Load | None = None) -> frames.Frame:
    encoded = msgspec.json.encode(load or load_of(pack))
    stream.sendall(frames.encode_frame(frames.LOAD, 0, 0, b"", encoded))
    stream.settimeout(DEADLINE_S)
    (frame,) = frames.FrameReader().feed(stream.recv(65536))
    return frame


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for_end(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        assert select.select([pidfd], [], [], DEADLINE_S)[0], f"{pid} lives on"
    finally:
        os.close(pidfd)


def test_it_is_ready_with_one_thread_and_a_fixed_environment(template: TemplateProcess) -> None:
    ready = event_of(template, "ready")
    assert (ready.runtime, ready.version[0].isdigit()) == ("tflite", True)
    assert len(list(Path(f"/proc/{template.pid}/task").iterdir())) == 1
    environment = Path(f"/proc/{template.pid}/environ").read_bytes().split(b"\0")[:-1]
    told = dict(entry.decode().split("=", 1) for entry in environment)
    assert told == spawn.ENVIRONMENT
    assert told["ORT_DISABLE_TELEMETRY"] == "1"


def test_a_worker_has_its_stream_and_nothing_else_open(
    template: TemplateProcess, pack: Path
) -> None:
    event_of(template, "ready")
    with template.request_worker(7, load_of(pack)) as stream:
        started = event_of(template, "started", 7)
        assert load_into(stream, pack).kind == frames.READY
        links = {
            path.readlink().name.split(":")[0]
            for path in Path(f"/proc/{started.pid}/fd").iterdir()
            if int(path.name) > 2
        }
        environment = Path(f"/proc/{started.pid}/environ").read_bytes()
        assert b"ORT_DISABLE_TELEMETRY=1" in environment
        assert links <= {"socket", "model.tflite"}


def test_several_workers_live_and_end_apart(template: TemplateProcess, pack: Path) -> None:
    event_of(template, "ready")
    streams = {number: template.request_worker(number, load_of(pack)) for number in (1, 2, 3)}
    pids = {number: event_of(template, "started", number).pid for number in streams}
    assert len(set(pids.values())) == 3
    for stream in streams.values():
        assert load_into(stream, pack).kind == frames.READY
    template.kill_worker(pids[2])
    killed = event_of(template, "exited", 2)
    assert (killed.pid, killed.status) == (pids[2], -signal.SIGKILL)
    assert streams[2].recv(1) == b""
    streams[1].close()
    assert event_of(template, "exited", 1).status == 0
    assert is_alive(pids[3])
    streams[2].close()
    streams[3].close()


def test_a_process_that_is_no_worker_is_not_killed(template: TemplateProcess, pack: Path) -> None:
    event_of(template, "ready")
    with subprocess.Popen(["sleep", "60"]) as bystander:
        template.kill_worker(bystander.pid)
        with template.request_worker(1, load_of(pack)):
            event_of(template, "started", 1)
        assert bystander.poll() is None
        bystander.kill()


def test_workers_end_with_their_template(template: TemplateProcess, pack: Path) -> None:
    event_of(template, "ready")
    with template.request_worker(1, load_of(pack)):
        pid = event_of(template, "started", 1).pid
        pidfd = os.pidfd_open(pid)
        template.kill()
        assert select.select([pidfd], [], [], DEADLINE_S)[0]
        os.close(pidfd)


def test_a_template_ends_with_its_parent(pack: Path) -> None:
    code = """
import os, select, signal
from agent.links.template import start_template
from agent.wire.worker import Load
template = start_template("tflite")
select.select([template.control], [], [])
stream = template.request_worker(1, Load("/", "p", "cpu"))
while not any(e.event == "started" for e in template.read_events()):
    select.select([template.control], [], [])
print(template.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if is_alive(pid):
            wait_for_end(pid)


def test_a_template_that_dies_says_how(template: TemplateProcess) -> None:
    event_of(template, "ready")
    os.kill(template.pid, signal.SIGSEGV)
    deadline = time.monotonic() + DEADLINE_S
    while template.read_events() is not None:
        assert time.monotonic() < deadline
        select.select([template.control], [], [], 1)
    error = template.failure()
    assert isinstance(error, WorkerExited)
    assert "stopped working (signal 11, SIGSEGV)" in str(error)
    with pytest.raises(OSError):
        template.request_worker(1, Load(directory="/", pack="p", variant="cpu"))


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Have templates started as this shell script; `$PYTHON` is the interpreter, `$@` after
    `shift 3` what the template is told."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\nPYTHON={sys.executable}\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def start(pack: Path, runtime: str = "tflite") -> BlockingWorker:
    load = Load(directory=str(pack), pack="p", variant="cpu")
    return BlockingWorker(runtime, load, start_deadline_s=20, load_deadline_s=20, deadline_s=20)


def test_a_wheel_that_dies_on_import_is_an_ordinary_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pack: Path
) -> None:
    stand_in(monkeypatch, tmp_path, "kill -ILL $$")
    with pytest.raises(RuntimeUnavailable, match=r"\(signal 4, SIGILL\)") as caught:
        start(pack)
    assert "another build" in caught.value.hint


def test_a_start_that_takes_too_long_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pack: Path
) -> None:
    stand_in(monkeypatch, tmp_path, "exec sleep 60")
    load = Load(directory=str(pack), pack="p", variant="cpu")
    with pytest.raises(WorkerTimedOut, match=r"gave no sign within 0.2 s"):
        BlockingWorker("tflite", load, start_deadline_s=0.2)


PLUG_IN = """
import sys, threading, time, signal, os
sys.path.insert(0, {folder!r})
sys.argv = ["agent.worker", *sys.argv[1:]]
from agent.runtimes import registry
registry.BUILT_IN["test"] = "plug_in:Runtime"
from agent.worker.__main__ import main
main()
"""
RUNTIME = """
import os, signal, sys, threading, time
import numpy as np
from agent.documents.device import RuntimeFacts
from agent.documents.manifest import Tensor
from agent.documents.report import Placement
from agent.errors import ModelError
class Session:
    inputs = (Tensor("x", "FP32", (1, 4)),)
    outputs = (Tensor("y", "FP32", (1, 4)),)
    placement = Placement("test", "test")
    first = True
    def run(self, arrays):
        if Session.first:  # the warm-up
            Session.first = False
        else:
            self.misbehave()
        return {"y": arrays["x"]}
    def misbehave(self): BODY
    def reset(self): pass
    def close(self): pass
class Runtime:
    name, version, formats = "test", "1", ("onnx",)
    def probe(self): return None
    def facts(self): return RuntimeFacts("test", usable=True, version="1")
    def load(self, model, wanted, *, outputs=()): return Session()
"""


def plug_in(
    monkeypatch: pytest.MonkeyPatch, folder: Path, pack: Path, body: str, extra: str = ""
) -> BlockingWorker:
    """Return a worker on a runtime whose second run does what `body` says."""
    (folder / "plug_in.py").write_text(RUNTIME.replace("BODY", body) + extra)
    (folder / "entry.py").write_text(PLUG_IN.format(folder=str(folder)))
    stand_in(monkeypatch, folder, f'shift 3\nexec $PYTHON -I {folder}/entry.py "$@"')
    return start(pack, "test")


def test_an_import_that_starts_threads_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pack: Path
) -> None:
    extra = "\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    with pytest.raises(RuntimeUnavailable, match="started 1 threads"):
        plug_in(monkeypatch, tmp_path, pack, "pass", extra)


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", WorkerExited, ""),
        ("signal.raise_signal(signal.SIGSEGV)", WorkerExited, "signal 11, SIGSEGV"),
        ("os.abort()", WorkerExited, "signal 6, SIGABRT"),
        ("os.write(2, b'std::bad_alloc'); os.abort()", MemoryLimit, "the limit of 512 MB"),
        ("os._exit(3)", WorkerExited, "exit status 3"),
        ("bytearray(2**40)", MemoryLimit, "the limit of 512 MB"),
        ("time.sleep(600)", WorkerTimedOut, "no answer within 0.5 s"),
    ],
)
def test_each_way_to_die_is_told_apart(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pack: Path,
    body: str,
    error: type[Exception],
    says: str,
) -> None:
    with plug_in(monkeypatch, tmp_path, pack, body) as worker:
        worker.load()
        if not says:
            # A process may not even signal itself through `kill`: it fails, and the model with it.
            answer = worker.ask("t", REQUEST)
            assert answer.flags & frames.BAD_OUTPUT
            return
        with pytest.raises(error, match=says):
            worker.ask("t", REQUEST, deadline_s=0.5 if error is WorkerTimedOut else 20)


def test_an_exception_nobody_foresaw_costs_one_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pack: Path
) -> None:
    with plug_in(monkeypatch, tmp_path, pack, "raise ZeroDivisionError('odd')") as worker:
        worker.load()
        for _ in range(2):
            answer = worker.ask("t", REQUEST)
            assert answer.flags == frames.REJECTED | frames.BAD_OUTPUT | frames.HAS_ID
            assert b"ZeroDivisionError" in answer.payload


def test_a_flood_of_output_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pack: Path
) -> None:
    body = "[sys.stdout.buffer.raw.write(b'x' * 65536) for _ in range(200)]"
    with plug_in(monkeypatch, tmp_path, pack, body) as worker:
        worker.load()
        assert worker.ask("t", REQUEST).outcome == frames.PREDICTION
        assert len(worker._template.take_last_words()) <= templates.LAST_WORDS_BYTES


@pytest.mark.parametrize(
    ("status", "words", "error", "says"),
    [
        (-11, "", WorkerExited, "the model crashed the runtime (signal 11, SIGSEGV)"),
        (-6, "terminate called: std::bad_alloc", MemoryLimit, "limit of 64 MB"),
        (127, "cannot allocate memory for thread-local data", MemoryLimit, "limit of 64 MB"),
        (-9, "", WorkerExited, "was killed (signal 9, SIGKILL)"),
        (-63, "", WorkerExited, "signal 63"),
        (-signal.SIGXCPU, "", WorkerExited, "more processor time to load than it may (signal 24"),
        (-signal.SIGXFSZ, "", WorkerExited, "tried to write a file (signal 25, SIGXFSZ)"),
        (-signal.SIGSYS, "", WorkerExited, "a system call that it may not make (signal 31"),
        (2, "", WorkerExited, "exit status 2"),
    ],
)
def test_an_exit_status_is_put_into_words(
    status: int, words: str, error: type[Exception], says: str
) -> None:
    described = describe_exit(status, 64, words)
    assert type(described) is error
    assert says in described.message


FAILS_TO_MOUNT = """
from agent.worker import kernel, root
def enter(*_):
    os.chdir("/proc")  # half-way
    raise kernel.LayerUnavailable("root", "mount tmpfs: Operation not permitted")
root.enter = enter
"""


def test_a_layer_that_fails_in_a_worker_is_left_out_of_its_successor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pack: Path
) -> None:
    # The runtime is imported after the trial, which so finds nothing amiss.
    with plug_in(monkeypatch, tmp_path, pack, "pass", FAILS_TO_MOUNT) as worker:
        isolation = worker.load().isolation
        assert worker.ask("t", REQUEST).outcome == frames.PREDICTION
    if "namespaces" not in isolation.layers:
        pytest.skip("there is no private root here that could fail")
    assert "root" not in isolation.layers
    assert isolation.missing["root"] == "mount tmpfs: Operation not permitted"
    assert isolation.level == ("strong" if "landlock" in isolation.layers else "basic")


def test_a_worker_that_dies_while_it_confines_itself_is_told_of_like_any_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pack: Path
) -> None:
    dies = "\nfrom agent.worker import confine\nconfine.confine = lambda *_: os.abort()\n"
    with (
        plug_in(monkeypatch, tmp_path, pack, "pass", dies) as worker,
        pytest.raises(WorkerExited, match="signal 6, SIGABRT"),
    ):
        worker.load()


def test_a_runtime_whose_needs_are_not_known_keeps_the_deny_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pack: Path
) -> None:
    with plug_in(monkeypatch, tmp_path, pack, "pass") as worker:
        isolation = worker.load().isolation
    assert isolation.layers["syscalls"] == "deny-list"
    assert "the runtime test" in isolation.missing["allow_list"]


def test_the_workers_end_when_the_first_process_of_their_namespace_does(
    template: TemplateProcess, pack: Path
) -> None:
    event_of(template, "ready")
    with template.request_worker(1, load_of(pack)) as stream:
        started = event_of(template, "started", 1)
        children = Path(f"/proc/{template.pid}/task/{template.pid}/children").read_text().split()
        others = [int(pid) for pid in children if int(pid) != started.pid]
        if not others:
            pytest.skip("there is no process namespace here")
        os.kill(others[0], signal.SIGKILL)
        stream.settimeout(DEADLINE_S)
        assert stream.recv(1) == b""
        wait_for_end(template.pid)


def test_below_the_required_level_a_worker_refuses_and_says_what_is_missing(pack: Path) -> None:
    # Nobody has given it a control group.
    load = msgspec.structs.replace(load_of(pack), require_isolation="full")
    with (
        BlockingWorker("tflite", load) as worker,
        pytest.raises(
            IsolationUnavailable, match=r"require isolation 'full'.*cgroup_memory: "
        ) as e,
    ):
        worker.load()
    assert "Delegate" in e.value.hint or "systemd unit" in e.value.hint


def test_another_policy_than_the_one_it_is_confined_by_is_refused(
    template: TemplateProcess, pack: Path
) -> None:
    event_of(template, "ready")
    load = msgspec.structs.replace(load_of(pack), policy="gpu")
    with template.request_worker(1, load_of(pack)) as stream:
        frame = load_into(stream, pack, load)
        assert frame.kind == frames.FAILED
        assert b"isolation_unavailable" in bytes(frame.payload)
    with template.request_worker(2, msgspec.structs.replace(load, policy="unknown")) as stream:
        assert load_into(stream, pack).kind == frames.READY


def orphans(since: float) -> list[int]:
    """Processes that a template has left to the init of this machine."""
    return [
        process.pid
        for process in psutil.process_iter(["ppid", "cmdline", "create_time"])
        if process.info["cmdline"] == ["/usr/bin/sleep", "infinity"]
        and process.info["ppid"] == 1
        and process.info["create_time"] >= since
    ]


def test_a_template_that_is_killed_as_soon_as_it_is_ready_leaves_no_process_behind() -> None:
    since = time.time() - 1
    for _ in range(10):
        template = start_template("reference")
        select.select([template.control], [], [], 10.0)
        template.kill()
    # What the kernel has been told to end takes a moment to go.
    until(lambda: not orphans(since), "nothing is left", within_s=5.0)
