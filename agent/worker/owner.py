"""The one process that holds a device which no two may hold, and runs the models of several workers
on it in turns.

It is forked from the same template as the workers, and before the first of them. Each worker has a
stream to it. It sees tensors and models, never a message or a pack; a run that does not end is
ended, with this process, when its worker is given up, and soon in any case.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec

from agent.documents.deployment import Share
from agent.documents.report import Isolation
from agent.errors import AgentError, MemoryLimit, ModelRejected, WorkerError
from agent.runtimes.api import ExclusiveRuntime, Session, Wanted
from agent.wire.worker import Failed
from agent.worker import child, confine, view
from agent.worker.confine import Held, Plan
from agent.worker.kernel import LayerUnavailable
from agent.worker.policies import POLICIES
from agent.worker.shared import (
    CLOSE,
    FAILED,
    HEAD,
    LOAD,
    LOADED,
    MAX_WORDS_BYTES,
    RAN,
    RESET,
    RUN,
    Ask,
    Loaded,
    Shapes,
)
from agent.worker.turns import Turns
from agent.worker.view import View

MAX_MODEL_BYTES = 256 * 1024 * 1024
MAX_SESSIONS = 64
# How long a worker may leave its answer unread.
SEND_S = 1.0
# How long a load or a run may keep the device from the others. A USB stick takes some three seconds
# to be opened for the first time.
LONGEST_TURN_S = 6.0
# Beyond what the libraries take; each model adds what its worker may take.
OWN_MEMORY_MB = 64
_NUMBER_BYTES = 8
_FIRST_BYTES = 4096
_MAX_PACKET = 64
LOCKED = b"locked"
_HEARS_OF_DEVICES = "socket (netlink)"


class OwnerProcess:
    """The owner, seen from the template that forked it."""

    def __init__(self, pid: int, control: socket.socket, busy: mmap.mmap) -> None:
        self.pid = pid
        self._control = control
        self._busy = busy

    def link(self, number: int) -> int:
        """Return a descriptor for worker `number`; -1: the owner has ended.

        Where it hangs and takes no more streams, the descriptor only says that nobody is there.
        """
        own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with own, theirs:
            try:
                socket.send_fds(self._control, [b"%d" % number], [theirs.fileno()])
            except BlockingIOError:
                pass
            except OSError:
                return -1
            return own.detach()

    def works_for(self, number: int) -> bool:
        """Whether it runs something for worker `number` at this moment."""
        return int.from_bytes(self._busy[:_NUMBER_BYTES], "little") == number

    def close(self) -> None:
        """It has ended."""
        self._control.close()
        self._busy.close()


class Birth(NamedTuple):
    """What the owner is made of.

    Attributes:
        runtime: Imported, with no session yet.
        control: Brings the workers' streams.
        busy: Says for which worker something runs, seen by the template too.
        parent: Process id of the template.
    """

    runtime: ExclusiveRuntime
    control: socket.socket
    busy: mmap.mmap
    parent: int


def prepare() -> tuple[mmap.mmap, socket.socket, socket.socket]:
    """Return the page of `busy`, and the template's and the owner's end of `control`."""
    busy = mmap.mmap(-1, mmap.PAGESIZE)
    own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # A template that waits for the owner would keep all its workers waiting.
    own.setblocking(False)
    return busy, own, theirs


def become(birth: Birth, plan: Plan, seen: View, line: int) -> NoReturn:
    """Turn a forked child of the template into the owner.

    Args:
        birth: What it is made of.
        plan: How it is to be confined.
        seen: What of the machine's files every process of this runtime needs.
        line: Takes `LOCKED` once it is confined, or the layer that could not be had and why.
    """

    def body() -> bool:
        birth.runtime.open_device()
        held = _lock(birth.runtime.policy(), plan, seen, line)
        if held is None:
            return False
        held.layers["memory"] = "rlimit_data"
        Owner(birth.runtime, birth.control, birth.busy, held.report()).serve()
        return True

    child.live(birth.parent, {birth.control.fileno(), line}, body)


def _lock(policy: str, plan: Plan, seen: View, line: int) -> Held | None:
    """Confine this process by its device's policy and say so; None: it cannot be."""
    if _HEARS_OF_DEVICES in POLICIES[policy].calls and "net" in plan.layers:
        # The kernel tells of devices in the machine's own network namespace only. Of sockets, the
        # filter lets through those for that alone.
        plan = plan.without("net", "the device's library must hear of devices")
    try:
        held = confine.confine(plan, view.add(seen, POLICIES[policy], ""), policy)
    except LayerUnavailable as error:
        os.write(line, msgspec.json.encode((error.layer, error.reason)))
        return None
    os.write(line, LOCKED)
    os.close(line)
    return held


