"""Numbers in another datatype."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from agent.pipeline.conversion import compile_conversion
from agent.pipeline.steps.api import (
    CompiledStep,
    Memory,
    StepContext,
    StepKind,
    pick_numbers,
    replaced,
)
from agent.pipeline.tensors import DTYPES, FLOAT_MAX, INTEGERS, Arrays

Numbers = Literal[
    "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"
]


class Cast(msgspec.Struct, frozen=True):
    """Real numbers are rounded to the nearest integer; a number beyond the datatype is refused."""

    datatype: Numbers
    input: str = ""


def compile_cast(options: Cast, context: StepContext) -> CompiledStep:
    """Find the conversion between the two datatypes."""
    tensor = pick_numbers(context, options.input)
    target = msgspec.structs.replace(tensor, datatype=options.datatype)
    name, refuse = tensor.name, context.refuse
    if tensor.datatype in FLOAT_MAX and options.datatype in INTEGERS:
        dtype = DTYPES[options.datatype]
        limits = np.iinfo(dtype)

        def round_to_integers(arrays: Arrays, _memory: Memory) -> Arrays:
            rounded = np.asarray(np.rint(arrays[name].astype(np.float64)))
            # Written so that NaN fails; the upper limit of 64 bits is no float64, its next is.
            fits = (rounded >= limits.min) & (rounded < float(limits.max) + (limits.max < 1 << 53))
            if not fits.all():
                raise refuse(f"{name}: a value is beyond {options.datatype}")
            arrays[name] = rounded.astype(dtype)
            return arrays

        return CompiledStep(round_to_integers, replaced(context, tensor, target))
    convert = compile_conversion(tensor, target, path=context.path, refuse=refuse)

    def run(arrays: Arrays, _memory: Memory) -> Arrays:
        if convert is not None:
            arrays[name] = convert(arrays[name])
        return arrays

    return CompiledStep(run, replaced(context, tensor, target))


KIND = StepKind(Cast, compile_cast)
