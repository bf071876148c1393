"""A flatbuffer's tables, with every offset checked before it is followed.

Source: "FlatBuffers Internals" in the FlatBuffers documentation. Slots are vtable byte offsets (4
for a table's first field, 6 for its second …), as in generated code.
"""

from __future__ import annotations

import struct

from agent.formats.bounds import Budget, damaged, decoded, readable

_U16 = struct.Struct("<H")
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
SCALARS = {name: struct.Struct("<" + name) for name in "bBhHiIqQf"}
_ELEMENTS_PER_STEP = 64
_MAX_NUMBERS = 65_536  # of one vector; Python needs some 40 bytes for each


class Flatbuffer:
    """The bytes of one flatbuffer and what reading them may still cost."""

    __slots__ = ("_budget", "_data", "what")

    def __init__(self, data: memoryview, budget: Budget, what: str) -> None:
        self._data = data
        self._budget = budget
        self.what = what

    def __len__(self) -> int:
        return len(self._data)

    def root(self) -> Table:
        if len(self._data) < 8:
            raise damaged(self.what, f"a file of {len(self._data)} bytes has no root table")
        offset: int = self.unpack(_U32, 0)
        if offset > len(self._data) - 4:
            raise damaged(
                self.what,
                f"its root offset {offset} points outside the file of {len(self._data)} bytes",
            )
        return Table(self, offset)

    def unpack(self, form: struct.Struct, position: int) -> int:
        """One integer at a position; negative positions would wrap around in `struct`."""
        self.require(position, form.size)
        value: int = form.unpack_from(self._data, position)[0]
        return value

    def require(self, position: int, size: int) -> None:
        if position < 0 or position + size > len(self._data):
            raise damaged(
                self.what, f"it needs byte {position + size} of a file of {len(self._data)} bytes"
            )

    def follow(self, position: int) -> int:
        """The target of the unsigned offset at `position`."""
        return position + self.unpack(_U32, position)

    def spend(self, steps: int = 1) -> None:
        self._budget.spend(steps)

    def elements(self, position: int, size: int) -> tuple[int, int]:
        """Where a vector's elements begin and how many there are, all of them inside the file."""
        count = self.unpack(_U32, position)
        self.require(position + 4, count * size)
        return position + 4, count

    def view(self, position: int, length: int) -> memoryview:
        self.require(position, length)
        return self._data[position : position + length]


class Table:
    """One table; absent fields give their default."""

    __slots__ = ("_buffer", "_position", "_vtable", "_vtable_size")

    def __init__(self, buffer: Flatbuffer, position: int) -> None:
        buffer.spend()
        self._buffer = buffer
        self._position = position
        self._vtable = position - buffer.unpack(_I32, position)
        self._vtable_size = buffer.unpack(_U16, self._vtable)
        buffer.require(self._vtable, self._vtable_size)

    def _field(self, slot: int) -> int:
        """Position of a field, or 0 where the table has none."""
        if slot + 2 > self._vtable_size:
            return 0
        offset = self._buffer.unpack(_U16, self._vtable + slot)
        return self._position + offset if offset else 0

    def number(self, slot: int, form: str, default: int = 0) -> int:
        """A scalar; `form` is its letter in `struct`."""
        position = self._field(slot)
        return self._buffer.unpack(SCALARS[form], position) if position else default

    def _raw_text(self, slot: int) -> memoryview | None:
        position = self._field(slot)
        if not position:
            return None
        start, length = self._buffer.elements(self._buffer.follow(position), 1)
        self._buffer.spend(1 + length // _ELEMENTS_PER_STEP)
        return self._buffer.view(start, length)

    def name(self, slot: int) -> str:
        """A string that must survive unchanged; "" where absent."""
        raw = self._raw_text(slot)
        return decoded(raw, self._buffer.what) if raw is not None else ""

    def text(self, slot: int) -> str:
        """A string for people; "" where absent."""
        raw = self._raw_text(slot)
        return readable(raw) if raw is not None else ""

    def names(self, slot: int) -> list[str]:
        """A vector of strings that must survive unchanged; [] where absent."""
        position = self._field(slot)
        if not position:
            return []
        buffer = self._buffer
        start, count = buffer.elements(buffer.follow(position), 4)
        buffer.spend(count)
        places = [buffer.follow(start + 4 * index) for index in range(count)]
        return [decoded(buffer.view(*buffer.elements(at, 1)), buffer.what) for at in places]

    def table(self, slot: int) -> Table | None:
        position = self._field(slot)
        return Table(self._buffer, self._buffer.follow(position)) if position else None

    def tables(self, slot: int) -> list[Table]:
        """A vector of tables; [] where absent."""
        position = self._field(slot)
        if not position:
            return []
        start, count = self._buffer.elements(self._buffer.follow(position), 4)
        self._buffer.spend(count)
        return [
            Table(self._buffer, self._buffer.follow(start + 4 * index)) for index in range(count)
        ]

    def count(self, slot: int, size: int) -> int:
        """Length of a vector whose elements have `size` bytes, without reading them."""
        position = self._field(slot)
        return self._buffer.elements(self._buffer.follow(position), size)[1] if position else 0

    def numbers(self, slot: int, form: str) -> tuple[int, ...]:
        """A vector of scalars; () where absent."""
        values: tuple[int, ...] = self._vector(slot, form)
        return values

    def floats(self, slot: int) -> tuple[float, ...]:
        values: tuple[float, ...] = self._vector(slot, "f")
        return values

    def _vector(self, slot: int, form: str) -> tuple[int, ...]:
        position = self._field(slot)
        if not position:
            return ()
        size = SCALARS[form].size
        start, count = self._buffer.elements(self._buffer.follow(position), size)
        self._buffer.spend(1 + count // _ELEMENTS_PER_STEP)
        if count > _MAX_NUMBERS:
            raise damaged(self._buffer.what, f"a list of {count} numbers (at most {_MAX_NUMBERS})")
        return struct.unpack(f"<{count}{form}", self._buffer.view(start, count * size))

    def blob(self, slot: int) -> memoryview:
        """A vector of bytes, as a view; empty where absent."""
        position = self._field(slot)
        if not position:
            return memoryview(b"")
        return self._buffer.view(*self._buffer.elements(self._buffer.follow(position), 1))
