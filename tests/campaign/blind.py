"""Changes that know nothing of what they change, save where its structure lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

NOTABLE = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
WORDS = (0, 1, 4, 0x7F, 0x80, 0xFFFF, 1 << 16, 0x7FFF_FFFF, 1 << 31, 0xFFFF_FFFC, 0xFFFF_FFFF)
_MAX_RANGE = 4096


class Given(NamedTuple):
    """What a change may use: the bytes, where their structure lies, and another model."""

    data: bytes
    structure: Sequence[int]
    other: bytes


Change = Callable[[Given, Random], bytes]


def place(given: Given, random: Random) -> int:
    """Choose a byte: most often one of the structure, which is a small part of a large file."""
    if given.structure and random.random() < 0.6:
        near = random.choice(given.structure) + random.randrange(4)
        return min(near, len(given.data) - 1)
    return random.randrange(len(given.data))


def stretch(given: Given, random: Random) -> tuple[int, int]:
    """Choose a range, short ones more often."""
    start = place(given, random)
    length = min(1 << random.randrange(13), random.randrange(1, _MAX_RANGE))
    return start, min(start + length, len(given.data))


def bit_flips(given: Given, random: Random) -> bytes:
    changed = bytearray(given.data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        changed[place(given, random)] ^= 1 << random.randrange(8)
    return bytes(changed)


def bytes_set(given: Given, random: Random) -> bytes:
    changed = bytearray(given.data)
    for _ in range(random.choice((1, 1, 2, 4))):
        changed[place(given, random)] = random.choice((*NOTABLE, random.randrange(256)))
    return bytes(changed)


def words_set(given: Given, random: Random) -> bytes:
    changed = bytearray(given.data)
    for _ in range(random.choice((1, 1, 2))):
        start = place(given, random) // 4 * 4
        word = random.choice((*WORDS, random.randrange(len(given.data)))).to_bytes(4, "little")
        changed[start : start + 4] = word
    return bytes(changed)


def truncated(given: Given, random: Random) -> bytes:
    return given.data[: place(given, random)]


def spliced(given: Given, random: Random) -> bytes:
    """The beginning of one model, the end of another (or of itself)."""
    other = random.choice((given.other, given.other, given.data))
    if random.random() < 0.5:
        cut = place(given, random)
        return given.data[:cut] + other[min(cut, len(other)) :]
    start, end = stretch(given, random)
    begin = random.randrange(max(1, len(other)))
    return given.data[:start] + other[begin : begin + end - start] + given.data[end:]


def range_repeated(given: Given, random: Random) -> bytes:
    start, end = stretch(given, random)
    times = random.choice((1, 1, 2, 8))
    return given.data[:end] + given.data[start:end] * times + given.data[end:]


def range_removed(given: Given, random: Random) -> bytes:
    start, end = stretch(given, random)
    return given.data[:start] + given.data[end:]


def range_moved(given: Given, random: Random) -> bytes:
    start, end = stretch(given, random)
    to = place(given, random)
    changed = bytearray(given.data)
    part = given.data[start:end]
    changed[to : to + len(part)] = part
    return bytes(changed)


def range_filled(given: Given, random: Random) -> bytes:
    start, end = stretch(given, random)
    filling = bytes([random.choice(NOTABLE)]) * (end - start)
    if random.random() < 0.3:
        filling = random.randbytes(end - start)
    return given.data[:start] + filling + given.data[end:]


def range_inserted(given: Given, random: Random) -> bytes:
    start = place(given, random)
    return given.data[:start] + random.randbytes(1 << random.randrange(8)) + given.data[start:]


CHANGES: dict[str, Change] = {
    "bits flipped": bit_flips,
    "bytes set": bytes_set,
    "words set": words_set,
    "cut short": truncated,
    "spliced": spliced,
    "range repeated": range_repeated,
    "range removed": range_removed,
    "range moved": range_moved,
    "range filled": range_filled,
    "bytes inserted": range_inserted,
}