class _Held:
    """A loaded model."""

    def __init__(self, session: Session, memory_mb: int) -> None:
        self.session = session
        self.memory_mb = memory_mb
        self.given = Shapes(session.inputs)
        self.taken = Shapes(session.outputs)


class _Client:
    """One worker: what it has loaded, and the request that it is sending or waits for."""

    def __init__(self, number: int, stream: socket.socket) -> None:
        self.number = number
        self.stream = stream
        self.models: dict[int, _Held] = {}
        # Once a request is whole: kind, model, body.
        self.request: tuple[int, int, memoryview] | None = None
        self.file = -1
        self._buffer = bytearray(_FIRST_BYTES)
        self._filled = 0

    def read(self) -> bool:
        """Read what is there of the next request; False: this client has gone, or errs."""
        while self.request is None:
            wanted = self._wanted()
            if wanted is None:
                return False
            if wanted > len(self._buffer):
                self._buffer += bytes(wanted - len(self._buffer))
            place = memoryview(self._buffer)[self._filled : wanted]
            try:
                count, ancillary, _, _ = self.stream.recvmsg_into([place], socket.CMSG_SPACE(4))
            except BlockingIOError:
                return True
            except OSError:
                return False
            for _, kind, data in ancillary:
                if kind == socket.SCM_RIGHTS:
                    self.forget_file()
                    self.file = int.from_bytes(data[:4], sys.byteorder)
            if not count:
                return False
            self._filled += count
            if self._filled >= HEAD.size and self._filled == self._wanted():
                kind, model, length = HEAD.unpack_from(self._buffer)
                body = memoryview(self._buffer)[HEAD.size : HEAD.size + length]
                self.request, self._filled = (kind, model, body), 0
        return True

    def _wanted(self) -> int | None:
        """How long the request is, as far as it is known; None: it may not be."""
        if self._filled < HEAD.size:
            return HEAD.size
        kind, model, length = HEAD.unpack_from(self._buffer)
        held = self.models.get(model)
        if kind == LOAD:
            fits = held is None and length <= MAX_WORDS_BYTES - HEAD.size
        else:
            fits = held is not None and length == (held.given.size if kind == RUN else 0)
        return HEAD.size + length if fits else None

    def forget_file(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def close(self) -> None:
        self.forget_file()
        self.stream.close()
        for held in self.models.values():
            held.session.close()


class Owner:
    """The loop: take requests, run one at a time, in turns.

    Args:
        runtime, control, busy: As for `Birth`.
        isolation: What holds this process.
        clock: What turns are counted by, in seconds.
    """

    def __init__(
        self,
        runtime: ExclusiveRuntime,
        control: socket.socket,
        busy: mmap.mmap,
        isolation: Isolation,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime = runtime
        self._control = control
        self._busy = busy
        self._isolation = isolation
        self._clock = clock
        self._libraries_bytes = _private_bytes()
        self._turns = Turns()
        self._clients: dict[int, _Client] = {}
        self._by_descriptor: dict[int, _Client] = {}
        # Not poll: it waits in whole milliseconds. There are at most as many as confinement allows.
        self._watched: set[int] = {control.fileno()}

    def serve(self) -> None:
        """Serve until the template has ended."""
        while True:
            waiting = [c.number for c in self._clients.values() if c.request is not None]
            wait_s = self._turns.wait_s(waiting, self._clock())
            timeout = None if math.isinf(wait_s) else wait_s
            for descriptor in select.select(self._watched, (), (), timeout)[0]:
                client = self._by_descriptor.get(descriptor)
                if client is not None:
                    self._read(client)
                elif not self._greet():
                    return
            waiting = [c.number for c in self._clients.values() if c.request is not None]
            chosen = self._turns.next(waiting, self._clock())
            if chosen is not None:
                self._take_turn(self._clients[chosen])

    def _greet(self) -> bool:
        packet, descriptors, _, _ = socket.recv_fds(self._control, _MAX_PACKET, 1)
        if not packet:
            return False
        stream = socket.socket(fileno=descriptors[0])
        stream.setblocking(False)
        client = _Client(int(packet), stream)
        self._clients[client.number] = self._by_descriptor[stream.fileno()] = client
        self._watched.add(stream.fileno())
        return True

    def _read(self, client: _Client) -> None:
        try:
            goes_on = client.read()
        except MemoryError:
            goes_on = False
        if not goes_on:
            self._part(client)
        elif client.request is not None:
            # It sends nothing more before it is answered.
            self._watched.discard(client.stream.fileno())
            if client.request[0] == LOAD:
                self._turns.join(client.number, _share(client.request[2]), self._clock())
            self._turns.ask(client.number)

    def _part(self, client: _Client) -> None:
        self._watched.discard(client.stream.fileno())
        del self._clients[client.number], self._by_descriptor[client.stream.fileno()]
        self._turns.leave(client.number)
        client.close()

    def _take_turn(self, client: _Client) -> None:
        assert client.request is not None
        kind, model, body = client.request
        started = self._clock()
        self._busy[:_NUMBER_BYTES] = client.number.to_bytes(_NUMBER_BYTES, "little")
        # A library that hangs hears of nothing else: the kernel ends this process then.
        signal.setitimer(signal.ITIMER_REAL, LONGEST_TURN_S)
        try:
            answered, parts = self._do(client, kind, model, body)
        except MemoryError:
            limit = sum(held.memory_mb for held in client.models.values())
            error: AgentError = MemoryLimit(f"it needs more memory than its {limit} MB")
            answered, parts = FAILED, [_words(error)]
        except AgentError as error:
            answered, parts = FAILED, [_words(error)]
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        self._busy[:_NUMBER_BYTES] = bytes(_NUMBER_BYTES)
        now = self._clock()
        self._turns.took(client.number, now - started, now)
        client.request = None
        self._answer(client, HEAD.pack(answered, model, sum(map(len, parts))), parts)

    def _answer(self, client: _Client, head: bytes, parts: list[bytes]) -> None:
        try:
            client.stream.settimeout(SEND_S)
            client.stream.sendall(b"".join((head, *parts)))
            client.stream.setblocking(False)
        except OSError:
            self._part(client)
            return
        self._watched.add(client.stream.fileno())

    def _do(
        self, client: _Client, kind: int, model: int, body: memoryview
    ) -> tuple[int, list[bytes]]:
        if kind == LOAD:
            return LOADED, [self._load(client, model, body)]
        held = client.models[model]
        if kind == RUN:
            arrays = held.session.run(held.given.split(body))
            return RAN, held.taken.join(arrays)
        if kind == RESET:
            held.session.reset()
        elif kind == CLOSE:
            del client.models[model]
            held.session.close()
            self._allow_memory(0)
        else:
            raise WorkerError(f"the owner of a device got a request of kind {kind}")
        return kind, []

    def _load(self, client: _Client, model: int, body: memoryview) -> bytes:
        try:
            ask = msgspec.json.decode(body, type=Ask)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WorkerError(f"a request to load a model cannot be read: {error}") from None
        data = _content(client.file)
        client.forget_file()
        if len(client.models) >= MAX_SESSIONS:
            raise ModelRejected(f"at most {MAX_SESSIONS} models can be loaded by one worker")
        self._allow_memory(ask.memory_mb)
        wanted = Wanted(ask.provider, ask.threads, ask.options)
        try:
            session = self._runtime.load_bytes(data, wanted, outputs=ask.outputs)
            client.models[model] = _Held(session, ask.memory_mb)
        finally:
            self._allow_memory(0)
        sides = tuple(session.inputs), tuple(session.outputs)
        loaded = Loaded(*sides, session.placement, self._isolation)
        return msgspec.json.encode(loaded)

    def _allow_memory(self, more_mb: int) -> None:
        """Limit this process to what its models' workers may take, all together."""
        models = [held for client in self._clients.values() for held in client.models.values()]
        total_mb = OWN_MEMORY_MB + more_mb + sum(held.memory_mb for held in models)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = self._libraries_bytes + total_mb * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _private_bytes() -> int:
    """Return what this process has of the memory that RLIMIT_DATA limits (`statm` of proc(5))."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def _share(body: memoryview) -> Share:
    try:
        return msgspec.json.decode(body, type=Ask).share
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Share()


def _content(file: int) -> bytes:
    """Read the file that a worker has sent open.

    Raises:
        ModelRejected: It sent none, or one that is no file or too large.
    """
    if file < 0 or not stat.S_ISREG(os.fstat(file).st_mode):
        raise ModelRejected("no model file came with the request to load one")
    size = os.fstat(file).st_size
    if size > MAX_MODEL_BYTES:
        raise ModelRejected(f"the model has {size} bytes, at most {MAX_MODEL_BYTES} can be shared")
    return os.pread(file, size, 0)


def _words(error: AgentError) -> bytes:
    failed = Failed(error.code, error.message[:1000], error.hint[:1000], error.retryable)
    return msgspec.json.encode(failed)
