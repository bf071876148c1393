"""Why a variant cannot be run in some way on a device: a check for each thing that can be missing.

A check is silent where it finds nothing amiss, and also where the facts do not say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from agent.control import capabilities, tflite_releases
from agent.control.versions import older
from agent.control.wheels import obtainable
from agent.documents.choice import CPU_PROVIDERS
from agent.documents.device import Device, RuntimeFacts, Storage
from agent.documents.manifest import Manifest, Variant, delta_files
from agent.documents.profile import Preference, Threads

MAX_CANDIDATES = 6
_INTEGER_OPERATORS = ("QuantizeLinear", "DequantizeLinear", "QLinear", "QUANTIZE")
_INTEGERS = frozenset({"INT8", "UINT8"})
_MB = 1_000_000
_DO_NEWER_TFLITE = "use ai-edge-litert where it has a wheel, or convert for an older runtime"


class PlanLimits(msgspec.Struct, frozen=True):
    """What the settings allow, beside what the device has.

    Args:
        worker_memory_bytes: Private writable memory of a worker; None: no limit.
        store_bytes: Room that the store has left; None: as much as the disk has.
        variants: How many variants may be fetched: the one to run and what it falls back to.
        candidates: How many may be measured.
        momentary: Count what is so at this moment only, free memory and free disk, as a person
            wants to know. A deployment is not refused for that: it may be otherwise tomorrow.
    """

    worker_memory_bytes: int | None = None
    store_bytes: int | None = None
    variants: int = 2
    candidates: int = MAX_CANDIDATES
    momentary: bool = False


class Reason(msgspec.Struct, frozen=True):
    """Why something cannot be, and what to do about it.

    Args:
        code: The same for the same reason, for programs.
        says: A sentence.
        do: What would help; nothing: nothing here does.
    """

    code: str
    says: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.says} ({self.do})" if self.do else self.says


class Route(msgspec.Struct, frozen=True):
    """A runtime and a provider, from a preference or because the device has them."""

    runtime: str
    provider: str = ""
    threads: tuple[Threads, ...] = (1, "all")
    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    because: str = ""

    @classmethod
    def preferred(cls, one: Preference) -> Route:
        return cls(one.runtime, one.provider, one.threads, one.options, one.because)

    @property
    def accelerator(self) -> str:
        return capabilities.accelerator_for(self.runtime, self.provider, self.options)

    @property
    def accelerated(self) -> bool:
        return bool(self.accelerator) or self.provider not in CPU_PROVIDERS


class Question(msgspec.Struct, frozen=True):
    """Whether one variant runs in one way; what every check looks at."""

    manifest: Manifest
    variant: Variant
    route: Route
    device: Device
    limits: PlanLimits

    @property
    def facts(self) -> RuntimeFacts:
        """Of the runtime, which is there once the checks before have passed."""
        return self.device.runtime(self.route.runtime) or RuntimeFacts(self.route.runtime)

    @property
    def title(self) -> str:
        named = capabilities.TITLES.get(self.route.runtime, f"the runtime {self.route.runtime}")
        return f"{named} {self.facts.version}".rstrip()

    @property
    def footprint(self) -> capabilities.Footprint:
        weights = _weights(self.manifest, self.variant)
        return capabilities.footprint(
            self.route.runtime, weights, integers=computes_on_integers(self.variant)
        )


def first_objection(question: Question) -> tuple[int, Reason | None]:
    """Return how many checks a way passes, and the reason of the first that it does not."""
    for passed, check in enumerate(_CHECKS):
        reason = check(question)
        if reason is not None:
            return passed, reason
    return len(_CHECKS), None


def _python(question: Question) -> Reason | None:
    found = question.device.system.python
    if not older(found, capabilities.OLDEST_PYTHON):
        return None
    return Reason(
        "python",
        f"the agent needs Python {capabilities.OLDEST_PYTHON} or newer, and here is {found}",
        "run it in a container with a newer system, or upgrade this one",
    )


# Codes of reasons that are none any more once somebody plugs something in.
ACCELERATOR_MISSING = frozenset(("accelerator_absent", "accelerator_not_ready"))


def _accelerator_there(question: Question) -> Reason | None:
    kind = question.route.accelerator
    if not kind or any(found.kind == kind for found in question.device.accelerators):
        return None
    title = capabilities.ACCELERATORS.get(kind, kind)
    if question.variant.needs.edgetpu:
        return Reason(
            "accelerator_absent",
            "it was compiled for an Edge TPU, which alone can run it, and there is none here",
            "plug one in, or give the pack the plain .tflite beside it",
        )
    return Reason("accelerator_absent", f"there is no {title} here")


def _runtime_there(question: Question) -> Reason | None:
    facts = question.device.runtime(question.route.runtime)
    if facts is not None and facts.usable:
        return None
    if facts is not None and facts.why:
        return Reason("runtime_absent", facts.why, facts.hint)
    found = obtainable(question.route.runtime, question.device.system)
    return Reason("runtime_absent", found.says, found.do)


def _accelerator_ready(question: Question) -> Reason | None:
    kind = question.route.accelerator
    if not kind or question.device.has(kind):
        return None
    title = capabilities.ACCELERATORS.get(kind, kind)
    why = next(found.why for found in question.device.accelerators if found.kind == kind)
    return Reason(
        "accelerator_not_ready",
        f"the {title} is there and not ready" + (f": {why}" if why else ""),
        "" if why else "`edgeward detect` says what its driver lacks",
    )


def _provider_offered(question: Question) -> Reason | None:
    facts, provider = question.facts, question.route.provider
    if capabilities.offers(facts, provider):
        return None
    build = f"{facts.package or question.route.runtime} {facts.version}".rstrip()
    return Reason(
        "provider_absent",
        f"this build ({build}) has no {provider}; it has {', '.join(facts.providers)}",
        capabilities.how_to_get(provider, question.device)
        if question.route.runtime == "onnx"
        else "",
    )


def _compiled_for_it(question: Question) -> Reason | None:
    if question.route.runtime != "edgetpu" or question.variant.needs.edgetpu:
        return None
    return Reason(
        "not_compiled",
        "it was not compiled for the Edge TPU, so all of it would run on the CPU",
        "compile a fully quantised .tflite with edgetpu_compiler (on x86-64) as one more variant",
    )


def _custom_operators(question: Question) -> Reason | None:
    known = capabilities.TFLITE_CUSTOM if question.variant.format == "tflite" else frozenset()
    unknown = [
        name
        for name in question.variant.needs.custom_operators
        if name not in known
        and not (question.variant.needs.edgetpu and name == capabilities.EDGETPU_OPERATOR)
        and name not in question.facts.operators
    ]
    if not unknown:
        return None
    return Reason(
        "custom_operator",
        f"it uses {_some(unknown)}, which no runtime here brings; packs carry no native code",
        "export the model with standard operators only",
    )


def _operators(question: Question) -> Reason | None:
    known = set(question.facts.operators)
    unknown = [one for one in question.variant.needs.operators if _bare(one) not in known]
    if not known or not unknown:
        return None
    return Reason("operator", f"{question.title} does not know {_some(unknown)}")


def _onnx_versions(question: Question) -> Reason | None:
    if question.variant.format != "onnx":
        return None
    needs, newest = question.variant.needs, capabilities.onnx_limits(question.facts)
    rule = ", as its version is known for" if newest.guessed else ""
    do = f"update it, or export for opset {newest.opset}" if newest.opset else "update it"
    if newest.ir_version and (needs.ir_version or 0) > newest.ir_version:
        return Reason(
            "ir_version",
            f"it has IR version {needs.ir_version}, and {question.title} knows up to "
            f"{newest.ir_version}{rule}",
            f"update it, or save the model with ir_version {newest.ir_version}",
        )
    opset = needs.opsets.get("ai.onnx", needs.opsets.get("", 0))
    if newest.opset and opset > newest.opset:
        return Reason(
            "opset",
            f"it needs opset {opset}, and {question.title} knows up to {newest.opset}{rule}",
            do,
        )
    return None


def _tflite_versions(question: Question) -> Reason | None:
    needs, facts = question.variant.needs, question.facts
    if needs.schema_version not in (None, capabilities.TFLITE_SCHEMA):
        return Reason(
            "schema_version",
            f"its schema is version {needs.schema_version}; runtimes know "
            f"{capabilities.TFLITE_SCHEMA}",
            "convert the model again",
        )
    lacking = tflite_releases.too_new(needs.operators, facts.package, facts.version)
    if lacking is not None:
        old_litert = lacking.since and facts.package == tflite_releases.AI_EDGE_LITERT
        return Reason(
            "operator_version",
            f"{lacking}, and this device has {facts.package} {facts.version.partition('+')[0]}",
            "update it, or convert for an older runtime" if old_litert else _DO_NEWER_TFLITE,
        )
    # The file's own word counts where more is not known. LiteRT counts its releases anew.
    its_word = facts.package == tflite_releases.TFLITE_RUNTIME
    its_word = its_word and not tflite_releases.knows_all(needs.operators)
    if its_word and older(facts.version, needs.min_runtime_version):
        return Reason(
            "runtime_too_old",
            f"it asks for a TFLite runtime {needs.min_runtime_version} or newer, and here is "
            f"{facts.version}",
            _DO_NEWER_TFLITE,
        )
    return None


def _memory(question: Question) -> Reason | None:
    estimate, memory = question.footprint, question.device.memory
    limit = question.limits.worker_memory_bytes
    if limit is not None and estimate.private_bytes > limit:
        return Reason(
            "memory",
            f"its weights alone take about {_mb(estimate.private_bytes)} of a worker's memory, "
            f"which may have {_mb(limit)}",
            "use a smaller variant, or raise limits.worker_memory_mb",
        )
    available = memory.available_bytes if question.limits.momentary else 0
    bounds = (available or memory.total_bytes, memory.limit_bytes or 0)
    most = min((bound for bound in bounds if bound), default=0)
    if most and estimate.peak_bytes > most:
        return Reason(
            "memory",
            f"loading it takes about {_mb(estimate.peak_bytes)}, and there are {_mb(most)}",
            "use a smaller variant, or free memory",
        )
    return None


def _disk(question: Question) -> Reason | None:
    storage = question.device.storage if question.limits.momentary else Storage()
    if storage.read_only:
        return Reason(
            "disk",
            "the file system of the state directory takes nothing",
            "check the storage: a card at the end of its life ends so",
        )
    needed = sum(
        question.manifest.files[name].size
        for name in files_for(question.manifest, [question.variant.name])
    )
    bounds = (storage.free_bytes or None, question.limits.store_bytes)
    room = min((bound for bound in bounds if bound is not None), default=None)
    if room is None or needed <= room:
        return None
    return Reason(
        "disk",
        f"with its files it takes {_mb(needed)} of disk, and there are {_mb(room)}",
        "free some, or raise limits.store_mb",
    )


# What decides first stands first: where no accelerator is, its runtime does not matter.
_CHECKS: tuple[Callable[[Question], Reason | None], ...] = (
    _python,
    _accelerator_there,
    _runtime_there,
    _accelerator_ready,
    _provider_offered,
    _compiled_for_it,
    _custom_operators,
    _operators,
    _onnx_versions,
    _tflite_versions,
    _memory,
    _disk,
)


def files_for(manifest: Manifest, variants: Iterable[str]) -> tuple[str, ...]:
    """Return the files that some of a pack's variants need: all but the others' and deltas."""
    wanted = set(variants)
    if not wanted:
        return ()
    needed = {one.file for one in manifest.variants if one.name in wanted}
    others = {one.file for one in manifest.variants} - needed | delta_files(manifest)
    return tuple(name for name in manifest.files if name not in others)


# About a variant.


def computes_on_integers(variant: Variant) -> bool:
    """Whether its operators work on 8-bit integers, as all do that an Edge TPU's compiler takes."""
    stored = any(tensor.datatype in _INTEGERS and tensor.scale for tensor in variant.inputs)
    return (
        stored
        or variant.needs.edgetpu
        or any(one.startswith(_INTEGER_OPERATORS) for one in variant.needs.operators)
    )


def _weights(manifest: Manifest, variant: Variant) -> int:
    """Return the bytes of a variant's model, with those beside it that may hold its weights."""
    sizes = manifest.files
    own = sizes[variant.file].size if variant.file in sizes else 0
    if variant.format != "onnx":
        return own
    models = {one.file for one in manifest.variants}
    spoken_for = models | set(manifest.selftest) | delta_files(manifest)
    return own + sum(file.size for name, file in sizes.items() if name not in spoken_for)


def _bare(operator: str) -> str:
    """An operator without the version that TFLite's have: `CONV_2D` of `CONV_2D:3`."""
    name, _, version = operator.rpartition(":")
    return name if name and version.isdigit() else operator


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _mb(size: int) -> str:
    megabytes = size / _MB
    return f"{megabytes:.0f} MB" if megabytes >= 10 else f"{megabytes:.1f} MB"
