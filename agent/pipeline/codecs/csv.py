"""One line of comma-separated values: one reading.

An empty cell (or `nan`) is a missing value, for inputs that allow NaN.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from agent.documents.codec import show
from agent.documents.manifest import Tensor
from agent.errors import BadInput, DocumentError
from agent.pipeline.codecs.api import Codec, Decode, DecoderContext, payload_bound
from agent.pipeline.codecs.rows import RowPlan, plan_rows
from agent.pipeline.message import Decoded
from agent.pipeline.tensors import DTYPES, FLOAT_MAX

BYTES_PER_ELEMENT = 512

# Python's own float() and int() also take underscores, other scripts' digits and blanks.
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_BOOLEANS = {"0": False, "1": True, "false": False, "true": True}

Cell = Callable[[str, str], Any]
Name = Annotated[str, msgspec.Meta(max_length=256)]


class Options(msgspec.Struct, frozen=True):
    """How to read a line.

    `delimiter`: between two cells. `columns`: what the cells are, in order; without it they are
    the features in order. `fields`: the columns that make up the one input, in order; default:
    `columns`.
    """

    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","
    columns: Annotated[tuple[Name, ...], msgspec.Meta(max_length=65536)] = ()
    fields: Annotated[tuple[Name, ...], msgspec.Meta(max_length=65536)] = ()


def compile_decoder(options: Options, context: DecoderContext) -> Decode:
    """Return what reads one line."""
    path = context.path
    if options.delimiter in '"\r\n\0' or options.delimiter.isalnum():
        raise DocumentError(f"{path}.delimiter", "a sign such as , or ;", repr(options.delimiter))
    one_vector = len(context.inputs) == 1 and context.inputs[0].datatype != "BYTES"
    fields = (options.fields or options.columns) if one_vector else ()
    plan = plan_rows(context.inputs, fields, path=path)
    positions = _positions(options.columns, plan.names, path) if options.columns else None
    time_at = _time_position(options.columns, context)
    read_cells = _compile_cells(plan, positions, len(options.columns))
    read_numbers = None
    if time_at is None and positions in (None, list(range(len(options.columns)))):
        read_numbers = _compile_numbers(plan, options.delimiter)
    bound = payload_bound(context.inputs, BYTES_PER_ELEMENT)

    def decode(payload: bytes | memoryview) -> Decoded:
        if len(payload) > bound:
            raise BadInput(f"payload: expected at most {bound} bytes, got {len(payload)}")
        numbers = None if read_numbers is None else read_numbers(payload)
        if numbers is not None:
            return Decoded(plan.assemble([numbers]))
        line = _line(payload, options.delimiter)
        row = read_cells(line)
        time_ms = None if time_at is None else _read_float(line[time_at], context.time_field)
        return Decoded(plan.assemble([row]), None, "", time_ms)

    return decode


def _compile_cells(
    plan: RowPlan, positions: list[int] | None, columns: int
) -> Callable[[list[str]], list[Any]]:
    """Return what reads the cells of a line that are fields."""
    cells = [_compile_cell(tensor) for tensor in plan.fields]
    if not plan.names and len(cells) == 1:
        return lambda line: [cells[0](text, f"column {i + 1}") for i, text in enumerate(line)]
    names = plan.names or tuple(f"column {i + 1}" for i in range(len(cells)))
    width = columns or len(cells)

    def read(line: list[str]) -> list[Any]:
        if len(line) != width:
            raise BadInput(f"payload: expected {width} columns, got {len(line)}")
        used = line if positions is None else [line[i] for i in positions]
        return [cell(text, name) for cell, text, name in zip(cells, used, names, strict=True)]

    return read


def _compile_numbers(
    plan: RowPlan, delimiter: str
) -> Callable[[bytes | memoryview], list[float] | None] | None:
    """Return what reads a line of nothing but finite numbers in a third of the time; of any other
    line (None) the usual way finds out what is wrong with it."""
    kinds, width = {tensor.datatype for tensor in plan.fields}, len(plan.fields)
    if (
        (not plan.names and width == 1)
        or len(kinds) != 1
        or not kinds <= {"FP32", "FP64"}
        or delimiter in "+-. "
    ):
        return None
    separator, largest = delimiter.encode(), FLOAT_MAX[kinds.pop()]
    plain = re.compile(rb"[0-9+\-.eE \r\n" + re.escape(separator) + rb"]*")

    def numbers(payload: bytes | memoryview) -> list[float] | None:
        if not plain.fullmatch(payload):
            return None
        try:
            row = [float(cell) for cell in bytes(payload).split(separator)]
        except ValueError:
            return None
        fits = len(row) == width and -largest <= min(row) and max(row) <= largest
        return row if fits else None

    return numbers


def _positions(columns: tuple[str, ...], names: tuple[str, ...], path: str) -> list[int]:
    for name in names:
        if columns.count(name) != 1:
            raise DocumentError(
                f"{path}.columns", f"one column {name!r}", f"{columns.count(name)}: {show(columns)}"
            )
    return [columns.index(name) for name in names]


def _time_position(columns: tuple[str, ...], context: DecoderContext) -> int | None:
    field = context.time_field
    if field and field not in columns:
        raise DocumentError("manifest.pipeline.window.time_field", f"one of {columns}", repr(field))
    return columns.index(field) if field else None


def _line(payload: bytes | memoryview, delimiter: str) -> list[str]:
    try:
        text = str(payload, "utf-8").strip("\r\n")
        lines = list(csv.reader([text], delimiter=delimiter, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"payload: expected one line of CSV: {error}") from None
    if len(lines) != 1:
        raise BadInput("payload: expected one line of CSV, got none")
    return lines[0]


def _compile_cell(tensor: Tensor) -> Cell:
    """Return what reads the text of one cell."""
    if tensor.datatype == "BYTES":
        return lambda text, _name: text
    if tensor.datatype == "BOOL":
        return _read_bool
    if tensor.datatype in FLOAT_MAX:
        largest, missing = FLOAT_MAX[tensor.datatype], tensor.allow_nan

        def read_float(text: str, name: str) -> float:
            if missing and text.strip().lower() in ("", "nan"):
                return math.nan
            value = _read_float(text, name)
            if abs(value) > largest:
                raise BadInput(f"{name}: expected {tensor.datatype}, got {show(text)}")
            return value

        return read_float
    limits = DTYPES[tensor.datatype]
    low, high = _integer_limits(limits.itemsize * 8, signed=limits.kind == "i")

    def read_integer(text: str, name: str) -> int:
        text = text.strip()
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise BadInput(f"{name}: expected {tensor.datatype}, got {show(text)}")
        return int(text)

    return read_integer


def _integer_limits(bits: int, *, signed: bool) -> tuple[int, int]:
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def _read_float(text: str, name: str) -> float:
    text = text.strip()
    if len(text) > 64 or not _FLOAT.fullmatch(text) or math.isinf(float(text)):
        raise BadInput(f"{name}: expected a number, got {show(text)}")
    return float(text)


def _read_bool(text: str, name: str) -> bool:
    value = _BOOLEANS.get(text.strip().lower())
    if value is None:
        raise BadInput(f"{name}: expected 0, 1, true or false, got {show(text)}")
    return value


CODEC = Codec(Options, compile_decoder)
