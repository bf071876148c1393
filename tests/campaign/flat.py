"""Where in a TFLite file each offset, length and number stands, so that it can be changed there.

Slots are those of the public TFLite schema, version 3.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import NamedTuple

# Table → slot → (what it is called, how it is stored). A form of `struct` is a scalar, `[f]` a
# vector of them, `Table` and `[Table]` lead on, `text` and `bytes` are vectors whose elements are
# not looked at one by one.
TABLES: dict[str, dict[int, tuple[str, str]]] = {
    "Model": {
        4: ("version", "I"),
        6: ("operator_codes", "[OperatorCode]"),
        8: ("subgraphs", "[SubGraph]"),
        10: ("description", "text"),
        12: ("buffers", "[Buffer]"),
        14: ("metadata_buffer", "[i]"),
        16: ("metadata", "[Metadata]"),
        18: ("signature_defs", "[SignatureDef]"),
    },
    "OperatorCode": {
        4: ("deprecated_builtin_code", "b"),
        6: ("custom_code", "text"),
        8: ("version", "i"),
        10: ("builtin_code", "i"),
    },
    "SubGraph": {
        4: ("tensors", "[Tensor]"),
        6: ("inputs", "[i]"),
        8: ("outputs", "[i]"),
        10: ("operators", "[Operator]"),
        12: ("name", "text"),
    },
    "Tensor": {
        4: ("shape", "[i]"),
        6: ("type", "b"),
        8: ("buffer", "I"),
        10: ("name", "text"),
        12: ("quantization", "Quantization"),
        14: ("is_variable", "B"),
        18: ("shape_signature", "[i]"),
        20: ("has_rank", "B"),
    },
    "Quantization": {
        4: ("min", "[f]"),
        6: ("max", "[f]"),
        8: ("scale", "[f]"),
        10: ("zero_point", "[q]"),
        12: ("details_type", "B"),
        16: ("quantized_dimension", "i"),
    },
    "Operator": {
        4: ("opcode_index", "I"),
        6: ("inputs", "[i]"),
        8: ("outputs", "[i]"),
        10: ("builtin_options_type", "B"),
        12: ("builtin_options", "Options"),
        14: ("custom_options", "bytes"),
        18: ("mutating_variable_inputs", "bytes"),
        20: ("intermediates", "[i]"),
    },
    "Buffer": {4: ("data", "bytes"), 6: ("offset", "Q"), 8: ("size", "Q")},
    "Metadata": {4: ("name", "text"), 6: ("buffer", "I")},
    "SignatureDef": {
        4: ("inputs", "[TensorMap]"),
        6: ("outputs", "[TensorMap]"),
        8: ("signature_key", "text"),
        12: ("subgraph_index", "I"),
    },
    "TensorMap": {4: ("name", "text"), 6: ("tensor_index", "I")},
}
_FORMS = frozenset("bBhHiIqQf")


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


def sites_of(data: bytes) -> Sites:
    """Walk a valid model."""
    found = Sites()
    found.offsets.append(Site(0, "I"))
    seen: set[tuple[str, int]] = set()
    stack = [("Model", _at(data, "I", 0))]
    while stack:
        name, table = stack.pop()
        if (name, table) in seen:
            continue
        seen.add((name, table))
        stack += _table(data, found, name, table)
    return found


def _at(data: bytes, form: str, position: int) -> int:
    return int(struct.unpack_from("<" + form, data, position)[0])


def _table(data: bytes, found: Sites, name: str, table: int) -> list[tuple[str, int]]:
    found.vtables.append(Site(table, "i"))
    vtable = table - _at(data, "i", table)
    size = _at(data, "H", vtable)
    found.vtables += [Site(vtable + at, "H") for at in range(0, size, 2)]
    known = TABLES.get(name, {})
    children: list[tuple[str, int]] = []
    for slot in range(4, size - 1, 2):
        offset = _at(data, "H", vtable + slot)
        if not offset:
            continue
        field, kind = known.get(slot, (f"slot_{slot}", "B" if name == "Options" else ""))
        children += _field(data, found, f"{name}.{field}", kind, table + offset)
    return children


def _field(
    data: bytes, found: Sites, label: str, kind: str, position: int
) -> list[tuple[str, int]]:
    if not kind:
        return []
    if kind in _FORMS:
        found.numbers[label].append(Site(position, kind))
        return []
    found.offsets.append(Site(position, "I"))
    target = position + _at(data, "I", position)
    if kind in TABLES or kind == "Options":
        return [(kind, target)]
    found.lengths[label].append(Site(target, "I"))
    count, start = _at(data, "I", target), target + 4
    inner = kind.strip("[]")
    if kind == "bytes":
        found.blobs.append((start, count))
    elif inner in _FORMS:
        width = struct.calcsize("<" + inner)
        found.numbers[label] += [Site(start + width * n, inner) for n in range(min(count, 4096))]
    elif inner in TABLES:
        places = [start + 4 * n for n in range(count)]
        found.offsets += [Site(place, "I") for place in places]
        return [(inner, place + _at(data, "I", place)) for place in places]
    return []
