"""A document on disk with a check sum and a generation, readable by a person below its first line.

edgeward-sealed 1 <generation> <length> <CRC-32 of generation, length and document, hex>
<document>
"""

from __future__ import annotations

import zlib

import msgspec

MAGIC = b"edgeward-sealed 1"
# The longest first line: magic, two numbers of at most 20 digits, 8 hex digits.
HEADER_BYTES = len(MAGIC) + 3 + 20 + 20 + 8 + 1


class Sealed(msgspec.Struct, frozen=True):
    """A document whose check sum was right."""

    generation: int
    document: bytes


def seal(document: bytes, generation: int = 0) -> bytes:
    """The bytes to store for a document; anything may follow them."""
    head = b"%d %d" % (generation, len(document))
    return b"%s %s %08x\n%s" % (MAGIC, head, _check_sum(head, document), document)


def unseal(data: bytes) -> Sealed | None:
    """The document in stored bytes, or None when they are damaged."""
    head, newline, _ = data[:HEADER_BYTES].partition(b"\n")
    if not newline or not head.startswith(MAGIC + b" "):
        return None
    fields = head[len(MAGIC) + 1 :].split(b" ")
    if len(fields) != 3 or not (fields[0].isdigit() and fields[1].isdigit()):
        return None
    start, length = len(head) + 1, int(fields[1])
    document = data[start : start + length]
    numbers = b"%s %s" % (fields[0], fields[1])
    if len(document) != length or b"%08x" % _check_sum(numbers, document) != fields[2]:
        return None
    return Sealed(int(fields[0]), document)


def _check_sum(head: bytes, document: bytes) -> int:
    return zlib.crc32(document, zlib.crc32(head))
