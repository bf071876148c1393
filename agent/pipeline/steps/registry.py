"""The table of steps."""

from __future__ import annotations

from agent.pipeline.steps.api import StepKind

STEPS: dict[str, StepKind] = {}
