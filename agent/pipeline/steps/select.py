"""Keeps some tensors, in the order given, perhaps under other names."""

from __future__ import annotations

from typing import Annotated

import msgspec

from agent.errors import DocumentError
from agent.pipeline.steps.api import CompiledStep, Memory, StepContext, StepKind, pick
from agent.pipeline.tensors import Arrays


class Select(msgspec.Struct, frozen=True):
    """`names`: the tensors to keep. `rename`: new names by old ones."""

    names: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=256)]
    rename: dict[str, str] = {}


def compile_select(options: Select, context: StepContext) -> CompiledStep:
    """Check that the names are there and stay different."""
    new_names = [options.rename.get(name, name) for name in options.names]
    for name in options.rename:
        if name not in options.names:
            raise DocumentError(f"{context.path}.rename", "names that are kept", repr(name))
    if len(set(new_names)) != len(new_names) or "" in new_names:
        raise DocumentError(f"{context.path}.names", "different names", ", ".join(new_names))
    pairs = list(zip(options.names, new_names, strict=True))
    kept = tuple(
        msgspec.structs.replace(pick(context, name), name=new_name) for name, new_name in pairs
    )

    def run(arrays: Arrays, _memory: Memory) -> Arrays:
        return {new_name: arrays[name] for name, new_name in pairs}

    return CompiledStep(run, kept)


KIND = StepKind(Select, compile_select)
