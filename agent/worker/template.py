"""The template process: it imports one runtime, holds no model, and forks a worker per request.

A fork takes milliseconds where a new interpreter with NumPy and a runtime takes hundreds. It is
safe because the process has exactly one thread, which is checked, and no session: thread pools,
arenas and devices come into being in the worker.

Each packet that arrives is one JSON object: `{"worker": N}` with a stream socket attached (fork
worker N and let it talk there) or `{"kill": PID}`. Each that leaves is a `TemplateEvent`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys

import msgspec

from agent.errors import AgentError, RuntimeUnavailable
from agent.runtimes import registry
from agent.runtimes.api import Runtime
from agent.wire.worker import TemplateEvent
from agent.worker import confine, serve

MAX_WORKERS = 256
_MAX_PACKET = 4096


class Request(msgspec.Struct, frozen=True):
    """One packet of who started the template: fork this worker, or kill it."""

    worker: int = 0
    kill: int = 0


def run(runtime_name: str, control: socket.socket, parent: int) -> None:
    """Import the runtime, tell so, and fork workers until the control socket closes."""
    # A Ctrl-C in the terminal is for the program that started this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    confine.end_with_parent(parent)
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
    _tell(control, ready)
    Template(runtime, control).serve()


class Template:
    """The workers that live, and the loop that makes and reaps them."""

    def __init__(self, runtime: Runtime, control: socket.socket) -> None:
        self._runtime = runtime
        self._control = control
        self._pid = os.getpid()
        self._numbers: dict[int, int] = {}
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
        packet, descriptors, _, _ = socket.recv_fds(self._control, _MAX_PACKET, 1)
        if not packet:
            return False
        request = msgspec.json.decode(packet, type=Request)
        if request.worker and descriptors:
            self._start(request.worker, descriptors[0])
        else:
            # Not reaped yet, so the process id still is this worker's.
            if request.kill in self._numbers:
                os.kill(request.kill, signal.SIGKILL)
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def _start(self, number: int, stream: int) -> None:
        if len(self._numbers) >= MAX_WORKERS:
            self._refuse(number, f"{MAX_WORKERS} workers are running")
            return
        try:
            pid = os.fork()
        except OSError as error:
            self._refuse(number, f"fork: {error.strerror}")
            return
        if pid == 0:
            self._become_worker(stream)
        self._numbers[pid] = number
        _tell(self._control, TemplateEvent("started", worker=number, pid=pid))

    def _refuse(self, number: int, reason: str) -> None:
        event = TemplateEvent(
            "exited",
            worker=number,
            status=1,
            code="worker_failed",
            message=f"no worker can be started: {reason}",
        )
        _tell(self._control, event)

    def _become_worker(self, stream: int) -> None:
        """Turn the forked child into a worker. Never returns."""
        status = 1
        try:
            confine.end_with_parent(self._pid)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            confine.close_all_but({0, 1, 2, stream})
            serve.serve_process(self._runtime, socket.socket(fileno=stream))
            status = 0
        except BaseException:
            # Only what no layer below expected comes here: its last words go to the parent's pipe.
            with contextlib.suppress(Exception):
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
        finally:
            # No clean-up of the parent's objects in its copy.
            os._exit(status)

    def _reap(self) -> None:
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            number = self._numbers.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            _tell(self._control, TemplateEvent("exited", worker=number, pid=pid, status=code))


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
    gc.collect()
    gc.freeze()
    return runtime


def _tell(control: socket.socket, event: TemplateEvent) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        control.send(msgspec.json.encode(event))
