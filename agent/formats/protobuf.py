"""A protobuf message as its fields, from the wire format alone.

Source: "Encoding" in the Protocol Buffers documentation. Stricter than most parsers on purpose: a
file that two parsers could read differently (tags past 32 bits, groups) is refused, because what is
checked here must be what the runtime will see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator

from agent.formats.bounds import Budget, damaged, decoded, readable

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_TAG = 1 << 32
MAX_KEPT = 65_536  # values of one message; a view takes some 200 bytes
_WHAT = "ONNX"


class Message:
    """The fields of one message, by number, in file order.

    Varints are ints in 0..2^64-1, everything else views of the file. A field whose wire type is
    not the expected one is passed over, as protobuf parsers do.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: dict[int, list[int | memoryview]]) -> None:
        self._fields = fields

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def views(self, number: int) -> list[memoryview]:
        """Values of a repeated message, string or bytes field."""
        return [v for v in self._fields.get(number, ()) if isinstance(v, memoryview)]

    def values(self, number: int) -> list[int | memoryview]:
        """Values of a repeated field, whatever their wire types."""
        return self._fields.get(number, [])

    def integer(self, number: int, default: int = 0) -> int:
        """A singular int64; the last one counts."""
        values = [v for v in self._fields.get(number, ()) if isinstance(v, int)]
        return signed(values[-1], 64) if values else default

    def integer32(self, number: int, default: int = 0) -> int:
        """A singular int32 or enum; parsers keep the low 32 bits."""
        return signed(self.integer(number, default), 32)

    def name(self, number: int) -> str:
        """A singular string that must survive unchanged; "" where absent."""
        values = self.views(number)
        return decoded(values[-1], _WHAT) if values else ""

    def text(self, number: int) -> str:
        """A singular string for people; "" where absent."""
        values = self.views(number)
        return readable(values[-1]) if values else ""


def signed(value: int, bits: int) -> int:
    """The two's complement number in the low `bits` of `value`."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def fields(
    view: memoryview,
    budget: Budget,
    runs: re.Pattern[bytes] | None = None,
    on_run: Callable[[memoryview], None] | None = None,
) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (number, value) of each field of a message, in file order.

    Args:
        runs: matches stretches of fields that may be passed over at once.
        on_run: gets each of these stretches.

    Raises:
        ModelRejected: not protobuf, or more fields than the budget allows.
    """
    position, end = 0, len(view)
    while position < end:
        budget.spend()
        if runs is not None and (run := runs.match(view, position)):
            if on_run is not None:
                on_run(view[position : run.end()])
            position = run.end()
            continue
        tag, position = _varint(view, position, end)
        value, position = _value(view, position, end, tag)
        yield tag >> 3, value


def read(views: Iterable[memoryview], budget: Budget, wanted: Collection[int]) -> Message:
    """Read one message and keep the wanted fields.

    Args:
        views: its occurrences in the file: protobuf merges a singular message that appears twice.

    Raises:
        ModelRejected: as for `fields`, or more wanted values than are kept.
    """
    kept: dict[int, list[int | memoryview]] = {}
    room = MAX_KEPT
    for view in views:
        for number, value in fields(view, budget):
            if number in wanted:
                kept.setdefault(number, []).append(value)
                room -= 1
                if room < 0:
                    raise damaged(_WHAT, f"a message repeats its fields more than {MAX_KEPT} times")
    return Message(kept)


def _varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF if shift == 63 else value, position
        shift += 7
    raise damaged(_WHAT, "it ends inside a number" if position >= end else "a number has no end")


def _value(view: memoryview, position: int, end: int, tag: int) -> tuple[int | memoryview, int]:
    if tag >= _MAX_TAG or tag < 8:
        raise damaged(_WHAT, "a field has an impossible number")
    wire_type = tag & 7
    if wire_type == _VARINT:
        return _varint(view, position, end)
    if wire_type == _LENGTH:
        length, position = _varint(view, position, end)
    elif wire_type == _FIXED32:
        length = 4
    elif wire_type == _FIXED64:
        length = 8
    else:
        raise damaged(_WHAT, f"a field has wire type {wire_type}, which ONNX does not use")
    if length > end - position:
        raise damaged(
            _WHAT, f"field {tag >> 3} says {length} bytes where only {end - position} follow"
        )
    return view[position : position + length], position + length
