"""State that a model hands back to be given to it again: one per source, never shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from agent.documents.manifest import StatePair, Tensor
from agent.errors import DocumentError
from agent.pipeline.boundary import compile_output_check, example, fits_shape
from agent.pipeline.tensors import Array, Arrays, show_shape


class State(msgspec.Struct, frozen=True):
    """The pairs of one variant."""

    # Zeros (in real numbers) for every state input; a free dimension is 1: one source, one stream.
    first: Arrays
    _checks: tuple[tuple[str, str, Callable[[object], Array]], ...]

    def after(self, raw: Mapping[str, Array]) -> Arrays:
        """Return the state inputs of the next run.

        Raises:
            BadOutput: The run gave no usable state.
        """
        return {name: check(raw.get(output)) for name, output, check in self._checks}


def compile_state(
    pairs: Sequence[StatePair], inputs: Sequence[Tensor], outputs: Sequence[Tensor], *, path: str
) -> State:
    """Find the tensors that the pairs name in one variant's file.

    Raises:
        DocumentError: A tensor is not there, or an output does not fit its input.
    """
    by_input = {tensor.name: tensor for tensor in inputs}
    by_output = {tensor.name: tensor for tensor in outputs}
    checks = []
    for index, pair in enumerate(pairs):
        source = _find(by_output, pair.output, f"{path}[{index}].output")
        target = _find(by_input, pair.input, f"{path}[{index}].input")
        if source.datatype != target.datatype or not fits_shape(target.shape, source.shape):
            raise DocumentError(
                f"{path}[{index}]",
                f"an output like input {target.name}: {target.datatype} {show_shape(target.shape)}",
                f"{source.datatype} {show_shape(source.shape)}",
            )
        check = compile_output_check(source, allow_nan=source.allow_nan)
        checks.append((target.name, source.name, check))
    return State({pair.input: example(by_input[pair.input]) for pair in pairs}, tuple(checks))


def _find(tensors: Mapping[str, Tensor], name: str, path: str) -> Tensor:
    if name not in tensors:
        raise DocumentError(path, f"one of {', '.join(tensors) or 'none'}", repr(name))
    return tensors[name]
