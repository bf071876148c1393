"""Changes of an ONNX file's own bytes, such as protobuf's libraries would not write."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import onnx

from tests.campaign import wire
from tests.campaign.onnx_changes import WILD

Change = Callable[[bytes, Random], "bytes | None"]
DEPTHS = (1, 3, 16, 31, 33, 60, 90, 300, 5000)
_SMALL = 2000
_GRAPH = 5  # AttributeProto.AttributeType


def _nesting(data: bytes, random: Random) -> bytes | None:
    """Graphs inside graphs (`If`), up to far beyond what protobuf reads."""
    model = onnx.ModelProto.FromString(data)
    nodes = model.graph.node
    if not nodes:
        return None
    last = nodes[len(nodes) - 1]
    inner, outputs = last.SerializeToString(), [name.encode() for name in last.output]
    del nodes[len(nodes) - 1]
    cond = onnx.helper.make_tensor("cond", onnx.TensorProto.BOOL, [], [True])
    model.graph.initializer.append(cond)
    answers = b"".join(wire.nested(12, wire.nested(1, name)) for name in outputs)
    tail = wire.nested(2, b"branch") + answers
    head = wire.nested(1, b"cond") + b"".join(wire.nested(2, name) for name in outputs)
    for _ in range(random.choice(DEPTHS)):
        graph = wire.nested(1, inner) + tail
        # One that doubles at each level would soon be larger than any file.
        names = (b"then_branch", b"else_branch")[: 2 if len(graph) < _SMALL else 1]
        branches = [
            wire.nested(1, name) + wire.nested(6, graph) + wire.number(20, _GRAPH) for name in names
        ]
        inner = head + wire.nested(4, b"If") + b"".join(wire.nested(5, b) for b in branches)
    # A message that is said twice is one: this adds a node to the graph.
    return bytes(model.SerializeToString(deterministic=True)) + wire.nested(
        7, wire.nested(1, inner)
    )


def _length(data: bytes, random: Random) -> bytes | None:
    """A message or a string says that it is shorter or longer."""
    found = [field for field in wire.fields_of(data) if field.wire_type == 2]
    field = random.choice(found)
    size = field.end - field.content
    near = size + random.choice((-1, 1, -4, 4, 128))
    value = random.choice((near, near, 0, 2 * size, len(data), 2**31 - 1, 2**31, 2**63, 2**64 - 1))
    return data[: field.length] + wire.varint(max(0, value)) + data[field.content :]


def _tag(data: bytes, random: Random) -> bytes | None:
    """A field has another number or wire type."""
    field = random.choice(wire.fields_of(data))
    tag = random.choice(
        (
            field.number << 3 | random.randrange(8),
            random.randrange(32) << 3 | field.wire_type,
            random.choice((0, 1, 2**29 << 3 | 2, 2**40)),
        )
    )
    return data[: field.start] + wire.varint(tag) + data[field.length :]


def _number(data: bytes, random: Random) -> bytes | None:
    """A number becomes another, or is written in more bytes than it needs."""
    found = [field for field in wire.fields_of(data) if field.wire_type == 0]
    field = random.choice(found)
    value = wire.varint(random.choice(WILD))
    odd = (b"\x80" * 9 + b"\x01", b"\xff" * 10, b"\xff" * 11 + b"\x01", b"\x81\x80\x80\x00")
    return data[: field.content] + random.choice((value, value, *odd)) + data[field.end :]


def _field_twice(data: bytes, random: Random) -> bytes | None:
    """A field of the whole model is said again at its end: messages merge, numbers replace."""
    whole = [field for field in wire.fields_of(data) if field.message == "model"]
    field, other = random.choice(whole), random.choice(wire.fields_of(data))
    again = random.choice((field, other))
    return data + data[again.start : again.end]


CHANGES: dict[str, Change] = {
    "nesting": _nesting,
    "length": _length,
    "tag": _tag,
    "number": _number,
    "field twice": _field_twice,
}
