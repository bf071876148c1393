"""Where in a flatbuffer each offset, length and number stands, so that it can be changed there."""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import NamedTuple

from tests.campaign.flat_tables import Tables

OPTIONS = "Options"  # of an operator: a table of any kind
_FORMS = frozenset("bBhHiIqQf")
_MAX_NUMBERS = 4096
_MAX_OFFSETS = 100_000


class Site(NamedTuple):
    """One value of the file: where it stands and its form in `struct`."""

    position: int
    form: str


class Sites:
    """All that a walk through a valid model has met.

    `numbers` are scalars by `Table.field`, `offsets` what leads from one place to another,
    `vtables` the tables of tables, `lengths` of vectors, `blobs` (start, length) of weights.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, list[Site]] = defaultdict(list)
        self.offsets: list[Site] = []
        self.vtables: list[Site] = []
        self.lengths: dict[str, list[Site]] = defaultdict(list)
        self.blobs: list[tuple[int, int]] = []

    def positions(self) -> list[int]:
        """Return where the structure lies, as against the weights."""
        sites = [*self.offsets, *self.vtables]
        for group in (*self.numbers.values(), *self.lengths.values()):
            sites += group
        return sorted({site.position for site in sites})


def sites_of(data: bytes, tables: Tables) -> Sites:
    """Walk a model.

    Raises:
        ValueError, struct.error: It is not a valid one (any more).
    """
    return _Walk(data, tables).sites


class _Walk:
    """One way through a file, each table once."""

    def __init__(self, data: bytes, tables: Tables) -> None:
        self._data = data
        self._tables = tables
        self.sites = Sites()
        self.sites.offsets.append(Site(0, "I"))
        seen: set[tuple[str, int]] = set()
        stack = [(next(iter(tables)), self._at("I", 0))]
        while stack:
            here = stack.pop()
            if here not in seen:
                seen.add(here)
                stack += self._table(*here)

    def _at(self, form: str, position: int) -> int:
        return int(struct.unpack_from("<" + form, self._data, position)[0])

    def _table(self, name: str, table: int) -> list[tuple[str, int]]:
        self.sites.vtables.append(Site(table, "i"))
        vtable = table - self._at("i", table)
        size = self._at("H", vtable)
        self.sites.vtables += [Site(vtable + at, "H") for at in range(0, size, 2)]
        known = self._tables.get(name, {})
        children: list[tuple[str, int]] = []
        for slot in range(4, size - 1, 2):
            offset = self._at("H", vtable + slot)
            if not offset:
                continue
            field, kind = known.get(slot, (f"slot_{slot}", "B" if name == OPTIONS else ""))
            if kind:
                children += self._field(f"{name}.{field}", kind, table + offset)
        return children

    def _field(self, label: str, kind: str, position: int) -> list[tuple[str, int]]:
        if kind in _FORMS:
            self.sites.numbers[label].append(Site(position, kind))
            return []
        self.sites.offsets.append(Site(position, "I"))
        target = position + self._at("I", position)
        if kind in self._tables or kind == OPTIONS:
            return [(kind, target)]
        self.sites.lengths[label].append(Site(target, "I"))
        return self._elements(label, kind, self._at("I", target), target + 4)

    def _elements(self, label: str, kind: str, count: int, start: int) -> list[tuple[str, int]]:
        inner = kind.strip("[]")
        if start + count > len(self._data) or len(self.sites.offsets) > _MAX_OFFSETS:
            raise ValueError("damaged by an earlier change")
        if kind == "bytes":
            self.sites.blobs.append((start, count))
        elif inner.lstrip("3") in _FORMS:
            count, inner = (3 * count, "I") if inner == "3I" else (count, inner)
            places = range(start, start + min(count, _MAX_NUMBERS) * _size(inner), _size(inner))
            self.sites.numbers[label] += [Site(place, inner) for place in places]
        elif kind != "text":
            places = range(start, start + 4 * count, 4)
            self.sites.offsets += [Site(place, "I") for place in places]
            targets = [place + self._at("I", place) for place in places]
            if inner in self._tables:
                return [(inner, target) for target in targets]
            self.sites.lengths[label] += [Site(target, "I") for target in targets]
        return []


def _size(form: str) -> int:
    return struct.calcsize("<" + form)
