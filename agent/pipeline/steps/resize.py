"""Pictures to the size that a model takes."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from agent.errors import DocumentError
from agent.pipeline.steps.api import (
    CompiledStep,
    Memory,
    StepContext,
    StepKind,
    pick_numbers,
    replaced,
)
from agent.pipeline.tensors import Array, Arrays

Filter = Literal["bilinear", "nearest", "box"]
Pixels = Annotated[int, msgspec.Meta(ge=1, le=8192)]
MAX_PIXELS = 1 << 24
# Radius of each filter in output pixels.
_SUPPORT = {"box": 0.5, "bilinear": 1.0}


class Resize(msgspec.Struct, frozen=True):
    """`crop`: "center" first cuts the largest centred part with the proportions of the result;
    "none" takes the whole picture and does not keep its proportions."""

    width: Pixels
    height: Pixels
    input: str = ""
    filter: Filter = "bilinear"
    crop: Literal["none", "center"] = "none"


def compile_resize(options: Resize, context: StepContext) -> CompiledStep:
    """Work on [height, width], [height, width, channels] or a batch of the latter. Bytes stay
    bytes, rounded; other numbers become float32."""
    tensor = pick_numbers(context, options.input)
    rank = len(tensor.shape)
    if rank not in (2, 3, 4) or tensor.datatype == "FP64":
        raise DocumentError(
            f"{context.path}.input", "[height,width,channels] of at most 32 bits", tensor.name
        )
    if options.width * options.height > MAX_PIXELS:
        raise DocumentError(context.path, f"at most {MAX_PIXELS} pixels", "more")
    rows = 1 if rank == 4 else 0
    as_bytes = tensor.datatype == "UINT8"
    pillow = _import_pillow() if as_bytes else None
    name, refuse = tensor.name, context.refuse
    wanted = (options.height, options.width)

    def resize(picture: Array) -> Array:
        if options.crop == "center":
            picture = crop_center(picture, wanted)
        if picture.shape[:2] == wanted:
            return picture
        if pillow is not None and picture.shape[2:] in ((), (1,), (3,)):
            return _with_pillow(pillow, picture, wanted, options.filter)
        return resample(picture, wanted, options.filter)

    def run(arrays: Arrays, _memory: Memory) -> Arrays:
        array = arrays[name]
        if 0 in array.shape[rows:]:
            raise refuse(f"{name}: expected a picture, got one without pixels")
        if not as_bytes:
            array = array.astype(np.float32, copy=False)
        if rows:
            empty = (0, *wanted, array.shape[-1])
            done = [resize(picture) for picture in array]
            arrays[name] = np.stack(done) if done else array.reshape(empty)
        else:
            arrays[name] = resize(array)
        return arrays

    shape = (*tensor.shape[:rows], options.height, options.width, *tensor.shape[rows + 2 :])
    resized = msgspec.structs.replace(tensor, shape=shape, datatype="UINT8" if as_bytes else "FP32")
    return CompiledStep(run, replaced(context, tensor, resized))


def crop_center(picture: Array, wanted: tuple[int, int]) -> Array:
    """Return the largest centred part of a picture with the proportions of `wanted`."""
    height, width = picture.shape[:2]
    crop_height = min(height, max(1, round(width * wanted[0] / wanted[1])))
    crop_width = min(width, max(1, round(height * wanted[1] / wanted[0])))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return picture[top : top + crop_height, left : left + crop_width]


def resample(picture: Array, wanted: tuple[int, int], kind: Filter) -> Array:
    """Resize along one axis, then the other. A result of bytes is rounded after each."""
    if kind == "nearest":
        height, width = picture.shape[:2]
        down = np.minimum(
            ((np.arange(wanted[0]) + 0.5) * height / wanted[0]).astype(int), height - 1
        )
        across = np.minimum(
            ((np.arange(wanted[1]) + 0.5) * width / wanted[1]).astype(int), width - 1
        )
        picked: Array = picture[down][:, across]
        return picked
    across_first = _along(picture.swapaxes(0, 1), wanted[1], kind).swapaxes(0, 1)
    return np.ascontiguousarray(_along(across_first, wanted[0], kind))


def _along(array: Array, size: int, kind: Filter) -> Array:
    """Resize the first axis: a weighted sum of the source rows under the filter around each
    result row, the filter as wide as the reduction (so that no source pixel is skipped)."""
    if array.shape[0] == size:
        return array
    first, weights = _taps(array.shape[0], size, kind)
    result = np.zeros((size, *array.shape[1:]), np.float32)
    spread = (slice(None), *(np.newaxis,) * (array.ndim - 1))
    last = array.shape[0] - 1
    for tap in range(weights.shape[1]):
        result += array[np.minimum(first + tap, last)] * weights[:, tap][spread]
    if array.dtype == np.uint8:
        rounded: Array = np.clip(np.floor(result + np.float32(0.5)), 0, 255).astype(np.uint8)
        return rounded
    return result


@lru_cache(maxsize=16)
def _taps(source: int, size: int, kind: Filter) -> tuple[Array, Array]:
    """Return the first source row of each result row, and the weights from there on."""
    scale = source / size
    radius = _SUPPORT[kind] * max(scale, 1.0)
    center = (np.arange(size) + 0.5) * scale
    first = np.maximum(np.floor(center - radius + 0.5).astype(int), 0)
    last = np.minimum(np.floor(center + radius + 0.5).astype(int), source)
    taps = np.arange((last - first).max())
    distance = (first[:, np.newaxis] + taps + 0.5 - center[:, np.newaxis]) / max(scale, 1.0)
    if kind == "box":
        weights = ((distance > -0.5) & (distance <= 0.5)).astype(np.float64)
    else:
        weights = np.maximum(0.0, 1.0 - np.abs(distance))
    weights[taps[np.newaxis, :] >= (last - first)[:, np.newaxis]] = 0.0
    return first, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _with_pillow(pillow: Any, picture: Array, wanted: tuple[int, int], kind: Filter) -> Array:
    """The same for bytes with Pillow, several times faster."""
    filters: dict[Filter, Any] = {
        "bilinear": pillow.Resampling.BILINEAR,
        "nearest": pillow.Resampling.NEAREST,
        "box": pillow.Resampling.BOX,
    }
    flat = picture.reshape(picture.shape[:2]) if picture.shape[2:] == (1,) else picture
    image = pillow.fromarray(np.ascontiguousarray(flat))
    resized: Array = np.asarray(image.resize((wanted[1], wanted[0]), filters[kind]))
    return resized.reshape(*wanted, *picture.shape[2:])


def _import_pillow() -> Any:
    """Pillow where it is installed; what is above gives the same within rounding."""
    try:
        from PIL import Image
    except ImportError:
        return None
    return Image


KIND = StepKind(Resize, compile_resize)
