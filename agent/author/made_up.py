"""Whole random samples: as many payloads as a pack's window or state wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agent.author import payloads, random_samples
from agent.author.samples import Reading, Sample
from agent.documents.manifest import Manifest, Tensor, Variant, Window
from agent.errors import UsageError
from agent.pipeline import assembly
from agent.pipeline.boundary import pair
from agent.pipeline.codecs import registry as codecs
from agent.pipeline.options import look_up
from agent.pipeline.steps.api import StepKind
from agent.pipeline.steps.registry import STEPS
from agent.pipeline.tensors import Arrays

# A recurrent state shows in the third answer at the latest.
STATEFUL_PAYLOADS = 3
# Readings that a random window by time is made of; the last one completes it.
TIMED_PAYLOADS = 9


def reading_of(manifest: Manifest, variant: Variant) -> Reading:
    """Return what samples of a pack are read for."""
    pipeline = manifest.pipeline
    keeps = bool(manifest.state) or variant.hidden_state == "per_source"
    keeps = (
        keeps
        or pipeline.window is not None
        or any(map(_remembers, (*pipeline.pre, *pipeline.post)))
    )
    return Reading(
        inputs=assembly.public_inputs(manifest),
        outputs=manifest.outputs,
        codec=pipeline.decode or {"codec": codecs.DEFAULT},
        together=keeps,
    )


def _remembers(step: Mapping[str, Any]) -> bool:
    """True for a step that keeps something of a source between its messages."""
    kind: StepKind = look_up(step, "step", STEPS, "edgeward.steps", path="manifest.pipeline")
    return kind.remembers


def random_of(
    manifest: Manifest, variant: Variant, reading: Reading, free: int
) -> tuple[Sample, ...]:
    """Return random samples, the same ones every time.

    Args:
        manifest: The pack's.
        variant: The variant whose stored ranges are drawn from where none is declared.
        reading: As from `reading_of`.
        free: The size of free dimensions.
    """
    window = manifest.pipeline.window
    each = _payloads_of(window) if window else STATEFUL_PAYLOADS if reading.together else 1
    count = random_samples.case_count(reading.inputs, each)
    inputs = payloads.drawable(reading.codec, reading.inputs)
    drawn = random_samples.draw(inputs, _stored(manifest, variant), free, count * each)
    made = [
        reading.payload(*_timed(arrays, window, index % each, each))
        for index, arrays in enumerate(drawn)
    ]
    return tuple(Sample(tuple(made[i * each : (i + 1) * each])) for i in range(count))


def _stored(manifest: Manifest, variant: Variant) -> dict[str, Tensor]:
    if manifest.pipeline.window or manifest.pipeline.pre:
        return {}
    fed = {pair.input for pair in manifest.state}
    file = [tensor for tensor in variant.inputs if tensor.name not in fed]
    paired = pair(file, assembly.public_inputs(manifest), path="manifest.inputs")
    return {public.name: stored for stored, public in paired}


def _payloads_of(window: Window) -> int:
    if window.size is not None:
        return window.size
    if window.time_field:
        return TIMED_PAYLOADS
    raise UsageError(
        "a window over the time of arrival has no golden sample: its readings must carry a time",
        hint="state time_field under [pipeline] window in model.toml",
    )


def _timed(
    arrays: Arrays, window: Window | None, index: int, each: int
) -> tuple[Arrays, dict[str, float]]:
    """Give a reading its time, so that the last of a window by time completes it.

    Returns:
        Its arrays, and the time where it is none of them.
    """
    if window is None or not window.time_field:
        return arrays, {}
    time_ms = (window.span_ms or each) * index / (each - 1 or 1)
    field = arrays.get(window.time_field)
    if field is None:
        return arrays, {window.time_field: time_ms}
    return {**arrays, window.time_field: np.full_like(field, time_ms)}, {}
