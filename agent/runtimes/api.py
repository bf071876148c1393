"""The two protocols that every adapter over an inference library fulfils.

An adapter moves tensors and nothing else: no resizing, scaling, box decoding or labels. Those are
declared in the manifest and done in the `pipeline` room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from numpy.typing import NDArray

from agent.documents.deployment import Share
from agent.documents.device import RuntimeFacts
from agent.documents.manifest import Tensor
from agent.documents.report import Placement

Array = NDArray[Any]
Arrays = Mapping[str, Array]

MAX_REASON = 500
ALONE = Share()


class Wanted(msgspec.Struct, frozen=True):
    """How a model is to be run.

    Args:
        provider: What is to compute, by the library's own name; empty: its CPU kernels.
        threads: How many CPU threads a run may use, the caller's own included.
        options: For the provider, by the library's names; an adapter takes those that it knows to
            be harmless and refuses the others.
        share: Of a device that other processes use too.
        memory_mb: What the process that loads it for others may take more; 0: that has its limit.
        cache: A folder of this model, runtime, driver and device alone, for what the library
            compiles; None: there is none.
        fill: Put there what is compiled. False: use what is there; the folder cannot be written.
    """

    provider: str = ""
    threads: int = 1
    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    share: Share = ALONE
    memory_mb: int = 0
    cache: Path | None = None
    fill: bool = False


class Session(Protocol):
    """One loaded model, used from one thread.

    `inputs` and `outputs` are what the file says of itself, in the file's order; -1 in a shape is
    a dimension that each run may choose. An empty shape is a scalar's, or the file says nothing of
    how many dimensions there are: the libraries do not tell these apart.
    """

    @property
    def inputs(self) -> Sequence[Tensor]: ...

    @property
    def outputs(self) -> Sequence[Tensor]: ...

    @property
    def placement(self) -> Placement:
        """What really computes, as the loaded model itself shows: an execution provider's or a
        delegate's own name, or `CPU`."""

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run once, blocking; the caller does the timing.

        Args:
            arrays: One C-contiguous array per input, of exactly its dtype, free dimensions
                filled: (1, 224, 224, 3) uint8 for a quantised image model. Values as the model
                stores them, not rescaled; BYTES as an object array of str or bytes. Not modified.

        Returns:
            One array per output, in memory that the caller may keep and change after the next run.

        Raises:
            BadInput: A name, dtype or shape does not fit the model.
            ModelError: The runtime failed on arrays that fit.
            MemoryError: The run needs more memory than this process may have.
        """

    def reset(self) -> None:
        """Forget the state that earlier runs left inside the model."""

    def close(self) -> None:
        """Release the model and its device. Safe to call twice."""


class Runtime(Protocol):
    """Loads model files with one inference library. Imported only where a model is loaded.

    Its module, or its class when it is called, raises `RuntimeUnavailable` where the library is
    absent, too old or badly installed: in one sentence, with a hint what to do. Neither starts a
    thread: workers are forked from the process that imported it.
    """

    @property
    def name(self) -> str:
        """As packs, settings and reports call it."""

    @property
    def version(self) -> str:
        """The library's."""

    @property
    def formats(self) -> Sequence[str]:
        """Of `agent.formats`, or of its own package: the model files that it loads."""

    def facts(self) -> RuntimeFacts:
        """Say what this build of the library can do. Under 1 s; loads no model."""

    def probe(self) -> str | None:
        """Say what this machine lacks for the runtime, or None. Under 1 s; loads no model."""

    def load(self, model: Path, wanted: Wanted, *, outputs: Sequence[str] = ()) -> Session:
        """Load a file whose digest and format have been checked.

        Args:
            model: The file, in a folder of its own; what it refers to is looked for there only.
            wanted: On what. Where less can be had the session's placement says so.
            outputs: Names of the outputs that `run` shall give; all of them when empty.

        Raises:
            ModelRejected: Wrong format, unknown operator, a type without an array. Permanent.
            RuntimeUnavailable: This build has no such provider, or does not take an option; names
                what it has.
            MemoryError: The model needs more memory than this process may have.
        """


class CompiledSession(Session, Protocol):
    """A session of a runtime that compiles (`RuntimeFacts.compiles`) and can tell whether it was
    spared that."""

    @property
    def compiled(self) -> str:
        """`used`: it was loaded from `Wanted.cache`. `refused`: what is there is of no use, and
        the model was compiled anew. Nothing: there is none."""


class ExclusiveRuntime(Runtime, Protocol):
    """A runtime over a device that one process at a time may hold. The workers of a template share
    a process that does, which loads models from bytes and never sees a pack."""

    exclusive: bool

    def policy(self) -> str:
        """Name what the process that holds the device is confined by (`agent.worker.policies`)."""

    def open_device(self) -> None:
        """Open what it takes to hold the device later, when no file may be opened."""

    def load_bytes(self, data: bytes, wanted: Wanted, *, outputs: Sequence[str] = ()) -> Session:
        """Load a model whose shapes are all fixed; else as `load`.

        Raises:
            AcceleratorFailed: The device is absent, held by another process, or does not work.
        """


def shorten(reason: object) -> str:
    """Return a library's own words on one line, at most `MAX_REASON` characters."""
    text = " ".join(str(reason).split())
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"
