"""The template process: it imports one runtime, holds no model, and forks a worker per request.

A fork takes milliseconds where a new interpreter with NumPy and a runtime takes hundreds. It is
safe because the process has exactly one thread, which is checked, and no session: thread pools,
arenas and devices come into being in the worker.

Each packet that arrives is one JSON object: `{"worker": N, "directory": …, "policy": …}` with a
stream socket attached (fork worker N, confine it with that folder in view and let it talk there),
after which may come the descriptor of a control group's `cgroup.procs`; or `{"kill": PID}`. Each
that leaves is a `TemplateEvent`.

What this machine gives a worker is tried before the first one (`agent.worker.trial`). Should a
layer fail in a worker all the same, that process ends and another one is forked without the layer,
before anybody is told of it.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn, cast

import msgspec
from msgspec.structs import replace

from agent.documents.report import WORKER_UID
from agent.errors import AgentError, RuntimeUnavailable
from agent.runtimes import registry
from agent.runtimes.api import ExclusiveRuntime, Runtime
from agent.wire.worker import TemplateEvent
from agent.worker import child, confine, namespaces, owner, serve, shared, view
from agent.worker.confine import Held, Plan
from agent.worker.kernel import LayerUnavailable
from agent.worker.policies import POLICIES, STRICT
from agent.worker.trial import Trial

MAX_WORKERS = 256
_MAX_PACKET = 16384
# For a worker to confine itself; takes milliseconds.
_LOCK_DEADLINE_S = 10.0
_IDLE = ("/usr/bin/sleep", "infinity")


class Request(msgspec.Struct, frozen=True):
    """One packet of who started the template: fork this worker, or kill it."""

    worker: int = 0
    kill: int = 0
    directory: str = ""
    cache: str = ""
    policy: str = STRICT
    uid: int = WORKER_UID


def run(runtime_name: str, control: socket.socket, trial: Trial) -> None:
    """Import the runtime, tell so, and fork workers until the control socket closes."""
    try:
        runtime = _prepare(runtime_name)
    except AgentError as error:
        _tell(
            control,
            TemplateEvent("failed", code=error.code, message=error.message, hint=error.hint),
        )
        return
    ready = TemplateEvent(
        "ready", runtime=runtime.name, version=runtime.version, facts=runtime.facts()
    )
    template = Template(runtime, control, trial.result())
    _tell(control, ready)
    template.serve()


class Template:
    """The workers that live, and the loop that makes and reaps them."""

    def __init__(self, runtime: Runtime, control: socket.socket, plan: Plan) -> None:
        self._runtime = runtime
        self._control = control
        self._plan = plan
        self._view = view.of_machine()
        self._pid = os.getpid()
        self._init = _make_process_namespace(plan)
        self._numbers: dict[int, int] = {}
        # Holds the device of a runtime that only one process may use.
        self._owner: owner.OwnerProcess | None = None
        # Process ids of this one and of those before it that are not reaped yet.
        self._owners: set[int] = set()
        self._woken, self._wake = socket.socketpair()
        for end in (self._woken, self._wake):
            end.setblocking(False)
        # Its handler does nothing; the number written to the socket is what ends the wait.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

    def serve(self) -> None:
        """Answer requests and reap workers until the control socket closes."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._woken.fileno() in ready:
                self._woken.recv(_MAX_PACKET)
            self._reap()
            if self._control.fileno() in ready and not self._answer():
                return

    def _answer(self) -> bool:
        packet, descriptors, _, _ = socket.recv_fds(self._control, _MAX_PACKET, 2)
        if not packet:
            return False
        request = msgspec.json.decode(packet, type=Request)
        if request.worker and descriptors:
            self._start(request, descriptors)
        else:
            # Not reaped yet, so the process id still is this worker's.
            if request.kill in self._numbers:
                os.kill(request.kill, signal.SIGKILL)
                self._give_up_run(self._numbers[request.kill])
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def _start(self, request: Request, descriptors: list[int]) -> None:
        if len(self._numbers) >= MAX_WORKERS:
            self._refuse(request.worker, f"{MAX_WORKERS} workers are running")
            return
        try:
            link = self._link(request.worker)
            pid = self._fork_confined(
                lambda plan, line: self._become_worker(plan, request, descriptors, link, line)
            )
        except OSError as error:
            self._refuse(request.worker, f"fork: {error.strerror}")
            return
        if link >= 0:
            os.close(link)
        self._numbers[pid] = request.worker
        holder = self._owner.pid if self._owner is not None else 0
        event = TemplateEvent("started", worker=request.worker, pid=pid, owner=holder)
        _tell(self._control, event)

    def _link(self, number: int) -> int:
        """Return a worker's stream to the owner of the runtime's device; -1: it needs none."""
        if not getattr(self._runtime, "exclusive", False):
            return -1
        if self._owner is not None:
            link = self._owner.link(number)
            if link >= 0:
                return link
            # It has let go of everything, and is dead in a moment; the worker needs the next one.
            self._owner_ended(*os.waitpid(self._owner.pid, 0))
        self._owner = self._fork_owner()
        return self._owner.link(number)

    def _fork_owner(self) -> owner.OwnerProcess:
        runtime = cast(ExclusiveRuntime, self._runtime)
        busy, control, theirs = owner.prepare()
        with theirs:
            pid = self._fork_confined(
                lambda plan, line: owner.become(
                    owner.Birth(runtime, theirs, busy, self._pid), plan, self._view, line
                )
            )
        self._owners.add(pid)
        return owner.OwnerProcess(pid, control, busy)

    def _fork_confined(self, become: Callable[[Plan, int], NoReturn]) -> int:
        """Fork a process that confines itself, without the layers that turn out not to hold."""
        plan = self._plan
        while True:
            pid, failed = self._fork(plan, become)
            if failed is None or failed.layer not in plan.layers:
                return pid
            # Half confined it is of no use; this one's successor does without.
            plan = plan.without(failed.layer, failed.reason)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _fork(
        self, plan: Plan, become: Callable[[Plan, int], NoReturn]
    ) -> tuple[int, LayerUnavailable | None]:
        """Fork a process and wait until it is confined.

        Returns:
            Its process id, and what it could not take away. One that has died is like one that is
            confined: it is reaped like any other.
        """
        told, line = os.pipe()
        with io.FileIO(told) as words:
            try:
                pid = os.fork()
                if pid == 0:
                    become(plan, line)
            finally:
                os.close(line)
            if not select.select([words], [], [], _LOCK_DEADLINE_S)[0]:
                os.kill(pid, signal.SIGKILL)
                return pid, None
            word = words.read(_MAX_PACKET)
        if word in (owner.LOCKED, b"", None):
            return pid, None
        return pid, LayerUnavailable(*msgspec.json.decode(word, type=tuple[str, str]))

    def _refuse(self, number: int, reason: str) -> None:
        event = TemplateEvent(
            "exited",
            worker=number,
            status=1,
            code="worker_failed",
            message=f"no worker can be started: {reason}",
        )
        _tell(self._control, event)

    def _become_worker(
        self, plan: Plan, request: Request, descriptors: list[int], link: int, line: int
    ) -> NoReturn:
        """Turn the forked child into a worker."""

        def body() -> bool:
            stream, *groups = descriptors
            held = self._lock(plan, request, groups, line)
            if held is None:
                return False
            runtime = self._runtime
            if link >= 0:
                runtime = shared.SharedRuntime(runtime, socket.socket(fileno=link))
            serve.serve_process(runtime, socket.socket(fileno=stream), held)
            return True

        child.live(self._pid, {*descriptors, link, line}, body)

    def _lock(self, plan: Plan, request: Request, groups: list[int], line: int) -> Held | None:
        """Confine this process and say so on `line`; None: it cannot be, and that is told too."""
        # A name that nobody knows gets what is safe; the answer to LOAD then says what is wrong.
        policy = request.policy if request.policy in POLICIES else STRICT
        seen = view.add(self._view, POLICIES[policy], request.directory, request.cache)
        no_group = confine.join_group(groups)
        try:
            held = confine.confine(replace(plan, user=request.uid), seen, policy)
        except LayerUnavailable as error:
            os.write(line, msgspec.json.encode((error.layer, error.reason)))
            return None
        if no_group:
            held.missing["cgroup_memory"] = no_group
        else:
            held.layers["memory"] = "cgroup"
        os.write(line, owner.LOCKED)
        os.close(line)
        return held

    def _reap(self) -> None:
        while self._numbers or self._init or self._owners:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            if pid == self._init:
                # Its process namespace, and with it every worker, has ended; so does this one.
                sys.exit("the first process of the workers' process namespace has ended")
            if pid in self._owners:
                self._owner_ended(pid, status)
                continue
            number = self._numbers.pop(pid)
            self._give_up_run(number)
            code = os.waitstatus_to_exitcode(status)
            _tell(self._control, TemplateEvent("exited", worker=number, pid=pid, status=code))

    def _give_up_run(self, number: int) -> None:
        """End the owner where it runs something for a worker that is no more: it may never end."""
        if self._owner is not None and self._owner.works_for(number):
            os.kill(self._owner.pid, signal.SIGKILL)
            self._owner.close()
            self._owner = None

    def _owner_ended(self, pid: int, status: int) -> None:
        """Its workers see it at once; the next one gets another owner."""
        self._owners.discard(pid)
        if self._owner is not None and self._owner.pid == pid:
            self._owner.close()
            self._owner = None
        code = os.waitstatus_to_exitcode(status)
        late = f": nothing may take longer than {owner.LONGEST_TURN_S:g} s on it"
        why = late if code == -signal.SIGALRM else ""
        print(f"the process that held the device ended ({code}){why}", file=sys.stderr, flush=True)


