"""One process that holds a device, and the workers that share it: honest ones, and others."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.documents.deployment import Share
from agent.documents.manifest import Tensor
from agent.errors import AcceleratorFailed, BadInput, ModelRejected, WorkerTimedOut
from agent.links.template import TemplateProcess, start_template
from agent.links.worker import BlockingWorker
from agent.runtimes.api import Wanted
from agent.wire.worker import Load
from agent.worker.owner import LONGEST_TURN_S
from agent.worker.shared import CLOSE, HEAD, LOAD, RUN, Ask, SharedRuntime, SharedSession
from tests.delegate import double as doubles
from tests.delegate import models
from tests.delegate.double import Double
from tests.worker.owning import MODEL, Doubling
from tests.worker.packs import make_pack, v2

ROW = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
X, Y = Tensor("x", "FP32", (1, 4)), Tensor("y", "FP32", (1, 4))
WITHIN_S = 10.0
# Of `owning.py`: head, y, the number of the turn.
ANSWER = struct.Struct("<BII16sq")
PROGRAM = Path(__file__).with_name("owning.py")


class Owned:
    """An owner in a process of its own, and streams to it."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "model"
        self.model.write_bytes(MODEL)
        own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                cwd=Path(__file__).parents[2],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        self._control = own
        self._streams: list[socket.socket] = []

    def stream(self) -> socket.socket:
        own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        own.settimeout(WITHIN_S)
        self._streams.append(own)
        with theirs:
            number = b"%d" % len(self._streams)
            socket.send_fds(self._control, [number], [theirs.fileno()])
        return own

    def session(self) -> SharedSession:
        return SharedRuntime(Doubling(), self.stream()).load(self.model, Wanted())

    def turns(self, *slots: tuple[float, Share], runs: int = 120) -> list[list[int]]:
        """Have some slots want as much as they can, and return which turns each has had until one
        has had all its runs.

        Args:
            slots: How long a run of each takes, in seconds, and its share.
            runs: Of each; all of them wait before the first one begins.
        """
        streams = []
        for run_s, share in slots:
            streams.append(self.stream())
            self.model.write_bytes(MODEL + b"%g" % run_s)
            SharedRuntime(Doubling(), streams[-1]).load(self.model, Wanted(share=share))
        os.kill(self.process.pid, signal.SIGSTOP)
        for stream in streams:
            stream.sendall((HEAD.pack(RUN, 1, ROW.nbytes) + ROW.tobytes()) * runs)
        os.kill(self.process.pid, signal.SIGCONT)
        got = [b""] * len(streams)
        while max(map(len, got)) < runs * ANSWER.size:
            for stream in select.select(streams, (), (), WITHIN_S)[0]:
                got[streams.index(stream)] += stream.recv(runs * ANSWER.size)
        # What others were told before that is there too.
        for place, stream in enumerate(streams):
            stream.setblocking(False)
            with suppress(BlockingIOError):
                got[place] += stream.recv(runs * ANSWER.size)
            stream.close()
        whole = [each[: len(each) // ANSWER.size * ANSWER.size] for each in got]
        had = [[turn for *_, turn in ANSWER.iter_unpack(each)] for each in whole]
        until = min(each[-1] for each in had if len(each) == runs)
        return [[turn for turn in each if turn <= until] for each in had]

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._control.close()
        assert self.process.wait(WITHIN_S) == 0


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Owned]:
    started = Owned(tmp_path)
    yield started
    started.close()


def test_a_model_in_the_owner_answers_as_one_here_would(owned: Owned) -> None:
    session = owned.session()
    assert session.placement.got == "double"
    result = session.run({"x": ROW})["y"]
    np.testing.assert_array_equal(result, ROW * 2)
    result[:] = 0
    np.testing.assert_array_equal(session.run({"x": ROW + 1})["y"], (ROW + 1) * 2)
    session.reset()
    session.close()
    session.close()


@pytest.mark.parametrize(
    "arrays",
    [{}, {"z": ROW}, {"x": ROW.astype(np.float64)}, {"x": ROW[:, :3]}, {"x": ROW, "y": ROW}],
    ids=["none", "other name", "float64", "too short", "one too many"],
)
def test_what_does_not_fit_is_refused_before_it_is_sent(
    owned: Owned, arrays: dict[str, np.ndarray]
) -> None:
    session = owned.session()
    with pytest.raises(BadInput):
        session.run(arrays)
    np.testing.assert_array_equal(session.run({"x": ROW})["y"], ROW * 2)


def test_several_models_of_one_worker_are_told_apart(owned: Owned) -> None:
    runtime = SharedRuntime(Doubling(), owned.stream())
    one, other = runtime.load(owned.model, Wanted()), runtime.load(owned.model, Wanted())
    one.close()
    np.testing.assert_array_equal(other.run({"x": ROW})["y"], ROW * 2)
    owned.model.write_bytes(b"something else")
    with pytest.raises(ModelRejected, match="this is no model"):
        runtime.load(owned.model, Wanted())
    np.testing.assert_array_equal(other.run({"x": ROW})["y"], ROW * 2)


def _ask(length: int | None = None, body: bytes = b"{}", kind: int = LOAD) -> bytes:
    return HEAD.pack(kind, 7, len(body) if length is None else length) + body


HOSTILE: dict[str, Callable[[socket.socket], object]] = {
    "half a head": lambda s: s.sendall(b"\1\0"),
    "half a body": lambda s: s.sendall(_ask(100)),
    "too much": lambda s: s.sendall(_ask(1 << 31)),
    "a run of no model": lambda s: s.sendall(_ask(kind=RUN)),
    "the end of no model": lambda s: s.sendall(_ask(0, b"", kind=CLOSE)),
    "no file": lambda s: s.sendall(_ask()),
    "no JSON": lambda s: s.sendall(_ask(body=b"\xff\xfe")),
    "an unknown kind": lambda s: s.sendall(_ask(kind=99)),
    "nothing, and gone": lambda s: s.close(),
    "a pipe for a file": lambda s: _send_pipe(s),
    "a flood": lambda s: _flood(s),
}


def _send_pipe(stream: socket.socket) -> None:
    read_end, write_end = os.pipe()
    body = msgspec.json.encode(Ask())
    socket.send_fds(stream, [HEAD.pack(LOAD, 1, len(body)) + body], [read_end])
    os.close(read_end)
    os.close(write_end)


def _flood(stream: socket.socket) -> None:
    stream.setblocking(False)
    try:
        while True:
            stream.send(_ask())
    except BlockingIOError:
        return


def test_slots_of_equal_shares_have_equal_time_of_the_device(owned: Owned) -> None:
    # Turns are in thousandths of a second, by the owner's own clock.
    for lengths in ((1, 1, 1), (1, 1, 10), (2, 5)):
        had = owned.turns(*((length / 1000, Share()) for length in lengths))
        times = [len(turns) * length for turns, length in zip(had, lengths, strict=True)]
        assert max(times) - min(times) <= max(lengths), (lengths, times)


def test_nobody_waits_longer_than_the_others_take_for_their_turns(owned: Owned) -> None:
    for turns in owned.turns(*[(0.001, Share())] * 4):
        assert max(later - before for before, later in pairwise(turns)) <= 5


def test_a_priority_goes_first_up_to_its_quota(owned: Owned) -> None:
    favoured, rest = owned.turns((0.003, Share(priority=5)), (0.003, Share()))
    assert len(favoured) == 120
    assert len(rest) <= 1
    favoured, rest = owned.turns((0.003, Share(priority=5, quota=0.5)), (0.003, Share()))
    # Each turn of its own takes it 1.5 ms further ahead, and it may be 50 ms ahead.
    assert len(favoured) - len(rest) == pytest.approx(33, abs=2)


@pytest.mark.parametrize("how", HOSTILE)
def test_a_worker_that_misbehaves_costs_the_others_nothing(owned: Owned, how: str) -> None:
    session = owned.session()
    HOSTILE[how](owned.stream())
    for _ in range(20):
        np.testing.assert_array_equal(session.run({"x": ROW})["y"], ROW * 2)
    np.testing.assert_array_equal(owned.session().run({"x": ROW})["y"], ROW * 2)


# With the double of libedgetpu, real templates and real workers.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Double:
    return doubles.build(tmp_path_factory.mktemp("double"))


class Bench:
    """A template of the Edge TPU's runtime over the double, and its workers."""

    def __init__(self, template: TemplateProcess, pack: Path, double: Double) -> None:
        self.template = template
        self.double = double
        self._pack = pack
        self._kept = ExitStack()

    def worker(self, share: Share | None = None, deadline_s: float = WITHIN_S) -> BlockingWorker:
        load = Load(
            directory=str(self._pack),
            pack="p",
            variant="cpu",
            provider="edgetpu",
            share=share or Share(),
        )
        made = BlockingWorker("edgetpu", load, template=self.template, deadline_s=deadline_s)
        worker = self._kept.enter_context(made)
        self.ready = worker.load()
        return worker

    def close(self) -> None:
        self._kept.close()
        self.template.kill()


@pytest.fixture
def bench(built: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(built.folder))
    built.plug()
    built.set(invoke_us=0)
    pack = make_pack(tmp_path / "pack", models.compiled(), "tflite", [X], [Y])
    made = Bench(start_template("edgetpu"), pack, built)
    yield made
    made.close()


def answer(worker: BlockingWorker, value: float = 1.0) -> list[float]:
    reply = worker.ask("t", v2({"x": ("FP32", [1, 4], [value, 2, 3, 4])}))
    data: list[float] = msgspec.json.decode(reply.payload)["outputs"][0]["data"]
    return data


def test_two_workers_share_one_device_in_one_process(bench: Bench) -> None:
    bench.double.set(exclusive=1, created=0)
    one, other = bench.worker(), bench.worker()
    assert answer(one, 5.0) == [5.0, 2.0, 3.0, 4.0]
    assert answer(other, 6.0) == [6.0, 2.0, 3.0, 4.0]
    assert bench.double.get("created") == 2
    assert bench.double.get("open") == 2
    one.close()
    assert answer(other, 7.0) == [7.0, 2.0, 3.0, 4.0]
    bench.double.set(exclusive=0)


def test_an_unplugged_device_ends_the_workers_and_not_the_owner(bench: Bench) -> None:
    workers = [bench.worker(), bench.worker()]
    bench.double.unplug()
    for worker in workers:
        with pytest.raises(AcceleratorFailed, match="the device is lost"):
            answer(worker)
    with pytest.raises(AcceleratorFailed, match="cannot be opened"):
        bench.worker()
    bench.double.plug()
    assert answer(bench.worker()) == [1.0, 2.0, 3.0, 4.0]


def test_a_crash_of_the_library_is_told_to_all_and_the_next_worker_has_a_new_owner(
    bench: Bench,
) -> None:
    one, other = bench.worker(), bench.worker()
    bench.double.set("invoke crashes")
    for worker in (one, other):
        with pytest.raises(AcceleratorFailed, match="the process that holds the device has ended"):
            answer(worker)
    bench.double.plug()
    assert answer(bench.worker()) == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("mode", ["invoke hangs", "create hangs"])
def test_a_run_that_never_ends_ends_with_its_worker(bench: Bench, mode: doubles.Mode) -> None:
    other = bench.worker()
    stuck = bench.worker(deadline_s=0.3)
    bench.double.set(mode)
    with pytest.raises(WorkerTimedOut):
        if mode == "invoke hangs":
            answer(stuck)
        else:
            load = Load(directory=str(bench._pack), pack="p", variant="cpu", provider="edgetpu")
            with BlockingWorker(
                "edgetpu", load, template=bench.template, load_deadline_s=0.3
            ) as late:
                late.load()
    with pytest.raises(AcceleratorFailed, match="has ended"):
        answer(other)
    bench.double.plug()
    assert answer(bench.worker()) == [1.0, 2.0, 3.0, 4.0]


def test_a_load_that_hangs_keeps_the_device_from_the_others_for_some_seconds_only(
    bench: Bench,
) -> None:
    other, started = bench.worker(), time.monotonic()
    bench.double.set("create hangs")
    with pytest.raises(AcceleratorFailed, match="a run did not end"):
        bench.worker(deadline_s=60.0)
    assert LONGEST_TURN_S <= time.monotonic() - started < LONGEST_TURN_S + 3.0
    with pytest.raises(AcceleratorFailed, match="has ended"):
        answer(other)
    bench.double.plug()
    assert answer(bench.worker()) == [1.0, 2.0, 3.0, 4.0]


def test_a_quota_holds_between_workers(bench: Bench) -> None:
    greedy, run_us, answers, started = bench.worker(Share(quota=0.5)), 3000, 0, time.monotonic()
    bench.double.set(invoke_us=run_us)
    # However long it takes on a busy machine: so many runs take more than their share of it.
    while time.monotonic() - started < 1.0:
        answer(greedy)
        answers += 1
    assert answers > 0
    assert answers * run_us / 1e6 < 0.6 * (time.monotonic() - started)


def test_the_owner_is_confined_as_its_workers_are(bench: Bench) -> None:
    worker = bench.worker()
    isolation, owner = bench.ready.isolation, bench.ready.owner
    assert owner is not None
    assert (isolation.policy, owner.policy) == ("strict", "edgetpu-usb")
    assert "root" in owner.layers or "root" in isolation.missing
    assert owner.layers["syscalls"] == "deny-list"
    assert owner.layers["memory"] == "rlimit_data"
    pid = bench.template.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    # Beside these there is the first process of their namespace, which runs nothing of ours.
    ours = [
        child
        for child in children
        if b"agent.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    assert len(ours) == 2
    assert str(worker.pid) in ours
    for child in ours:
        status = Path(f"/proc/{child}/status").read_text()
        assert "\nSeccomp:\t2\n" in status
        assert "\nNoNewPrivs:\t1\n" in status
        assert "\nCapEff:\t0000000000000000\n" in status
