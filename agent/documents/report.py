"""The report: what the device says of itself. What is reported is what happened."""

from __future__ import annotations

from typing import Literal

import msgspec

SlotPhase = Literal[
    "fetching", "verifying", "qualifying", "probation", "active", "failed", "rolled_back"
]


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why something did not happen: a stable code, a sentence, and what to do."""

    code: str
    message: str
    hint: str = ""
    retryable: bool = False


class Progress(msgspec.Struct, frozen=True):
    done_bytes: int
    total_bytes: int


class SlotReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """One slot. `pack` and what follows describe the model that serves now; `wanted` is the pack of
    the running or last rollout, which `state` and `error` speak of."""

    state: SlotPhase
    wanted: str = ""
    pack: str = ""
    name: str = ""
    version: str = ""
    variant: str = ""
    runtime: str = ""
    runtime_version: str = ""
    provider: str = ""
    isolation: str = ""
    p50_ms: float | None = None
    previous: str = ""
    progress: Progress | None = None
    error: Failure | None = None


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole reported document."""

    schema: Literal[1]
    agent: str
    device: str
    deployment: str = ""
    # "unsigned": packs are checked against their digests only.
    trust: str = "unsigned"
    profile: str = ""
    slots: dict[str, SlotReport] = {}
    # Why the last desired document was refused whole; nothing of it was done.
    refused: Failure | None = None
    unknown_fields: int = 0
