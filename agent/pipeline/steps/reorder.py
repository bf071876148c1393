"""The same numbers in another order or shape: HWC to CHW, RGB to BGR, a new axis."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from agent.errors import DocumentError
from agent.pipeline.steps.api import (
    CompiledStep,
    Memory,
    StepContext,
    StepKind,
    check_axis,
    pick,
    replaced,
)
from agent.pipeline.tensors import MAX_RANK, Arrays, Fit, show_shape

Axes = Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_RANK)]


class Reorder(msgspec.Struct, frozen=True):
    """In this order: `flip` an axis (-1 on RGB gives BGR), put the `axes` in another order, give
    it a `shape` (one dimension may be -1: what remains)."""

    input: str = ""
    flip: int | None = None
    axes: Axes = ()
    shape: Axes | None = None


def compile_reorder(options: Reorder, context: StepContext) -> CompiledStep:
    """Check axes and sizes as far as they are known."""
    tensor = pick(context, options.input)
    shape = tuple(tensor.shape)
    if options.flip is not None:
        check_axis(options.flip, tensor, f"{context.path}.flip")
    if options.axes:
        if sorted(axis % len(shape) if shape else axis for axis in options.axes) != list(
            range(len(shape))
        ):
            raise DocumentError(
                f"{context.path}.axes", f"each of {len(shape)} axes once", str(list(options.axes))
            )
        shape = tuple(shape[axis] for axis in options.axes)
    if options.shape is not None:
        shape = _reshaped(shape, options.shape, f"{context.path}.shape")
    name, flip, axes, target = tensor.name, options.flip, options.axes, options.shape
    fit = Fit(target or ())
    refuse = context.refuse

    def run(arrays: Arrays, _memory: Memory) -> Arrays:
        array = arrays[name]
        if flip is not None:
            array = np.flip(array, flip)
        if axes:
            array = array.transpose(axes)
        if target is not None:
            if array.size != fit.fixed and not (fit.free and fit.divides(array.size)):
                raise refuse(f"{name}: expected {show_shape(target)}, got {array.size} elements")
            array = array.reshape(target)
        arrays[name] = array
        return arrays

    return CompiledStep(
        run, replaced(context, tensor, msgspec.structs.replace(tensor, shape=shape))
    )


def _reshaped(shape: tuple[int, ...], target: tuple[int, ...], path: str) -> tuple[int, ...]:
    fit = Fit(target)
    if any(n < -1 for n in target) or len(fit.free) > 1 or (fit.free and not fit.fixed):
        raise DocumentError(path, "sizes, at most one of them -1", show_shape(target))
    before = Fit(shape)
    if before.free:
        return target
    if fit.free and before.fixed % fit.fixed == 0:
        return tuple(before.fixed // fit.fixed if n == -1 else n for n in target)
    if fit.free or before.fixed != fit.fixed:
        raise DocumentError(
            path, f"the {before.fixed} elements of {show_shape(shape)}", str(target)
        )
    return target


KIND = StepKind(Reorder, compile_reorder)
