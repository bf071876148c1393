"""Versions as release numbers: enough to say which of two is newer, whatever stands behind them."""

from __future__ import annotations

import re

_RELEASE = re.compile(r"\d+(?:\.\d+)*")


def release(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with: (6, 12, 34) of `6.12.34+rpt-rpi-2712`.

    Zeros at the end are left off, so that 2.14 and 2.14.0 are the same; what holds no number is ().
    """
    found = _RELEASE.search(version)
    numbers = [int(part[:9]) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def at_least(version: str, oldest: str) -> bool:
    """Whether a version is this one or a newer one; of one that is not known, it is not."""
    known = release(version)
    return bool(known) and known >= release(oldest)


def older(version: str, than: str) -> bool:
    """Whether a version is older than another; of one that is not known, it is not."""
    known = release(version)
    return bool(known) and known < release(than)
