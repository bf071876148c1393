"""How sessions are used for a model that keeps state which no input or output shows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from agent.documents.manifest import Limits, Variant
from agent.pipeline.tensors import Arrays
from agent.runtimes.api import Session

# A source and its inputs in, the raw outputs out.
Run = Callable[[str, Arrays], Arrays]
LoadSession = Callable[[], Session]


def compile_run(variant: Variant, limits: Limits, first: Session, load: LoadSession) -> Run:
    """Return what runs a variant so that no source sees another's hidden state.

    Args:
        variant: Its `hidden_state` says how.
        limits: How many sources there may be.
        first: A loaded session.
        load: Loads one more.
    """
    return _POLICIES[variant.hidden_state](limits, first, load)


def _shared(limits: Limits, first: Session, load: LoadSession) -> Run:
    run = first.run
    return lambda source, inputs: run(inputs)


def _reset(limits: Limits, first: Session, load: LoadSession) -> Run:
    def run(source: str, inputs: Arrays) -> Arrays:
        first.reset()
        return first.run(inputs)

    return run


def _per_source(limits: Limits, first: Session, load: LoadSession) -> Run:
    """One session each, made when a source is first heard of; the one silent for longest goes."""
    first.close()
    sessions: OrderedDict[str, Session] = OrderedDict()

    def run(source: str, inputs: Arrays) -> Arrays:
        session = sessions.get(source)
        if session is None:
            if len(sessions) >= limits.max_sources:
                sessions.popitem(last=False)[1].close()
            session = sessions[source] = load()
        else:
            sessions.move_to_end(source)
        return session.run(inputs)

    return run


_POLICIES: dict[str, Callable[[Limits, Session, LoadSession], Run]] = {
    "none": _shared,
    "reset": _reset,
    "per_source": _per_source,
}
