"""Changes of a flatbuffer's offsets, lengths and numbers, each in its place."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from tests.campaign.flat import Site, Sites

# For scalars by their width in `struct`; those that do not fit are cut to it.
WILD = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 127, 128, 255, 65536, 2**31 - 1, 2**31, 2**62)
FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 1e-45, 3.4e38, 1e-8)
_WIDTH = {"b": 8, "B": 8, "h": 16, "H": 16, "i": 32, "I": 32, "q": 64, "Q": 64}

Change = Callable[[bytes, Sites, Random], "bytes | None"]


def put(data: bytes, site: Site, value: float) -> bytes:
    """Return the data with one value replaced."""
    changed = bytearray(data)
    if site.form == "f":
        struct.pack_into("<f", changed, site.position, value)
        return bytes(changed)
    bits = _WIDTH[site.form]
    raw = (int(value) & ((1 << bits) - 1)).to_bytes(bits // 8, "little")
    changed[site.position : site.position + len(raw)] = raw
    return bytes(changed)


def get(data: bytes, site: Site) -> int:
    return int(struct.unpack_from("<" + site.form, data, site.position)[0])


def _wild(data: bytes, site: Site, random: Random, near: int) -> bytes:
    """Replace a value by a neighbour, by a plausible or by an extreme one."""
    if site.form == "f":
        return put(data, site, random.choice((*FLOATS, random.uniform(-2, 2))))
    value = random.choice((get(data, site) + random.choice((-1, 1)), random.randrange(near)))
    return put(data, site, random.choice((value, random.choice(WILD))))


def numbers(*labels: str, near: int = 8) -> Change:
    def change(data: bytes, sites: Sites, random: Random) -> bytes | None:
        found = [site for label in labels for site in sites.numbers.get(label, ())]
        if not found:
            return None
        for _ in range(random.choice((1, 1, 2, 4))):
            data = _wild(data, random.choice(found), random, near)
        return data

    return change


def offset(data: bytes, sites: Sites, random: Random) -> bytes | None:
    """An offset leads elsewhere: to another target, a little off, or out of the file."""
    site, other = random.choice(sites.offsets), random.choice(sites.offsets)
    target = other.position + get(data, other) - site.position
    near = get(data, site) + random.choice((-8, -4, -1, 1, 4, 8))
    value = random.choice((target, target, near, random.randrange(len(data)), *WILD))
    return put(data, site, value)


def vtable(data: bytes, sites: Sites, random: Random) -> bytes | None:
    return _wild(data, random.choice(sites.vtables), random, 64)


def length(data: bytes, sites: Sites, random: Random) -> bytes | None:
    """A vector or a string says that it is shorter or longer."""
    label = random.choice(sorted(sites.lengths))
    return _wild(data, random.choice(sites.lengths[label]), random, 4096)


def weights(data: bytes, sites: Sites, random: Random) -> bytes | None:
    blobs = [blob for blob in sites.blobs if blob[1] >= 4]
    if not blobs:
        return None
    changed = bytearray(data)
    for _ in range(random.choice((1, 4, 64))):
        start, size = random.choice(blobs)
        position = start + random.randrange(size // 4) * 4
        struct.pack_into("<f", changed, position, random.choice(FLOATS))
    return bytes(changed)


CHANGES: dict[str, Change] = {
    "offset": offset,
    "vtable": vtable,
    "length": length,
    "weights": weights,
}
