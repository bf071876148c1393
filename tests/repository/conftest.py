"""What the tests of packaging and installation share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository.commands import REPOSITORY

_NO_INDEX = "No matching distribution found"


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make build` makes: source distribution, the wheel built from it, the device bundle."""
    folder = tmp_path_factory.mktemp("dist")
    commands = (
        (sys.executable, "-m", "build", "--outdir", str(folder), str(REPOSITORY)),
        ("sh", str(REPOSITORY / "systemd/bundle.sh"), str(folder)),
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if _NO_INDEX in done.stdout + done.stderr:
            pytest.skip("no package index is reached, and building needs setuptools from one")
        assert done.returncode == 0, done.stdout + done.stderr
    return folder
