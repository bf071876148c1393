"""Which variants of a pack a workstation runs to make it or to try it, without asking what it is.

A device, and `edgeward bench`, choose by measurement instead: `agent.control.plan` and `contest`.
"""

from __future__ import annotations

import msgspec

from agent.control.capabilities import runtimes_for
from agent.documents.manifest import Manifest, Variant


class Candidate(msgspec.Struct, frozen=True):
    """A variant and the runtime that anybody would think of first for it."""

    variant: Variant
    runtime: str


class Selection(msgspec.Struct, frozen=True):
    """Candidates in the pack's order, and a sentence for each variant that is none."""

    candidates: tuple[Candidate, ...]
    refused: tuple[str, ...]


def select(manifest: Manifest) -> Selection:
    """Choose the variants of a pack to run."""
    candidates: list[Candidate] = []
    refused: list[str] = []
    for variant in manifest.variants:
        if variant.needs.edgetpu:
            refused.append(f"{variant.name}: needs an Edge TPU; a workstation does not run it")
            continue
        # A format that another package brings goes to the runtime of its name.
        runtime = next(iter(runtimes_for(variant.format)), variant.format)
        candidates.append(Candidate(variant, runtime))
    return Selection(tuple(candidates), tuple(refused))
