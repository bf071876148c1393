"""Template processes and the workers forked from them, seen from who starts them.

Nothing here blocks, save `start_template` for the few milliseconds of an exec: the daemon watches
`control` in its loop and calls `read_events`; a workstation's command waits on it with a deadline.
"""

from __future__ import annotations

import io
import re
import signal
import socket
from contextlib import suppress

import msgspec

from agent.documents.text import printable
from agent.errors import AgentError, MemoryLimit, RuntimeUnavailable, WorkerError, WorkerExited
from agent.links.spawn import Spawned, spawn_template
from agent.wire.worker import Load, TemplateEvent, read

# What a worker's stream can hold before the sender waits; the kernel caps it at `wmem_max`.
STREAM_BYTES = 1024 * 1024
LAST_WORDS_BYTES = 4096
_MAX_PACKET = 8192
_MAX_OUTPUT = 65536
_MAX_EVENTS = 64
_EXIT_DEADLINE_S = 2.0
# By status; each is a limit of the confinement (agent.worker.confine), none a crash.
_ENDED_BY_LIMIT = {
    -signal.SIGXCPU: (
        "took more processor time to load than it may",
        "the model does not end loading, or is too large for this machine",
    ),
    -signal.SIGXFSZ: (
        "tried to write a file",
        "a model may write nothing, and what compiles it no file of more than 1 GiB",
    ),
    -signal.SIGSYS: (
        "made a system call that it may not make",
        "the runtime needs what the worker's confinement denies: docs/isolation.md",
    ),
}
_NO_MEMORY = re.compile(r"bad_alloc|annot allocate memory|MemoryError|ut of memory")


class TemplateProcess:
    """A running template process. Made by `start_template`."""

    def __init__(self, spawned: Spawned) -> None:
        self.runtime = spawned.runtime
        self.pid = spawned.child.pid
        # Readable when `read_events` has something to say, the end included.
        self.control = spawned.control
        self._child = spawned.child
        self._output = io.FileIO(spawned.output)
        # It has told that its runtime is imported.
        self.is_ready = False
        self._last_words = b""

    def request_worker(self, number: int, load: Load, group: int | None = None) -> socket.socket:
        """Ask for a worker; `started` and `exited` events will carry its number.

        Args:
            number: As long as this template lives, no other's.
            load: What it will be told to load: its folders are all that it gets to see, its
                policy how it is confined.
            group: The open `cgroup.procs` of the control group that it is to live in; it stays the
                caller's.

        Returns:
            This side's end of the worker's stream, blocking.

        Raises:
            OSError: The template is gone, or does not read what it is sent.
        """
        own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                for end in (own, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, STREAM_BYTES)
                request = {
                    "worker": number,
                    "directory": load.directory,
                    "cache": load.cache,
                    "policy": load.policy,
                    "uid": load.uid,
                }
                sent = [theirs.fileno()] if group is None else [theirs.fileno(), group]
                socket.send_fds(self.control, [msgspec.json.encode(request)], sent)
            except OSError:
                own.close()
                raise
        return own

    def kill_worker(self, pid: int) -> None:
        """Have a worker killed by its parent, for whom its process id cannot be another's yet."""
        # A template that does not take it is gone, and its workers with it.
        with suppress(OSError):
            self.control.send(b'{"kill":%d}' % pid)

    def read_events(self) -> list[TemplateEvent] | None:
        """Return what the template has told since the last call; None: it has ended.

        Raises:
            WorkerError: It speaks something else.
        """
        self._drain_output()
        events: list[TemplateEvent] = []
        while len(events) < _MAX_EVENTS:
            try:
                packet = self.control.recv(_MAX_PACKET)
            except BlockingIOError:
                return events
            except ConnectionError:
                packet = b""
            if not packet:
                return events or None
            event = read(packet, TemplateEvent)
            self.is_ready = self.is_ready or event.event == "ready"
            events.append(event)
        return events

    def take_last_words(self) -> str:
        """Return the end of what the template and its workers wrote to stderr and stdout since the
        last call."""
        self._drain_output()
        words, self._last_words = self._last_words, b""
        return words.decode("utf-8", "replace").strip()

    def wait_reason(self) -> str:
        """Say in a sentence how the template ended; ends it if it has not."""
        status = self._wait()
        what = "stopped working" if self.is_ready else "cannot be imported here"
        return f"the runtime {self.runtime} {what} ({describe_status(status)})"

    def failure(self) -> AgentError:
        """Return the error for a template that ended by itself; ends it if it has not."""
        status = self._wait()
        if self.is_ready:
            return WorkerExited(self.wait_reason())
        if status == -signal.SIGILL:
            hint = "its wheel uses instructions that this processor lacks: install another build"
        else:
            hint = _last_line(self.take_last_words())
        return RuntimeUnavailable(self.wait_reason(), hint=hint)

    def kill(self) -> None:
        """End the template and, with it, its workers. Safe to call twice."""
        self._child.kill()
        self._child.wait()
        self._drain_output()
        self.control.close()
        self._output.close()

    def _wait(self) -> int:
        try:
            return self._child.wait(_EXIT_DEADLINE_S)
        except TimeoutError:
            self._child.kill()
            return self._child.wait()

    def _drain_output(self) -> None:
        # The pipe does not make its writers wait: what comes while it is full is lost, so a
        # worker that floods it costs nobody more than this one read.
        if not self._output.closed:
            chunk = self._output.read(_MAX_OUTPUT) or b""
            self._last_words = (self._last_words + chunk)[-LAST_WORDS_BYTES:]


def start_template(runtime: str) -> TemplateProcess:
    """Start the process that imports one runtime and forks workers.

    It ends with the thread that calls this, or earlier by `kill`. Its first event is `ready` or
    `failed`; a runtime whose import kills the process gives none.

    Raises:
        OSError: The machine has no room for one more process or descriptor.
    """
    return TemplateProcess(spawn_template(runtime))


def describe_status(status: int) -> str:
    """Say how a process ended: `signal 11, SIGSEGV` or `exit status 1`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {-status}, {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def describe_exit(status: int, memory_mb: int, last_words: str = "") -> WorkerError:
    """Return the error for a worker that ended by itself.

    Args:
        status: As os.waitstatus_to_exitcode gives it.
        memory_mb: The limit that the worker had.
        last_words: What it wrote to stderr.
    """
    if status in (-signal.SIGABRT, 127, 1) and _NO_MEMORY.search(last_words):
        # glibc and C++ end a process that cannot get memory where no error can be returned.
        return memory_limit(memory_mb)
    if status == -signal.SIGKILL:
        return WorkerExited(
            "the worker was killed (signal 9, SIGKILL)",
            hint="the kernel does this when the machine runs out of memory",
        )
    if status in _ENDED_BY_LIMIT:
        what, hint = _ENDED_BY_LIMIT[status]
        return WorkerExited(f"the worker {what} ({describe_status(status)})", hint=hint)
    if status < 0:
        return WorkerExited(f"the model crashed the runtime ({describe_status(status)})")
    return WorkerExited(
        f"the worker ended unasked ({describe_status(status)})", hint=_last_line(last_words)
    )


def _last_line(words: str) -> str:
    return printable(words.rstrip().rpartition("\n")[2][-300:], 300)


def memory_limit(memory_mb: int) -> MemoryLimit:
    """Return the error for a model that wants more memory than it may have."""
    return MemoryLimit(
        f"the model needs more memory than the limit of {memory_mb} MB",
        hint="raise limits.worker_memory_mb if the device has it, or use a smaller variant",
    )
