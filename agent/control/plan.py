"""Will a pack run on a device, how, and if not, why: from the manifest and the device's facts
alone, before a byte of a model is fetched.

Every variant is looked at with every way of running it that this device could have; each way is
fine, or there is one reason that a person can act on. From the fine ones come the candidates that
are worth measuring and the variants that are worth fetching.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor

import msgspec
from msgspec.structs import replace

from agent.control import capabilities
from agent.control.objections import (
    ACCELERATOR_MISSING,
    PlanLimits,
    Question,
    Reason,
    Route,
    computes_on_integers,
    files_for,
    first_objection,
)
from agent.control.profiles import Recognised
from agent.documents.choice import CPU_PROVIDERS, Way
from agent.documents.deployment import Pin
from agent.documents.device import Device
from agent.documents.manifest import Manifest, Variant
from agent.documents.profile import Threads

_MIB = 1024 * 1024


class Candidate(msgspec.Struct, frozen=True):
    """One way to run a pack that is worth measuring."""

    variant: Variant
    runtime: str
    provider: str = ""
    threads: int = 1
    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    because: str = ""

    @property
    def way(self) -> Way:
        return Way(self.variant.name, self.runtime, self.provider, self.threads, dict(self.options))


class Verdict(msgspec.Struct, frozen=True):
    """One variant with one runtime and provider.

    Args:
        variant: Its name.
        runtime: The adapter.
        provider: What it would compute on; nothing: its CPU kernels.
        options: For the provider.
        reason: Why not; None: it runs, as far as the facts tell.
        peak_bytes: What loading it takes of memory, estimated from the file's size.
    """

    variant: str
    runtime: str
    provider: str
    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    reason: Reason | None = None
    peak_bytes: int = 0

    @property
    def runs(self) -> bool:
        return self.reason is None


class VariantPlan(msgspec.Struct, frozen=True):
    """What becomes of one variant.

    Args:
        variant: From the manifest.
        bytes: Of its model file.
        verdicts: One for each way, the preferred first.
        reason: Why it does not run at all: of the way that comes nearest. None: it runs.
    """

    variant: Variant
    bytes: int
    verdicts: tuple[Verdict, ...]
    reason: Reason | None = None

    @property
    def runs(self) -> bool:
        return self.reason is None


class Plan(msgspec.Struct, frozen=True):
    """What can be done with a pack on a device.

    Args:
        variants: All of the pack's, in its order.
        candidates: What is worth measuring, the likeliest first; empty: nothing runs.
        fetch: Names of the variants that are worth fetching: the likeliest, then what it falls
            back to.
        files: The files of the pack that these need.
        pin: Why the pinned way cannot be had.
    """

    variants: tuple[VariantPlan, ...]
    candidates: tuple[Candidate, ...] = ()
    fetch: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    pin: Reason | None = None

    @property
    def runs(self) -> bool:
        return bool(self.candidates)

    @property
    def refused(self) -> tuple[str, ...]:
        """A sentence for each variant that does not run, and for the pin."""
        variants = (f"{one.variant.name}: {one.reason}" for one in self.variants if one.reason)
        return (*variants, *((f"pin: {self.pin}",) if self.pin else ()))

    @property
    def absent(self) -> tuple[str, ...]:
        """The variants that do not run only since an accelerator is absent or not ready."""
        return tuple(
            one.variant.name
            for one in self.variants
            if one.reason is not None and one.reason.code in ACCELERATOR_MISSING
        )


def plan(
    manifest: Manifest,
    device: Device,
    recognised: Recognised,
    limits: PlanLimits | None = None,
    pin: Pin | None = None,
) -> Plan:
    """Decide what of a pack runs on a device, and how.

    Args:
        manifest: Of the pack.
        device: Its facts.
        recognised: What it is, with what is preferred there.
        limits: What the settings allow.
        pin: What the deployment insists on.
    """
    limits = _within(limits or PlanLimits(), recognised)
    routes = _routes(device, recognised, pin)
    variants = tuple(_judge(manifest, one, routes, device, limits) for one in manifest.variants)
    running = _ranked(variants, routes, device)
    chosen = [pair for pair in running if _pinned(pair, pin)]
    why = None if chosen or not _insists(pin) else _why_not_pinned(variants, running, pin)
    fetch = _worth_fetching(chosen, limits.variants)
    return Plan(
        variants,
        _candidates(chosen, fetch, device, recognised, limits, pin),
        fetch,
        files_for(manifest, fetch),
        why,
    )


def _within(limits: PlanLimits, recognised: Recognised) -> PlanLimits:
    """Lower the settings' limit on memory to what this kind of device can stand."""
    stands = recognised.limits.worker_memory_mb
    if stands is None:
        return limits
    bounds = [bound for bound in (limits.worker_memory_bytes, stands * _MIB) if bound is not None]
    return replace(limits, worker_memory_bytes=min(bounds))


