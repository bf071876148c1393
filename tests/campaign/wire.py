"""Where in an ONNX file each tag and each length stands; and how to write them."""

from __future__ import annotations

from typing import NamedTuple

_MAX_FIELDS = 20_000
# Field numbers of the messages that lead to more structure: graph, node, attribute, initialiser …
# What else is length-delimited is a string or weights, and is not walked.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 14: "entry", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value"},
    "function": {7: "node", 9: "opset"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "value": {2: "type"},
    "type": {1: "tensor_type"},
    "tensor_type": {2: "shape"},
    "shape": {1: "dim"},
}


class Field(NamedTuple):
    """One field: its tag from `start`, its length from `length`, its content up to `end`."""

    message: str
    number: int
    wire_type: int
    start: int
    length: int
    content: int
    end: int


def fields_of(data: bytes) -> list[Field]:
    """Walk a valid model."""
    found: list[Field] = []
    stack = [("model", 0, len(data))]
    while stack and len(found) < _MAX_FIELDS:
        message, position, end = stack.pop()
        while position < end:
            start = position
            tag, position = _varint(data, position)
            length, content = position, position
            wire_type = tag & 7
            if wire_type == 0:
                _, position = _varint(data, position)
            elif wire_type == 2:
                size, content = _varint(data, position)
                position = content + size
            else:
                position += 8 if wire_type == 1 else 4
            number = tag >> 3
            found.append(Field(message, number, wire_type, start, length, content, position))
            inner = _INSIDE.get(message, {}).get(number)
            if inner is not None and wire_type == 2:
                stack.append((inner, content, position))
    return found


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it; negative ones as 64 bits."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def nested(number: int, content: bytes) -> bytes:
    """Return a field that holds a message, a string or bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    """Return a field that holds a number."""
    return varint(field << 3) + varint(value)
