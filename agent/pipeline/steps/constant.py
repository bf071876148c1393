"""An input that is the same for every message, such as a sample rate."""

from __future__ import annotations

from typing import Annotated

import msgspec

from agent.documents.codec import show
from agent.documents.manifest import Datatype, Tensor
from agent.errors import BadInput, DocumentError
from agent.pipeline.codecs.json_text import element_type, to_array
from agent.pipeline.steps.api import CompiledStep, Memory, StepContext, StepKind
from agent.pipeline.tensors import Arrays, show_shape

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
    tensor = Tensor(options.name, options.datatype, options.shape)
    values = options.value if isinstance(options.value, tuple) else (options.value,)
    try:
        elements = msgspec.convert(list(values), list[element_type(tensor)])  # type: ignore[misc]
        array = to_array(elements, tensor, options.name).reshape(options.shape)
    except (msgspec.ValidationError, ValueError, BadInput):
        raise DocumentError(
            f"{context.path}.value",
            f"{options.datatype} values of shape {show_shape(options.shape)}",
            show(options.value),
        ) from None
    array.flags.writeable = False
    name = options.name

    def run(arrays: Arrays, _memory: Memory) -> Arrays:
        arrays[name] = array
        return arrays

    return CompiledStep(run, (*context.tensors, tensor))


KIND = StepKind(Constant, compile_constant)
