"""Whether each tensor of a TFLite graph is there before it is read.

Runtimes do not look: a kernel that reads a tensor which nothing has made reads address 0, and one
that writes to a constant writes into the mapped file.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.formats.bounds import damaged, shown
from agent.formats.flatbuffer import Table

_WHAT = "TFLite"


def check_flow(graph: Table, tensors: Sequence[Table], filled: Sequence[bool]) -> None:
    """Walk the operators in the order in which a runtime executes them.

    Args:
        graph: A subgraph, all of whose indices have been checked.
        tensors: Its tensors.
        filled: For each buffer of the model, whether it holds anything.

    Raises:
        ModelRejected: An operator reads what nothing has made, or overwrites a constant.
    """
    constant = [filled[tensor.number(8, "I")] for tensor in tensors]
    there = {i for i, tensor in enumerate(tensors) if constant[i] or _needs_no_maker(tensor)}
    there.update(graph.numbers(6, "i"))
    for operator in graph.tables(10):
        _require(operator.numbers(6, "i"), there, tensors, "an operator reads")
        outputs = operator.numbers(8, "i")
        for index in outputs:
            if index >= 0 and constant[index]:
                raise damaged(_WHAT, f"an operator writes to a constant, {_name(tensors[index])}")
        there.update(outputs)
    _require(graph.numbers(8, "i"), there, tensors, "its output is")


def _require(indices: Sequence[int], there: set[int], tensors: Sequence[Table], what: str) -> None:
    for index in indices:
        if index >= 0 and index not in there:
            raise damaged(_WHAT, f"{what} {_name(tensors[index])}, which nothing has made")


def _needs_no_maker(tensor: Table) -> bool:
    """Whether a tensor is a state, or has no elements."""
    return tensor.number(14, "B") != 0 or 0 in tensor.numbers(4, "i")


def _name(tensor: Table) -> str:
    return f"the tensor {shown(tensor.name(10))}"
