"""Samples drawn at random, the same ones every time, for models that came without any."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from agent.documents.manifest import Tensor
from agent.pipeline.tensors import DTYPES, INTEGERS, Array, Arrays, is_quantised

SEED = 2024
# Sizes tried in turn for dimensions that the file leaves open, the leading one (the batch) aside.
# Most models take any; one that cuts audio into frames needs hundreds.
FREE_SIZES = (1, 8, 32, 64, 128, 224, 256, 512)
# Below so many values a few cases cost nothing; above, one says as much.
SMALL = 4096
CASES_OF_SMALL = 3
_WORDS = ("alpha", "bravo", "charlie", "delta")


def free_sizes(inputs: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the sizes worth trying for free dimensions, those of a batch aside."""
    return FREE_SIZES if any(-1 in tensor.shape[1:] for tensor in inputs) else (1,)


def with_batch_of_one(
    inputs: Sequence[Tensor], dim_names: Mapping[str, Sequence[str]]
) -> tuple[Tensor, ...]:
    """Return inputs in whose shapes every dimension called like a batch is 1.

    Args:
        inputs: The public inputs.
        dim_names: By input: what the model file calls each dimension. A name that stands first in
            one shape (`batch`) means the same wherever else it stands.
    """
    leading = {names[0] for names in dim_names.values() if names} - {""}

    def fixed(tensor: Tensor) -> Tensor:
        names = dim_names.get(tensor.name, ())
        if len(names) != len(tensor.shape):
            return tensor
        shape = tuple(
            1 if size == -1 and name in leading else size
            for size, name in zip(tensor.shape, names, strict=True)
        )
        return msgspec.structs.replace(tensor, shape=shape)

    return tuple(map(fixed, inputs))


def case_count(inputs: Sequence[Tensor], payloads: int) -> int:
    """Return how many cases to make of so many payloads each."""
    values = sum(math.prod(max(1, n) for n in tensor.shape) for tensor in inputs)
    return CASES_OF_SMALL if values * payloads <= SMALL else 1


def draw(
    inputs: Sequence[Tensor], stored: Mapping[str, Tensor], free: int, count: int
) -> Iterator[Arrays]:
    """Give `count` sets of inputs.

    Args:
        inputs: The public inputs.
        stored: By name: the tensor of the file behind a public one.
        free: The size of free dimensions; of a leading one it is 1.
        count: How many.
    """
    rng = np.random.default_rng(SEED)
    for _ in range(count):
        yield {t.name: _draw(t, stored.get(t.name, t), free, rng) for t in inputs}


def _draw(tensor: Tensor, stored: Tensor, free: int, rng: np.random.Generator) -> Array:
    shape = tuple(
        (1 if place == 0 else free) if size == -1 else size
        for place, size in enumerate(tensor.shape)
    )
    if tensor.datatype == "BYTES":
        return rng.choice(np.array(_WORDS, np.object_), shape)
    if tensor.datatype == "BOOL":
        return rng.integers(0, 2, shape).astype(np.bool_)
    low, high = _range(tensor, stored)
    if tensor.datatype in INTEGERS:
        limits = np.iinfo(DTYPES[tensor.datatype])
        first, last = (min(max(n, limits.min), limits.max) for n in (math.ceil(low), int(high)))
        return rng.integers(first, max(first, last), shape, limits.dtype, endpoint=True)
    # Few digits keep the payload short; float64, so that it is written as it was rounded.
    digits = 3 if math.prod(shape) <= SMALL else 2
    digits -= math.floor(math.log10(max(high - low, 1e-300) / 2))
    return np.clip(np.round(rng.uniform(low, high, shape), digits), low, high)


def _range(tensor: Tensor, stored: Tensor) -> tuple[float, float]:
    """Return the declared range, or a sensible one."""
    low, high = _default_range(tensor, stored)
    if tensor.low is not None:
        low, high = tensor.low, max(high, tensor.low)
    if tensor.high is not None:
        low, high = min(low, tensor.high), tensor.high
    return low, high


def _default_range(tensor: Tensor, stored: Tensor) -> tuple[float, float]:
    if tensor.datatype in INTEGERS:
        if DTYPES[tensor.datatype].itemsize == 1 or is_quantised(tensor):
            limits = np.iinfo(DTYPES[tensor.datatype])
            return limits.min, limits.max
        # An index, a length or a rate more often than a measured value.
        return (0, 1) if tensor.shape else (1, 1)
    if is_quantised(stored):
        limits = np.iinfo(DTYPES[stored.datatype])
        scale, zero_point = stored.scale or 1.0, stored.zero_point or 0
        return (limits.min - zero_point) * scale, (limits.max - zero_point) * scale
    return -1.0, 1.0
