"""Variants of a pack in the making, each run in a worker of its own as on a device."""

from __future__ import annotations

import hashlib

import msgspec

from agent.author.folder import Folder
from agent.author.selection import Candidate, select
from agent.documents import codec
from agent.documents.manifest import Limits, Manifest
from agent.errors import MemoryLimit, ModelRejected, RuntimeUnavailable, SelfTestFailed
from agent.links.worker import BlockingWorker
from agent.pipeline.chain import ProducedBy, compile_chain
from agent.wire.worker import Load, Probed

MEMORY_MB = 1024


class Tried(msgspec.Struct, frozen=True):
    """How a variant did on this machine; `probed` is None where it was not run, `why` says why."""

    variant: str
    runtime: str
    probed: Probed | None
    why: str = ""


class Trials:
    """Runs variants of a pack in the making, each in a worker of its own."""

    def __init__(self, folder: Folder, limits: Limits, deadline_s: float) -> None:
        self._folder = folder
        self._memory_mb = limits.memory_mb or MEMORY_MB
        self._deadline_s = deadline_s

    def worker(self, manifest: Manifest, candidate: Candidate) -> BlockingWorker:
        """Start a worker for a variant; it has loaded nothing yet.

        Raises:
            RuntimeUnavailable: This machine has no runtime for it.
        """
        data = codec.encode(manifest)
        self._folder.write_manifest(data)
        load = Load(
            directory=str(self._folder.path),
            pack=f"sha256:{hashlib.sha256(data).hexdigest()}",
            variant=candidate.variant.name,
            memory_mb=self._memory_mb,
        )
        return BlockingWorker(
            candidate.runtime, load, load_deadline_s=self._deadline_s, deadline_s=self._deadline_s
        )

    def qualify(self, manifest: Manifest) -> tuple[Tried, ...]:
        """Let every variant that this machine can run pass the self-test, as a device will.

        Raises:
            AgentError: One does not; names it.
        """
        selection = select(manifest)
        tried = [self._qualify(manifest, candidate) for candidate in selection.candidates]
        ran = {one.variant for one in tried}
        left = [v for v in manifest.variants if v.name not in ran]
        reasons = zip(left, selection.refused, strict=True)
        return (*tried, *(Tried(variant.name, "", None, why) for variant, why in reasons))

    def _qualify(self, manifest: Manifest, candidate: Candidate) -> Tried:
        name = candidate.variant.name
        try:
            with self.worker(manifest, candidate) as worker:
                return Tried(name, candidate.runtime, worker.probe())
        except RuntimeUnavailable as error:
            return Tried(name, candidate.runtime, None, str(error))
        except MemoryLimit as error:
            raise with_hint(error) from None
        except SelfTestFailed as error:
            raise SelfTestFailed(
                f"variant {name}: {error.message}",
                hint="where the difference is meant, state a tolerance for it in model.toml; "
                "random numbers are a hard test, --samples FILE gives real ones",
            ) from None


def with_hint(error: MemoryLimit) -> MemoryLimit:
    """Return the error with what an author can do about it."""
    return MemoryLimit(error.message, hint="state what it needs as limits.memory_mb in model.toml")


def candidates_here(manifest: Manifest) -> tuple[Candidate, ...]:
    """Return the variants worth running on this machine, in order.

    Raises:
        ModelRejected: There is none, and why.
    """
    selection = select(manifest)
    if not selection.candidates:
        raise ModelRejected(f"no variant can be run here: {'; '.join(selection.refused)}")
    return selection.candidates


def check_chains(manifest: Manifest) -> None:
    """Compile the pipeline for every variant, as a worker will.

    Raises:
        DocumentError: It does not fit the signature or the variant; names the path.
    """
    for variant in manifest.variants:
        compile_chain(manifest, variant, produced_by=ProducedBy("", "", ""))
