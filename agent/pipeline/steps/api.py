"""What a step is.

A step is compiled once per model, against the datatypes and shapes that reach it. Its function owns
the dictionary that it gets and may change it, but never writes into an array. It raises BadInput
(before the model) or BadOutput (after it) for values that it cannot take, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from agent.documents.manifest import Tensor
from agent.errors import BadInput, BadOutput, DocumentError
from agent.pipeline.tensors import Arrays

# What steps keep of one source between its messages; keyed by the step's path.
Memory = dict[str, Any]
# Under this key a step leaves the index of the one class that a prediction names; -1: of none.
CLASS_INDEX = "class index"
Run = Callable[[Arrays, Memory], Arrays]


class StepContext(msgspec.Struct, frozen=True):
    """What a step is made for."""

    # What reaches it, in the order of the signature.
    tensors: tuple[Tensor, ...]
    labels: tuple[str, ...]
    path: str
    refuse: type[BadInput] | type[BadOutput]


class CompiledStep(msgspec.Struct, frozen=True):
    """A step made for one model."""

    run: Run
    # What leaves it.
    tensors: tuple[Tensor, ...]
    # The names of the classes, where the step leaves a CLASS_INDEX (empty: they have none).
    class_labels: tuple[str, ...] | None = None


class StepKind(msgspec.Struct, frozen=True):
    """One kind of step. `compile` gets the checked options; it raises DocumentError, with the
    context's path, for tensors that the step cannot work on."""

    options: type[msgspec.Struct]
    compile: Callable[[Any, StepContext], CompiledStep]
    # The options that a slot's settings may override.
    settings: frozenset[str] = msgspec.field(default_factory=frozenset)
    # It keeps something of each source between messages.
    remembers: bool = False


def pick(context: StepContext, name: str) -> Tensor:
    """Return the tensor that a step works on: the named one, or the only one.

    Raises:
        DocumentError: There is no such tensor, or a choice.
    """
    names = ", ".join(tensor.name for tensor in context.tensors) or "none"
    if not name and len(context.tensors) == 1:
        return context.tensors[0]
    if not name:
        raise DocumentError(f"{context.path}.input", f"one of {names}", "no name")
    for tensor in context.tensors:
        if tensor.name == name:
            return tensor
    raise DocumentError(f"{context.path}.input", f"one of {names}", repr(name))


def pick_numbers(context: StepContext, name: str) -> Tensor:
    """Return the tensor that a step computes with.

    Raises:
        DocumentError: As `pick`, or it holds something else than numbers that NumPy knows.
    """
    tensor = pick(context, name)
    if tensor.datatype in ("BYTES", "BF16", "BOOL"):
        raise DocumentError(f"{context.path}.input", "a tensor of numbers", tensor.datatype)
    return tensor


def check_axis(axis: int, tensor: Tensor, path: str) -> None:
    """Refuse an axis that a tensor does not have.

    Raises:
        DocumentError: It has not.
    """
    rank = len(tensor.shape)
    if not -rank <= axis < rank:
        raise DocumentError(path, f"an axis of a tensor with {rank} dimensions", f"axis {axis}")


def class_names(context: StepContext, scores: Tensor) -> tuple[str, ...]:
    """Return the pack's labels, one per score along the last axis; empty if it has none.

    Raises:
        DocumentError: There are more or fewer labels than scores.
    """
    labels = context.labels
    if labels and scores.shape and scores.shape[-1] not in (-1, len(labels)):
        raise DocumentError(
            "manifest.labels",
            f"{scores.shape[-1]}, one per score of {scores.name}",
            f"{len(labels)}",
        )
    return labels


def without_axis(tensor: Tensor, axis: int) -> tuple[int, ...]:
    """Return the shape without one of its dimensions."""
    shape = list(tensor.shape)
    del shape[axis]
    return tuple(shape)


def replaced(context: StepContext, old: Tensor, *new: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors with `new` in the place of `old`.

    Raises:
        DocumentError: Two tensors would have one name.
    """
    result: list[Tensor] = []
    for tensor in context.tensors:
        result.extend(new if tensor is old else (tensor,))
    names = [tensor.name for tensor in result]
    for name in names:
        if names.count(name) > 1:
            raise DocumentError(context.path, "tensors of different names", f"two named {name!r}")
    return tuple(result)
