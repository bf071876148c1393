"""What a simulated power cut leaves open is closed: the kernel would have done it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest


def _open_below(folder: Path) -> set[int]:
    found: set[int] = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if entry.readlink().is_relative_to(folder):
                found.add(int(entry.name))
    return found


@pytest.fixture(autouse=True)
def _no_descriptor_outlives_its_test(tmp_path: Path) -> Iterator[None]:
    yield
    for descriptor in _open_below(tmp_path.parent):
        os.close(descriptor)
