"""When a worker that owes an answer hangs: told from what its process does, not from the clock.

A worker is looked at only while a message has been with it for unusually long. Two things are no
way to compute an answer: every thread sleeps and none gets any processor time; or it has used
many times the processor time that a message takes. Waiting for a disk, for a processor that others
have, or for a debugger is neither, and the message's deadline stays behind both.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from agent.documents.choice import CPU_PROVIDERS, Tried
from agent.documents.manifest import Manifest, Needs, Tensor, Variant

# The first look comes when a message has been in hand for this long, or for longer than usual.
FIRST_LOOK_S = 0.006
UNUSUAL = 1.5
# Between two looks; it grows with the time that a worker is looked at.
LOOK_EVERY_S, LOOK_EVERY_MOST_S, LOOK_EVERY_SHARE = 0.007, 0.1, 0.125
# Sleeping for this long, as seen by so many looks in a row.
ASLEEP_S, ASLEEP_LOOKS = 0.028, 3
# A message may take this many times the processor time of the dearest one that was measured: a
# slow clock, cold caches, a busy memory and denormal numbers, each by a small factor.
CPU_TIMES = 20.0
# And not less than this, counted from the first look on, nor less than its bytes may take to read.
CPU_LEAST_S = 0.024
CPU_A_BYTE_S = 0.2e-6
# Nor less than this for the first answer of a worker: code, caches and pages are cold, and the
# message would be lost for good should its successor be as slow.
COLD_LEAST_S = 0.2
# Codecs whose work is bounded by the shapes of a model: a picture of a few bytes may be huge.
_BOUNDED_CODECS = frozenset({"v2_json", "v2_binary", "features", "raw", "csv", "pcm"})
# Operators that do as much as their inputs' values say, as ONNX and TFLite call them.
_VARYING_ONNX = (
    *("Loop", "Scan", "If", "SequenceMap", "NonZero", "Compress", "Unique"),
    *("NonMaxSuppression", "ConstantOfShape", "Range", "Expand", "Tile"),
)
_VARYING_TFLITE = (
    *("WHILE", "IF", "CALL", "CALL_ONCE", "WHERE", "UNIQUE", "RANGE", "FILL", "TILE"),
    *("BROADCAST_TO", "NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5"),
    *("STABLEHLO_WHILE", "STABLEHLO_CASE"),
)
_VARYING = frozenset((*_VARYING_ONNX, *_VARYING_TFLITE))


class Patience(msgspec.Struct, frozen=True):
    """What is waited for while a message is in hand, beside its deadline.

    Args:
        judges_sleep: A worker that only sleeps hangs. Where an accelerator computes, it may.
        cpu_s: Processor time that a message may take, over all threads; None: any.
        usual_s: How long a message may well take; it is not looked at before.
        threads: That may compute at a time.
    """

    judges_sleep: bool = False
    cpu_s: float | None = None
    usual_s: float = 0.0
    threads: int = 1

    @property
    def judges(self) -> bool:
        """Whether looking at the worker can tell anything."""
        return self.judges_sleep or self.cpu_s is not None

    @property
    def first_look_s(self) -> float:
        """How long a message is in hand when it is looked at first."""
        return max(FIRST_LOOK_S, UNUSUAL * self.usual_s)


DEADLINE_ONLY = Patience()


class Look(msgspec.Struct, frozen=True):
    """A worker at one moment.

    Args:
        at: Monotonic seconds.
        cpu_s: Processor time that all its threads have used since it began.
        asleep: All its threads sleep, waiting for no disk, and nobody has stopped them. May be
            False where `cpu_s` has changed since the last look.
    """

    at: float
    cpu_s: float
    asleep: bool


class Watch(msgspec.Struct, frozen=True):
    """What has been seen of a worker since its last answer; made at the first look.

    Args:
        first: The first look.
        last: The last one.
        asleep_s: How long it has been seen asleep without a break.
        asleep_looks: How often in a row.
        cpu_s: Processor time that it was seen to use.
    """

    first: Look
    last: Look
    asleep_s: float = 0.0
    asleep_looks: int = 0
    cpu_s: float = 0.0

    @property
    def next_look_s(self) -> float:
        """How long after the last look the next one is due."""
        watched_s = self.last.at - self.first.at
        return min(LOOK_EVERY_MOST_S, max(LOOK_EVERY_S, LOOK_EVERY_SHARE * watched_s))

    def after(self, look: Look, patience: Patience) -> Watch:
        """Return what is known after one more look.

        A look that comes much too late, because the machine stood still or was busy, counts like
        one that came a little late: what was not looked at was not seen.
        """
        passed_s = min(look.at - self.last.at, 2 * self.next_look_s)
        used_s = look.cpu_s - self.last.cpu_s
        slept = look.asleep and used_s == 0
        return replace(
            self,
            last=look,
            asleep_s=self.asleep_s + passed_s if slept and self.last.asleep else 0.0,
            asleep_looks=self.asleep_looks + 1 if slept else 0,
            cpu_s=self.cpu_s + min(used_s, patience.threads * passed_s),
        )


def watch(look: Look) -> Watch:
    """Begin to watch a worker, with the first look at it."""
    return Watch(look, look, asleep_looks=int(look.asleep))


def why_hung(
    watch: Watch, patience: Patience, payload_bytes: int = 0, *, cold: bool = False
) -> str:
    """Say why a worker hangs; nothing: it may be working.

    Args:
        watch: What has been seen of it.
        patience: What is waited for.
        payload_bytes: Of the largest message that it has.
        cold: It has answered nothing yet.
    """
    if patience.judges_sleep and watch.asleep_s >= ASLEEP_S and watch.asleep_looks >= ASLEEP_LOOKS:
        return f"hung: asleep for {1000 * watch.asleep_s:.0f} ms with a message in hand"
    if patience.cpu_s is None:
        return ""
    least_s = COLD_LEAST_S if cold else 0.0
    may_s = max(patience.cpu_s, least_s) + CPU_A_BYTE_S * payload_bytes
    if watch.cpu_s >= may_s:
        return (
            f"hung: {1000 * watch.cpu_s:.0f} ms of processor time spent on one message, "
            f"which may take {1000 * may_s:.0f} ms"
        )
    return ""


def patience(manifest: Manifest, tried: Tried | None) -> Patience:
    """Return how a worker is judged that runs a pack in a way that was tried.

    Args:
        manifest: Of the pack.
        tried: What was measured of the way; None: nothing, and only the deadline counts.
    """
    if tried is None or tried.way.accelerated or tried.placement is None:
        return DEADLINE_ONLY
    if tried.placement.got not in CPU_PROVIDERS:
        return DEADLINE_ONLY
    usual_ms = max(tried.p95_ms or 0.0, tried.message_ms or 0.0)
    threads = tried.way.threads
    known = Patience(judges_sleep=True, usual_s=usual_ms / 1000, threads=threads)
    if tried.message_ms is None or not _takes_alike(manifest, tried.way.variant):
        return known
    # All threads may be busy for as long as a message takes.
    cpu_s = max(CPU_LEAST_S, CPU_TIMES * usual_ms / 1000 * threads)
    return replace(known, cpu_s=cpu_s)


def _takes_alike(manifest: Manifest, variant_name: str) -> bool:
    """Whether one message takes about as long as another, as far as the manifest tells."""
    if manifest.limits.deadline_ms is not None:
        return False  # the author says how long a message may take
    variant = next((one for one in manifest.variants if one.name == variant_name), None)
    if variant is None or variant.hidden_state != "none":
        return False  # with a source that is new, a model is loaded
    decode = manifest.pipeline.decode or {}
    return (
        decode.get("codec", "v2_json") in _BOUNDED_CODECS
        and _is_fixed(manifest, variant)
        and not _varies(variant.needs)
    )


def _is_fixed(manifest: Manifest, variant: Variant) -> bool:
    tensors: tuple[Tensor, ...] = (
        *(*manifest.inputs, *manifest.outputs),
        *(*variant.inputs, *variant.outputs),
    )
    return all(tensor.datatype != "BYTES" and -1 not in tensor.shape for tensor in tensors)


def _varies(needs: Needs) -> bool:
    names = {part for operator in needs.operators for part in operator.split(":")}
    # What an operator of another library does nobody knows.
    return bool(needs.custom_operators) or bool(names & _VARYING)
