"""Readings as rows of named fields: what the codecs for sensors' own JSON and for CSV share.

Either the pack has one numeric input and a row is its vector, or it has one input per field (as
converters make for tables with columns of several types).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agent.documents.manifest import Tensor
from agent.errors import BadInput, DocumentError
from agent.pipeline.codecs.json_text import to_array
from agent.pipeline.tensors import Arrays, Fit

Rows = Sequence[Sequence[Any]]


class RowPlan(msgspec.Struct, frozen=True):
    """How rows become arrays."""

    # The fields of a row in order; empty where the pack's one input takes a row of any length.
    names: tuple[str, ...]
    # What each field is; the one element where a row may have any length.
    fields: tuple[Tensor, ...]
    # Raises BadInput where rows are too many or differ in length.
    assemble: Callable[[Rows], Arrays]


def plan_rows(inputs: tuple[Tensor, ...], names: tuple[str, ...], *, path: str) -> RowPlan:
    """Find out what a row is.

    Args:
        inputs: The public inputs.
        names: The fields in the order of the vector, where the pack has one input.
        path: Where errors point.

    Raises:
        DocumentError: Rows cannot fill these inputs.
    """
    if len(set(names)) != len(names):
        raise DocumentError(f"{path}.fields", "each field once", ", ".join(names))
    if len(inputs) == 1 and inputs[0].datatype != "BYTES":
        return _plan_vector(inputs[0], names, path)
    return _plan_columns(inputs, names, path)


def _plan_vector(tensor: Tensor, names: tuple[str, ...], path: str) -> RowPlan:
    # A leading dimension of 1 or any size counts rows; the rest is one row.
    batched = len(tensor.shape) > 1 and tensor.shape[0] in (1, -1)
    row = tensor.shape[1:] if batched else tensor.shape
    width = None if -1 in row else math.prod(row)
    if width is None and names:
        width = len(names)
    if names and width != len(names):
        raise DocumentError(f"{path}.fields", f"{width} fields", f"{len(names)}")
    if not names and width == 1:
        names = (tensor.name,)
    fit = Fit(tensor.shape)
    if width is None and not fit.is_solvable():
        raise DocumentError(path, "a number of fields that tells the shape", tensor.name)

    def assemble(rows: Rows) -> Arrays:
        array = to_array(rows, tensor, "payload")
        if array.ndim != 2 or (width is not None and array.shape[1] != width):
            raise BadInput(f"payload: expected rows of {width} numbers")
        if width is None and len(rows) == 1:
            return {tensor.name: array.reshape(fit.solve(array.size, "payload"))}
        # A row of several dimensions (or of none) takes its shape; free ones stand alone.
        inner = row if -1 not in row else (array.shape[1],)
        shape = (len(rows), *inner) if batched or len(rows) != 1 else inner
        return {tensor.name: array.reshape(fit(shape, "payload"))}

    return RowPlan(names, (tensor,) * (width or 1), assemble)


def _plan_columns(inputs: tuple[Tensor, ...], names: tuple[str, ...], path: str) -> RowPlan:
    if names:
        raise DocumentError(f"{path}.fields", "none: the fields are the pack's inputs", str(names))
    for tensor in inputs:
        if math.prod(n for n in tensor.shape if n != -1) != 1 or tensor.shape.count(-1) > 1:
            raise DocumentError(path, "one value per row in each input", f"{tensor.name}")
    fits = [Fit(tensor.shape) for tensor in inputs]

    def assemble(rows: Rows) -> Arrays:
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(inputs)
        return {
            tensor.name: to_array(column, tensor, tensor.name).reshape(
                fit.solve(len(rows), tensor.name)
            )
            for tensor, fit, column in zip(inputs, fits, columns, strict=True)
        }

    return RowPlan(tuple(tensor.name for tensor in inputs), inputs, assemble)
