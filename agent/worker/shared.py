"""A model that another process holds, since only one may hold its device: the worker's side.

The worker decodes, prepares and encodes as always; only tensors go to the owner (`owner.py`) and
come back. The model file goes there as an open descriptor, so the owner reads no path that it is
told. A request is a head (kind, session, length) and so many bytes; the answer is the same.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agent import errors
from agent.documents.deployment import Share
from agent.documents.device import RuntimeFacts
from agent.documents.manifest import Tensor
from agent.documents.report import Isolation, Placement
from agent.errors import AcceleratorFailed, BadInput, ModelRejected, retold
from agent.pipeline.tensors import DTYPES
from agent.runtimes.api import Arrays, Runtime, Wanted
from agent.wire.worker import Failed

HEAD = struct.Struct("<BII")
LOAD, LOADED, RUN, RAN, RESET, CLOSE, FAILED = range(1, 8)
MAX_WORDS_BYTES = 64 * 1024


class Ask(msgspec.Struct, frozen=True, omit_defaults=True):
    """LOAD: a model, whose descriptor comes with it."""

    provider: str = ""
    threads: int = 1
    options: dict[str, str] = {}
    outputs: tuple[str, ...] = ()
    share: Share = Share()
    memory_mb: int = 0


class Loaded(msgspec.Struct, frozen=True):
    """LOADED: what `Session` has of it."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    placement: Placement
    owner: Isolation


class Shapes:
    """The tensors of one side of a model, all of fixed shape, as bytes one behind the other.

    Raises:
        ModelRejected: A shape is free, or a type has no fixed size.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.parts: list[tuple[str, np.dtype[Any], tuple[int, ...], int]] = []
        for tensor in tensors:
            if -1 in tensor.shape or tensor.datatype == "BYTES":
                raise ModelRejected(
                    f"{tensor.name!r} has no fixed size, as a model for a shared device must"
                )
            dtype, shape = DTYPES[tensor.datatype], tuple(tensor.shape)
            self.parts.append((tensor.name, dtype, shape, dtype.itemsize * prod(shape)))
        self.size = sum(size for *_, size in self.parts)

    def split(self, data: bytearray | memoryview) -> dict[str, Any]:
        """Return the arrays that lie in some bytes; they share its memory."""
        arrays, at = {}, 0
        for name, dtype, shape, size in self.parts:
            arrays[name] = np.frombuffer(data, dtype, prod(shape), at).reshape(shape)
            at += size
        return arrays

    def join(self, arrays: Arrays) -> list[bytes]:
        """Return the bytes of arrays, in order.

        Raises:
            BadInput: One is missing, or of another type or shape.
        """
        parts = []
        for name, dtype, shape, _ in self.parts:
            array = arrays.get(name)
            if array is None:
                raise BadInput(f"the input {name!r} is missing")
            if array.dtype != dtype or array.shape != shape:
                raise BadInput(
                    f"the input {name!r} is {array.dtype} {list(array.shape)}, the model takes "
                    f"{dtype} {list(shape)}"
                )
            parts.append(array.tobytes())
        return parts


class SharedRuntime:
    """Stands in for a runtime in a worker; loads by asking the owner of the device."""

    def __init__(self, runtime: Runtime, stream: socket.socket) -> None:
        self.name = runtime.name
        self.version = runtime.version
        self.formats = runtime.formats
        self._runtime = runtime
        self._stream = stream
        self._next = 1

    def facts(self) -> RuntimeFacts:
        return self._runtime.facts()

    def probe(self) -> str | None:
        return self._runtime.probe()

    def load(self, model: Path, wanted: Wanted, *, outputs: Sequence[str] = ()) -> SharedSession:
        """Load a model in the owner; see `Runtime.load`."""
        number, self._next = self._next, self._next + 1
        ask = Ask(
            wanted.provider,
            wanted.threads,
            dict(wanted.options),
            tuple(outputs),
            wanted.share,
            wanted.memory_mb,
        )
        body = msgspec.json.encode(ask)
        file = os.open(model, os.O_RDONLY | os.O_CLOEXEC)
        try:
            socket.send_fds(self._stream, [HEAD.pack(LOAD, number, len(body)), body], [file])
        except OSError:
            raise gone() from None
        finally:
            os.close(file)
        return SharedSession(self._stream, number, msgspec.json.decode(self._hear(), type=Loaded))

    def _hear(self) -> bytearray:
        return hear(self._stream, MAX_WORDS_BYTES)


class SharedSession:
    """One model in the owner."""

    def __init__(self, stream: socket.socket, number: int, loaded: Loaded) -> None:
        self.inputs = loaded.inputs
        self.outputs = loaded.outputs
        self.placement = loaded.placement
        # What holds the process that runs it.
        self.owner = loaded.owner
        self._stream = stream
        self._number = number
        self._given = Shapes(loaded.inputs)
        self._taken = Shapes(loaded.outputs)
        self._closed = False

    def run(self, arrays: Arrays) -> dict[str, Any]:
        """Run once, when it is this slot's turn; see `Session.run`.

        Raises:
            AcceleratorFailed: The device failed, or its owner has ended.
        """
        if len(arrays) != len(self.inputs):
            names = ", ".join(tensor.name for tensor in self.inputs)
            raise BadInput(f"the model takes the inputs {names}; got {', '.join(arrays) or 'none'}")
        parts = self._given.join(arrays)
        self._tell(RUN, self._given.size, parts)
        return self._taken.split(hear(self._stream, self._taken.size))

    def reset(self) -> None:
        self._tell(RESET)
        hear(self._stream, 0)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._tell(CLOSE)
            hear(self._stream, 0)

    def _tell(self, kind: int, length: int = 0, parts: Sequence[bytes] = ()) -> None:
        try:
            self._stream.sendall(b"".join((HEAD.pack(kind, self._number, length), *parts)))
        except OSError:
            raise gone() from None


def hear(stream: socket.socket, most: int) -> bytearray:
    """Return the body of the owner's answer.

    Raises:
        AgentError: What the owner says went wrong.
        AcceleratorFailed: It has ended.
        MemoryError: The model needs more memory than it may have there.
    """
    kind, _, length = HEAD.unpack(_exactly(stream, HEAD.size))
    if length > (MAX_WORDS_BYTES if kind == FAILED else most):
        raise AcceleratorFailed(f"the owner of the device announced {length} bytes")
    body = _exactly(stream, length)
    if kind != FAILED:
        return body
    failed = msgspec.json.decode(body, type=Failed)
    if failed.code == errors.MemoryLimit.code:
        raise MemoryError(failed.message)
    raise retold(failed.code, failed.message, failed.hint, otherwise=AcceleratorFailed)


def gone() -> AcceleratorFailed:
    return AcceleratorFailed(
        "the process that holds the device has ended: its library crashed, or a run did not end",
        hint="the log says how; it is started again when the device is tried again",
    )


def _exactly(stream: socket.socket, count: int) -> bytearray:
    data, at = bytearray(count), 0
    while at < count:
        try:
            read = stream.recv_into(memoryview(data)[at:])
        except OSError:
            read = 0
        if not read:
            raise gone()
        at += read
    return data