# The ways that there are.


def _routes(device: Device, recognised: Recognised, pin: Pin | None) -> tuple[Route, ...]:
    """Return all ways of running anything: the preferred, then what else the device has, then
    what a deployment asks for that is neither."""
    routes = [_named(Route.preferred(one), device) for one in recognised.prefer]
    named = {route.runtime for route in routes}
    routes += [_plain(facts.name, device) for facts in device.runtimes if facts.name not in named]
    if pin and (pin.runtime or pin.provider) and not any(_route_pinned(one, pin) for one in routes):
        runtimes = [pin.runtime] if pin.runtime else _offering(device, pin.provider)
        provider = "" if pin.provider in CPU_PROVIDERS else pin.provider
        routes += [Route(name, provider, because="the deployment asks for it") for name in runtimes]
    return tuple(routes)


def _plain(runtime: str, device: Device) -> Route:
    """A runtime as it is, where nobody prefers anything."""
    single = runtime in capabilities.SINGLE_THREADED
    return _named(Route(runtime, threads=(1,)) if single else Route(runtime), device)


def _named(route: Route, device: Device) -> Route:
    """Call the provider of a runtime that has only one by the runtime's own name for it."""
    facts = device.runtime(route.runtime)
    if route.provider or not route.accelerator or facts is None:
        return route
    own = [provider for provider in facts.providers if provider not in CPU_PROVIDERS]
    return replace(route, provider=own[0]) if own else route


def _offering(device: Device, provider: str) -> list[str]:
    return [facts.name for facts in device.runtimes if provider in facts.providers]


def _ways(variant: Variant, routes: Sequence[Route], device: Device) -> list[Route]:
    """Return the ways that are made for a variant's format."""

    def fits(route: Route) -> bool:
        if variant.needs.edgetpu:
            return route.runtime == "edgetpu"
        return variant.format in capabilities.formats_of(
            route.runtime, device.runtime(route.runtime)
        )

    ways = [route for route in routes if fits(route)]
    usual = ("edgetpu",) if variant.needs.edgetpu else capabilities.runtimes_for(variant.format)
    there = {route.runtime for route in ways}
    return [*ways, *(_plain(runtime, device) for runtime in usual if runtime not in there)]


# Whether one of them works.


def _judge(
    manifest: Manifest,
    variant: Variant,
    routes: Sequence[Route],
    device: Device,
    limits: PlanLimits,
) -> VariantPlan:
    verdicts: list[Verdict] = []
    nearest: tuple[int, Reason] | None = None
    for route in _ways(variant, routes, device):
        question = Question(manifest, variant, route, device, limits)
        passed, reason = first_objection(question)
        verdicts.append(
            Verdict(
                variant.name,
                route.runtime,
                route.provider,
                route.options,
                reason,
                question.footprint.peak_bytes,
            )
        )
        if reason is not None and (nearest is None or passed > nearest[0]):
            nearest = (passed, reason)
    size = manifest.files[variant.file].size if variant.file in manifest.files else 0
    if any(verdict.runs for verdict in verdicts):
        return VariantPlan(variant, size, tuple(verdicts))
    unknown = Reason("format", f"no runtime here or known to us loads {variant.format!r} models")
    return VariantPlan(variant, size, tuple(verdicts), nearest[1] if nearest else unknown)


# What follows from that.

_Pair = tuple[Variant, Route]


def _ranked(
    variants: Sequence[VariantPlan], routes: Sequence[Route], device: Device
) -> list[_Pair]:
    """Return what runs, the likeliest first: by preference; then integers before real numbers
    where the processor has instructions for them; then in the pack's order."""
    counts = bool(capabilities.INTEGER_FEATURES & set(device.cpu.features))
    pairs = []
    for order, one in enumerate(variants):
        for verdict in one.verdicts:
            if not verdict.runs:
                continue
            place, route = next(
                (place, route)
                for place, route in enumerate((*routes, _plain(verdict.runtime, device)))
                if (route.runtime, route.provider, route.options)
                == (verdict.runtime, verdict.provider, verdict.options)
            )
            slower = counts and not computes_on_integers(one.variant)
            pairs.append((place, slower, order, (one.variant, route)))
    return [pair for *_, pair in sorted(pairs, key=lambda ranked: ranked[:3])]


