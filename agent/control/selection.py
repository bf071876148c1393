"""Which variant of a pack a device tries, in which order, and why it leaves others out."""

from __future__ import annotations

from dataclasses import dataclass

from agent.documents.choice import Way
from agent.documents.manifest import Manifest, Variant

# The runtime that serves a format. Choosing among several, by measurement, belongs here too.
RUNTIME_FOR_FORMAT = {"onnx": "onnx", "ort": "onnx", "tflite": "tflite"}


@dataclass(frozen=True)
class Candidate:
    variant: Variant
    runtime: str

    @property
    def way(self) -> Way:
        return Way(self.variant.name, self.runtime)


@dataclass(frozen=True)
class Selection:
    """Candidates, best first, and a sentence for each variant that is none."""

    candidates: tuple[Candidate, ...]
    refused: tuple[str, ...]


def select(manifest: Manifest) -> Selection:
    """Choose the variants of a pack to qualify."""
    candidates: list[Candidate] = []
    refused: list[str] = []
    for variant in manifest.variants:
        # A format that another package brings goes to the runtime of its name.
        runtime = RUNTIME_FOR_FORMAT.get(variant.format, variant.format)
        if variant.needs.edgetpu:
            refused.append(f"{variant.name}: needs an Edge TPU, and this device has none")
        else:
            candidates.append(Candidate(variant, runtime))
    return Selection(tuple(candidates), tuple(refused))
