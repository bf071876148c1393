"""Runs a pack in a real worker on this machine, with no daemon and no broker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.author.folder import OpenedPack, open_pack, require_whole
from agent.author.golden import error_in
from agent.author.selection import Candidate, select
from agent.author.trials import MEMORY_MB
from agent.errors import AgentError, ModelRejected, RuntimeUnavailable, UsageError
from agent.links.worker import BlockingWorker
from agent.wire import frames
from agent.wire.worker import Load

Settings = Mapping[str, str | int | float | bool]

DEADLINE_S = 30.0
TOPIC = "predict"


def serve(
    directory: Path,
    *,
    variant: str = "",
    settings: Settings | None = None,
    deadline_s: float = DEADLINE_S,
) -> BlockingWorker:
    """Start a worker that serves a pack; close it, or use it as a context manager.

    Args:
        directory: The pack.
        variant: The variant to run; default: the first that runs here.
        settings: As a slot's: they win over options of the pack's steps.
        deadline_s: How long loading the model, or one answer, may take.

    Raises:
        UsageError: There is no pack, or no such variant in it.
        DigestMismatch, DocumentError: The pack is not what its manifest says.
        AgentError: No variant loads here; says why.
    """
    opened = open_pack(directory)
    require_whole(opened)
    reason: AgentError | None = None
    for candidate in _candidates(opened, variant):
        try:
            return _load(opened, candidate, settings or {}, deadline_s)
        except (RuntimeUnavailable, ModelRejected) as error:
            # Another variant may still run; the first reason is the one that counts.
            reason = reason or error
    assert reason is not None
    raise reason


def _candidates(opened: OpenedPack, variant: str) -> tuple[Candidate, ...]:
    selection = select(opened.manifest)
    chosen = tuple(c for c in selection.candidates if variant in ("", c.variant.name))
    if chosen:
        return chosen
    names = [known.name for known in opened.manifest.variants]
    if variant and variant not in names:
        raise UsageError(f"the pack has no variant {variant!r}", hint=f"it has {', '.join(names)}")
    refused = [why for why in selection.refused if not variant or why.startswith(f"{variant}:")]
    raise ModelRejected(f"no variant can be run here: {'; '.join(refused)}")


def _load(
    opened: OpenedPack, candidate: Candidate, settings: Settings, deadline_s: float
) -> BlockingWorker:
    load = Load(
        directory=str(opened.directory.absolute()),
        pack=opened.pack,
        variant=candidate.variant.name,
        memory_mb=opened.manifest.limits.memory_mb or MEMORY_MB,
        settings=dict(settings),
    )
    worker = BlockingWorker(
        candidate.runtime, load, load_deadline_s=deadline_s, deadline_s=deadline_s
    )
    try:
        worker.load()
    except BaseException:
        worker.close()
        raise
    return worker


def ask(worker: BlockingWorker, payload: bytes, *, topic: str = TOPIC) -> bytes | None:
    """Send one message.

    Returns:
        The encoded prediction; None where a window took the message in.

    Raises:
        AgentError: There is no prediction; says why.
    """
    answer = worker.ask(topic, payload)
    if answer.outcome == frames.REJECTED:
        raise error_in(answer.payload)
    return answer.payload if answer.outcome == frames.PREDICTION else None
