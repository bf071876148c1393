"""The Makefile lists itself, and prepares an environment once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.repository.commands import REPOSITORY

# A build backend of a few lines, so that no package index is needed: `agent` installs as it lies.
_BACKEND = """
import zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name, info = "edgeward-0-py3-none-any.whl", "edgeward-0.dist-info"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: edgeward\\nVersion: 0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
_PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def _run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL"}}
    return subprocess.run(
        command,
        cwd=folder,
        env={**inherited, "PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        timeout=55,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with our scripts, and with nothing to download."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copytree(REPOSITORY / "requirements", folder / "requirements")
    (folder / "requirements/constraints.txt").write_text("")
    (folder / "pyproject.toml").write_text(_PROJECT)
    (folder / "backend.py").write_text(textwrap.dedent(_BACKEND))
    return folder


def test_make_alone_lists_every_target() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    done = _run(REPOSITORY, "make")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^  make (\S+)", done.stdout, re.MULTILINE) == phony[1].split()


def test_an_environment_is_prepared_once_and_again_after_a_change(project: Path) -> None:
    prepare = ("sh", "requirements/prepare.sh", "dev")
    first = _run(project, *prepare)
    assert first.returncode == 0, first.stderr
    assert "Making .venv" in first.stdout

    assert _run(project, *prepare).stdout == ""

    (project / "requirements/constraints.txt").write_text("# moved on\n")
    changed = _run(project, *prepare)
    assert "Installing edgeward[dev]" in changed.stdout
    assert "Making .venv" not in changed.stdout

    moved = project.rename(project.with_name("moved"))
    (moved / ".venv/bin/python").unlink()
    broken = _run(moved, *prepare)
    assert broken.returncode == 0, broken.stderr
    assert "Making .venv" in broken.stdout


def test_a_python_that_is_too_old_is_named(project: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = _run(project, "sh", "requirements/prepare.sh", "dev", PYTHON=str(old))
    assert done.returncode == 1
    assert f"PYTHON={old} is not a Python 3.10 or newer" in done.stderr


def test_a_python_without_venv_is_answered_with_what_to_type(project: Path, tmp_path: Path) -> None:
    # A path with this interpreter's other half and no apt-get: what Debian gives a plain user.
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "cat", "cksum", "dirname", "id"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    python = programs / "python3"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    done = _run(
        project, "sh", "requirements/prepare.sh", "dev", PYTHON=str(python), PATH=str(programs)
    )
    assert done.returncode == 1
    minor = sys.version_info.minor
    assert f"type: sudo apt-get install python3.{minor}-venv" in done.stderr
    assert not (project / ".venv").exists()
