"""Makes the n-th file of a campaign from its seed: which model, which change, the bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from tests.campaign import (
    blind,
    flat,
    flat_changes,
    flat_tables,
    onnx_changes,
    onnx_wire_changes,
    ort_changes,
    tflite_changes,
    wire,
)

# (data, random) → the changed bytes; None where the model has nothing of the kind.
Change = Callable[[bytes, Random], "bytes | None"]
_TABLES = {"tflite": flat_tables.TFLITE, "ort": flat_tables.ORT}
_ATTEMPTS = 20
MAX_BYTES = 8 * 1024 * 1024
_BLIND_SHARE, _BOTH_SHARE = 0.35, 0.1


class Mutated(NamedTuple):
    """One file of a campaign: the model that it was made from, what was changed, its bytes."""

    source: str
    mutation: str
    data: bytes


class Origin(NamedTuple):
    """A valid model; `weight` says how often it is chosen."""

    name: str
    format: str
    data: bytes
    weight: float


def weight_of(size: int) -> float:
    """Return how often a model of so many bytes is chosen: small ones are quick to run."""
    return 12.0 if size < 8_000 else 8.0 if size < 25_000 else 4.0 if size < 100_000 else 1.0


def mutate(origins: Sequence[Origin], seed: int, number: int) -> Mutated:
    """Make file `number` of the campaign with this seed; the same ones give the same bytes."""
    random = Random(f"{seed}/{number}")
    origin = random.choices(origins, [o.weight for o in origins])[0]
    other = random.choice(origins).data
    for _ in range(_ATTEMPTS):
        name, data = _changed(origin, other, random)
        if data != origin.data and len(data) <= MAX_BYTES:
            return Mutated(origin.name, name, data)
    flipped = bytes([origin.data[0] ^ 1]) + origin.data[1:]
    return Mutated(origin.name, "bits flipped", flipped)


def _changed(origin: Origin, other: bytes, random: Random) -> tuple[str, bytes]:
    known = _structured(origin.format)
    kind = random.random()
    if kind < _BLIND_SHARE:
        name = random.choice(list(blind.CHANGES))
        return name, _blindly(name, origin, origin.data, other, random)
    name = random.choice(list(known))
    data = origin.data
    for _ in range(random.choice((1, 1, 1, 2))):
        data = _attempt(known[name], data, random) or data
    if kind > 1 - _BOTH_SHARE:
        blow = random.choice(list(blind.CHANGES))
        return "a structured and a blind one", _blindly(blow, origin, data, other, random)
    return name, data


def _blindly(name: str, origin: Origin, data: bytes, other: bytes, random: Random) -> bytes:
    given = blind.Given(data, _structure(origin.format, origin.data), other)
    return blind.CHANGES[name](given, random)


@functools.lru_cache(maxsize=64)
def _structure(kind: str, data: bytes) -> Sequence[int]:
    if kind == "onnx":
        return sorted({p for f in wire.fields_of(data) for p in (f.start, f.length)})
    return _sites(kind, data).positions()


@functools.lru_cache(maxsize=64)
def _sites(kind: str, data: bytes) -> flat.Sites:
    return flat.sites_of(data, _TABLES[kind])


@functools.lru_cache(maxsize=8)
def _structured(kind: str) -> Mapping[str, Change]:
    if kind == "onnx":
        changes = {name: _on_message(change) for name, change in onnx_changes.CHANGES.items()}
        return {**changes, **onnx_wire_changes.CHANGES}
    own = tflite_changes.CHANGES if kind == "tflite" else ort_changes.CHANGES
    return {name: _on_sites(change, kind) for name, change in own.items()}


def _on_sites(change: flat_changes.Change, kind: str) -> Change:
    return lambda data, random: change(data, _sites(kind, data), random)


def _on_message(change: onnx_changes.Change) -> Change:
    return lambda data, random: onnx_changes.changed(change, data, random)


def _attempt(change: Change, data: bytes, random: Random) -> bytes | None:
    try:
        return change(data, random)
    except Exception:
        # The second of two changes may find nothing that the formats' own tools can read any
        # more, nor write: they have many errors of their own, for numbers, names and depth.
        return None