def _worth_fetching(pairs: Sequence[_Pair], most: int) -> tuple[str, ...]:
    """Return the variant of the likeliest way, then what serves where that one fails: something
    that the CPU runs, where the first needs more than that."""
    if not pairs:
        return ()
    first, route = pairs[0]
    others = [pair for pair in pairs if pair[0] != first]
    if route.accelerated:
        alike = computes_on_integers(first)
        others.sort(
            key=lambda pair: (pair[1].accelerated, computes_on_integers(pair[0]) is not alike)
        )
    names = [first.name, *dict.fromkeys(variant.name for variant, _ in others)]
    return tuple(names[:most])


def _candidates(
    pairs: Sequence[_Pair],
    fetch: Sequence[str],
    device: Device,
    recognised: Recognised,
    limits: PlanLimits,
    pin: Pin | None,
) -> tuple[Candidate, ...]:
    """Return what to measure: each way with its first number of threads, then with the others."""
    chosen = [pair for pair in pairs if pair[0].name in fetch]
    rounds: list[list[Candidate]] = []
    for variant, route in chosen:
        counts = _thread_counts(route.threads, device, recognised)
        if pin and pin.threads:
            counts = [pin.threads]
        for place, threads in enumerate(counts):
            if place == len(rounds):
                rounds.append([])
            rounds[place].append(
                Candidate(
                    variant, route.runtime, route.provider, threads, route.options, route.because
                )
            )
    every = [one for measured in rounds for one in measured]
    kept = every[: limits.candidates]
    missing = [name for name in fetch if all(one.variant.name != name for one in kept)]
    # What is fetched to fall back to must have been proven too.
    for name in missing[: max(0, len(kept) - 1)]:
        stand_in = next(one for one in every if one.variant.name == name)
        kept = [*kept[:-1], stand_in]
    return tuple(kept)


def _thread_counts(threads: Sequence[Threads], device: Device, recognised: Recognised) -> list[int]:
    usable = max(1, floor(device.cpu.usable or device.cpu.count or 1))
    most = min(usable, recognised.limits.threads or usable)
    named = {"all": most, "half": max(1, most // 2)}
    counts = [named[one] if isinstance(one, str) else min(one, most) for one in threads]
    return list(dict.fromkeys(counts))


# What a deployment insists on.


def _insists(pin: Pin | None) -> bool:
    return pin is not None and pin != Pin()


def _route_pinned(route: Route, pin: Pin) -> bool:
    if pin.runtime and route.runtime != pin.runtime:
        return False
    if not pin.provider:
        return True
    if pin.provider in CPU_PROVIDERS:
        return not route.accelerated
    return route.provider == pin.provider


def _pinned(pair: _Pair, pin: Pin | None) -> bool:
    if pin is None:
        return True
    variant, route = pair
    return pin.variant in ("", variant.name) and _route_pinned(route, pin)


def _why_not_pinned(
    variants: Sequence[VariantPlan], running: Sequence[_Pair], pin: Pin | None
) -> Reason | None:
    if pin is None:
        return None
    meant = [one for one in variants if pin.variant in ("", one.variant.name)]
    if not meant:
        there = ", ".join(one.variant.name for one in variants)
        return Reason("pin", f"the pack has no variant {pin.variant!r}; it has {there}")
    for one in meant:
        for verdict in one.verdicts:
            route = Route(verdict.runtime, verdict.provider, options=verdict.options)
            if verdict.reason is not None and _route_pinned(route, pin):
                return replace(verdict.reason, says=f"{verdict.variant}: {verdict.reason.says}")
    asked = ", ".join(word for word in (pin.variant, pin.runtime, pin.provider) if word)
    fine = list(dict.fromkeys(f"{variant.name} on {route.runtime}" for variant, route in running))
    there = f"; what runs here: {', '.join(fine)}" if fine else ""
    return Reason("pin", f"nothing here fits the pin ({asked}){there}")
