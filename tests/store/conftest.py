"""What a simulated power cut leaves open is closed: the kernel would have done it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def _open_below(folder: Path) -> set[int]:
    found: set[int] = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(str(folder)):
                found.add(int(name))
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def _no_descriptor_outlives_its_test(tmp_path: Path) -> Iterator[None]:
    yield
    for descriptor in _open_below(tmp_path.parent):
        os.close(descriptor)
