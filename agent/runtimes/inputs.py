"""Holds what a run is given against what a model takes, for libraries that would convert it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.documents.manifest import Tensor
from agent.errors import BadInput
from agent.pipeline.tensors import DTYPES
from agent.runtimes.api import Arrays


def check_inputs(tensors: Sequence[Tensor], ranked: Mapping[str, bool], arrays: Arrays) -> None:
    """Compare names, types and shapes.

    Args:
        tensors: The model's inputs.
        ranked: Of each by name, whether the file says how many dimensions it has.
        arrays: What the run is given.

    Raises:
        BadInput: They differ; says in what.
    """
    if arrays.keys() != ranked.keys():
        raise BadInput(
            f"the model takes the inputs {', '.join(ranked) or 'none'}; "
            f"got {', '.join(arrays) or 'none'}"
        )
    for tensor in tensors:
        array = arrays[tensor.name]
        if array.dtype != DTYPES[tensor.datatype]:
            raise BadInput(f"the input {tensor.name!r} is {tensor.datatype}, not {array.dtype}")
        if not ranked[tensor.name]:
            continue
        fits = len(tensor.shape) == array.ndim and all(
            wanted in (-1, size) for wanted, size in zip(tensor.shape, array.shape, strict=True)
        )
        if not fits:
            raise BadInput(
                f"the input {tensor.name!r} has the shape {list(tensor.shape)}, "
                f"not {list(array.shape)}"
            )
