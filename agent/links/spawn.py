"""Starts a template process with as few imports as that takes.

`edgeward run` calls this before anything else of the agent is imported: a runtime takes longer to
import than the agent does, and both can be done at one time.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

# All that a template, and so each worker, gets to know of its surroundings.
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    # ONNX Runtime's wheels call home unless this is set before they are imported.
    "ORT_DISABLE_TELEMETRY": "1",
    # A helper thread in the template would make it unsafe to fork.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc otherwise gives a run's memory back after each message and faults it in again.
    "MALLOC_TRIM_THRESHOLD_": "67108864",
    "MALLOC_MMAP_THRESHOLD_": "67108864",
}
# What the agent's own environment may add: where its operator keeps libraries of accelerators.
_PASSED_ON = ("LD_LIBRARY_PATH",)
# The template's end of the control socket, in the template.
CONTROL = 3


class Child:
    """A process that this one has started and will wait for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def kill(self) -> None:
        """Kill it, unless it was waited for. Safe to call twice."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for its end.

        Returns:
            As os.waitstatus_to_exitcode: its exit code, or minus the signal that ended it.

        Raises:
            TimeoutError: It still runs.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while self._status is None:
            flags = 0 if until is None else os.WNOHANG
            try:
                pid, status = os.waitpid(self.pid, flags)
            except ChildProcessError:
                # Somebody else in this program has waited for it.
                self._status = 0
                break
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            elif until is not None:
                self._watch(until)
        return self._status

    def _watch(self, until: float) -> None:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"process {self.pid} still runs")
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            # A kernel before 5.3.
            time.sleep(min(left_s, 0.005))
            return
        try:
            select.select([descriptor], [], [], left_s)
        finally:
            os.close(descriptor)


class Spawned:
    """A template process from its first moment, for `agent.links.template` to talk with.

    Attributes:
        child: The process.
        control: This side's end of the control socket; does not block.
        output: Where what it and its workers print can be read; does not block.
    """

    def __init__(self, runtime: str, child: Child, control: socket.socket, output: int) -> None:
        self.runtime = runtime
        self.child = child
        self.control = control
        self.output = output


def spawn_template(runtime: str) -> Spawned:
    """Start the process that imports one runtime and forks workers.

    It ends with the thread that calls this.

    Raises:
        OSError: The machine has no room for one more process or descriptor.
    """
    return spawn(
        runtime,
        [sys.executable, "-I", "-m", "agent.worker", runtime, str(CONTROL), str(os.getpid())],
        {**ENVIRONMENT, **{k: os.environ[k] for k in _PASSED_ON if k in os.environ}},
    )


def spawn(runtime: str, command: list[str], environment: dict[str, str]) -> Spawned:
    """Start a program that speaks as a template does, on descriptor `CONTROL`.

    Raises:
        OSError: The machine has no room for one more process or descriptor.
    """
    opened: list[int] = []
    own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        own.setblocking(False)
        opened.append(null := os.open(os.devnull, os.O_RDONLY))
        output, log = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        opened.append(log)
        try:
            pid = os.posix_spawn(
                command[0],
                command,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, _above(theirs.fileno(), opened), CONTROL),
                    (os.POSIX_SPAWN_DUP2, _above(null, opened), 0),
                    (os.POSIX_SPAWN_DUP2, _above(log, opened), 1),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                # What Python ignores, and other programs expect not to be ignored.
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError:
            os.close(output)
            raise
    except OSError:
        own.close()
        raise
    finally:
        theirs.close()
        for descriptor in opened:
            os.close(descriptor)
    return Spawned(runtime, Child(pid), own, output)


def _above(descriptor: int, opened: list[int]) -> int:
    """Return the descriptor on a number that is none of those the program will see."""
    while descriptor <= CONTROL:
        descriptor = os.dup(descriptor)
        opened.append(descriptor)
    return descriptor