def _make_process_namespace(plan: Plan) -> int:
    """Have this process's children born into a process namespace of their own.

    The first of them stays for as long as this process does: a worker in its place would not get
    signals that have no handler, its own `abort` among them.

    Returns:
        Its process id; 0: there is no such namespace.
    """
    if not {"user", "pid"} <= plan.layers:
        return 0
    namespaces.enter(["user", "pid"])
    parent = os.getpid()
    told, line = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(told)
            confine.end_with_parent(parent)
            # In here a parent that has ended looks like one that lives; but nobody would read this.
            os.write(line, b"\0")
            confine.close_all_but(set())
            # A small program in place of a copy of this one saves 2 MB; it may be absent.
            with contextlib.suppress(OSError):
                os.execv(_IDLE[0], _IDLE)  # noqa: S606
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(line)
    # No other process may come to hold this end before that one is sure of its own end.
    os.read(told, 1)
    os.close(told)
    return pid


def _prepare(runtime_name: str) -> Runtime:
    runtime = registry.find(runtime_name)
    threads = confine.thread_count()
    if threads != 1:
        raise RuntimeUnavailable(
            f"importing the runtime {runtime_name} started {threads - 1} threads, and a process "
            "with threads cannot be forked safely",
            hint="check OPENBLAS_NUM_THREADS, OMP_NUM_THREADS and ORT_DISABLE_TELEMETRY",
        )
    # What is imported stays; the collector must not touch, and so copy, its pages in each worker.
    gc.freeze()
    gc.enable()
    return runtime


def _tell(control: socket.socket, event: TemplateEvent) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        control.send(msgspec.json.encode(event))
