"""An input that is the same for every message, such as a sample rate."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from agent.documents.manifest import Datatype, Tensor
from agent.errors import DocumentError
from agent.pipeline.steps.api import CompiledStep, Memory, StepContext, StepKind
from agent.pipeline.tensors import DTYPES, Arrays

Value = bool | int | float | str


class Constant(msgspec.Struct, frozen=True):
    """`value`: one, or as many in a list as `shape` holds."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    value: Value | Annotated[tuple[Value, ...], msgspec.Meta(max_length=65536)]
    datatype: Datatype = "FP32"
    shape: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=16)
    ] = ()


def compile_constant(options: Constant, context: StepContext) -> CompiledStep:
    """Make the array once; nobody writes into it."""
    if any(tensor.name == options.name for tensor in context.tensors):
        raise DocumentError(f"{context.path}.name", "a name that is not taken", repr(options.name))
    if options.datatype == "BF16":
        raise DocumentError(f"{context.path}.datatype", "a datatype that NumPy has", "BF16")
    text = isinstance(options.value, str) or (
        isinstance(options.value, tuple) and any(isinstance(v, str) for v in options.value)
    )
    try:
        if text != (options.datatype == "BYTES"):
            raise ValueError("text is BYTES")
        with np.errstate(over="raise"):
            array = np.array(options.value, DTYPES[options.datatype]).reshape(options.shape)
    except (ValueError, OverflowError, TypeError, FloatingPointError):
        raise DocumentError(
            f"{context.path}.value",
            f"{options.datatype} values of shape {list(options.shape)}",
            str(options.value)[:60],
        ) from None
    array.flags.writeable = False
    name = options.name

    def run(arrays: Arrays, _memory: Memory) -> Arrays:
        arrays[name] = array
        return arrays

    tensor = Tensor(name, options.datatype, options.shape)
    return CompiledStep(run, (*context.tensors, tensor))


KIND = StepKind(Constant, compile_constant)
