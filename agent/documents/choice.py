"""How a pack is run on a device, and what was measured to come to that."""

from __future__ import annotations

from typing import Annotated

import msgspec

from agent.documents.names import Natural, Positive, ShortText, Text
from agent.documents.report import Placement

MAX_TRIED, MAX_LEFT_OUT = 32, 64
# Chosen only where nothing else passes.
LAST_RESORT = frozenset(("reference",))
# Errors of an accelerated way that say nothing against the pack, and may be over later.
PASSING = frozenset(("accelerator_failed", "worker_failed", "worker_exited", "worker_timed_out"))
# What runtimes call their own kernels for the CPU.
CPU_PROVIDERS = frozenset(
    ("", "CPU", "NumPy", "XNNPACK", "CPUExecutionProvider", "XnnpackExecutionProvider")
)


class Way(msgspec.Struct, frozen=True, omit_defaults=True):
    """One way to run a pack.

    Attributes:
        variant: Of the pack.
        runtime: The adapter.
        provider: What it computes on; nothing: its CPU kernels.
        threads: How many a run may use.
        options: For the provider.
        compiled: It is loaded from what the runtime compiled on this device before.
    """

    variant: ShortText
    runtime: ShortText
    provider: ShortText = ""
    threads: Positive = 1
    options: Annotated[dict[ShortText, ShortText], msgspec.Meta(max_length=32)] = {}
    compiled: bool = False

    @property
    def accelerated(self) -> bool:
        """Whether it needs something beside the CPU, which can be unplugged, hang or overheat."""
        return self.provider not in CPU_PROVIDERS

    @property
    def plain(self) -> Way:
        """The same without what was compiled before."""
        return msgspec.structs.replace(self, compiled=False)

    @property
    def last_resort(self) -> bool:
        """Whether it serves only where nothing else does: made for exactness, not for speed."""
        return self.runtime in LAST_RESORT

    def __hash__(self) -> int:
        # Options are no value that can be hashed; two ways that differ in them alone are rare.
        return hash((self.variant, self.runtime, self.provider, self.threads, self.compiled))

    def __str__(self) -> str:
        """`fp32 on onnx, 2 threads`, for people."""
        on = f"{self.runtime} ({self.provider})" if self.provider else self.runtime
        ahead = ", compiled before" if self.compiled else ""
        return f"{self.variant} on {on}, {self.threads} thread{'s' * (self.threads > 1)}{ahead}"


class Tried(msgspec.Struct, frozen=True, omit_defaults=True):
    """One way that was tried, as it turned out. Times are of the model alone, for one call.

    Attributes:
        way: What was tried.
        excluded: Why it is out; all below but `code` is absent then.
        code: Of the error that put it out.
        median_ms: Wall clock.
        best_ms: The least.
        p95_ms: Of 100 calls, 95 take no longer.
        cpu_ms: CPU time over all threads.
        first_ms: The very first call.
        message_ms: Of the self-test's messages the one that takes longest, once warm, from payload
            to answer.
        load_ms: From the file to a loaded model.
        peak_memory_bytes: Of its process.
        max_deviation: Farthest that an answer was from the self-test's.
        placement: Where its operators ran.
        limited_by_heat: It became slower while it was measured; `median_ms` is how it ended.
    """

    way: Way
    excluded: Text = ""
    code: ShortText = ""
    median_ms: float | None = None
    best_ms: float | None = None
    p95_ms: float | None = None
    cpu_ms: float | None = None
    first_ms: float | None = None
    message_ms: float | None = None
    load_ms: float | None = None
    peak_memory_bytes: Natural | None = None
    max_deviation: float | None = None
    placement: Placement | None = None
    limited_by_heat: bool = False


class Choice(msgspec.Struct, frozen=True, omit_defaults=True):
    """The way that a pack is run, and the others.

    Attributes:
        way: The chosen one.
        tried: All that were tried, the chosen one first, those that are out last.
        because: Why it was chosen, in a sentence.
        left_out: Ways that were not even tried, with the reason.
        key: Digest of everything that the result depends on: measured again when it changes.
        absent: Variants that only an accelerator can run which was absent, or not ready.
        pending: Ways that the runtime compiles while another one serves; then they are measured
            beside it.
    """

    way: Way
    tried: Annotated[tuple[Tried, ...], msgspec.Meta(max_length=MAX_TRIED)] = ()
    because: Text = ""
    left_out: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MAX_LEFT_OUT)] = ()
    key: ShortText = ""
    absent: Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=MAX_LEFT_OUT)] = ()
    pending: Annotated[tuple[Way, ...], msgspec.Meta(max_length=MAX_TRIED)] = ()

    @property
    def best(self) -> Tried | None:
        """What was measured of the chosen way."""
        return self.of(self.way)

    @property
    def lost(self) -> Tried | None:
        """The accelerated way that was tried first and is out, where now the CPU computes."""
        if self.way.accelerated:
            return None
        return next((t for t in self.tried if t.excluded and t.way.accelerated), None)

    @property
    def again(self) -> Tried | None:
        """What of `lost` is tried again, since what put it out may be over one day."""
        lost = self.lost
        return lost if lost is not None and lost.code in PASSING else None

    @property
    def waits(self) -> bool:
        """Whether an accelerator would be used that could not be had."""
        return not self.way.accelerated and (self.again is not None or bool(self.absent))

    def of(self, way: Way) -> Tried | None:
        """What was measured of a way; None where nothing was."""
        return next((tried for tried in self.tried if tried.way == way), None)

    @property
    def runner_up(self) -> Way | None:
        """What serves where the chosen way fails: the next that passed and is another thing, on
        the CPU where it was an accelerator that failed."""
        passed = (tried.way for tried in self.tried[1:] if not tried.excluded)
        return next((way for way in passed if self._is_another(way)), None)

    def _is_another(self, way: Way) -> bool:
        if self.way.accelerated:
            return not way.accelerated
        # What keeps dying does so with more threads too.
        return (way.variant, way.runtime) != (self.way.variant, self.way.runtime)
