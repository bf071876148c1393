"""pyproject.toml, the pinned versions and the tree fit together."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from agent import __version__
from tests.repository.commands import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# The daemon's own libraries; whatever else a device needs is an extra.
CORE = {"msgspec", "psutil", "urllib3", "cryptography", "tomli"}


def _constraints() -> Iterator[Requirement]:
    for line in (REPOSITORY / "requirements/constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            yield Requirement(line)


def _asked_for() -> Iterator[Requirement]:
    project = PROJECT["project"]
    for lines in (project["dependencies"], *project["optional-dependencies"].values()):
        yield from map(Requirement, lines)


def _applies(pin: Requirement, python: str) -> bool:
    return pin.marker is None or pin.marker.evaluate({"python_version": python})


def test_every_folder_with_python_in_it_is_checked_for_types() -> None:
    made_by_make = {"build", "dist"}
    folders = {
        path.name
        for path in REPOSITORY.iterdir()
        if not path.name.startswith(".") and path.is_dir() and any(path.rglob("*.py"))
    }
    assert folders - made_by_make == set(PROJECT["tool"]["mypy"]["files"])


def test_whatever_pyproject_asks_for_has_one_exact_version_on_every_python() -> None:
    for asked in _asked_for():
        name = canonicalize_name(asked.name)
        if name == "edgeward":
            continue
        for python in PYTHONS:
            pins = [
                pin
                for pin in _constraints()
                if canonicalize_name(pin.name) == name and _applies(pin, python)
            ]
            assert len(pins) == 1, f"{name} on {python}: run requirements/lock.py"
            version = str(pins[0].specifier).removeprefix("==")
            assert asked.specifier.contains(version), f"{asked} does not allow {version}"


def test_pins_name_no_place_to_download_from() -> None:
    assert "://" not in (REPOSITORY / "requirements/constraints.txt").read_text()


def test_the_bare_installation_is_the_daemon_and_no_more() -> None:
    assert {Requirement(line).name for line in PROJECT["project"]["dependencies"]} == CORE


def test_the_version_is_said_once_and_the_same_twice() -> None:
    assert PROJECT["project"]["version"] == __version__


def test_every_room_is_a_package_that_the_wheel_carries() -> None:
    code = {path.parent for path in (REPOSITORY / "agent").rglob("*.py")}
    missing = [folder for folder in code if not (folder / "__init__.py").is_file()]
    assert not missing, "setuptools leaves folders without __init__.py out of the wheel"


def test_a_pure_room_is_held_to_purity() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    floors, pure = contracts[0]["layers"], contracts[1]["source_modules"]
    below_the_adapters = floors[floors.index("(pipeline) | (insight)") : floors.index("errors")]
    rooms = re.findall(r"\w+", " ".join(below_the_adapters))
    assert {f"agent.{room}.**" for room in rooms} == set(pure)


def test_the_wheel_carries_the_package_the_profiles_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "agent/py.typed" in names
    folders = {name.split("/")[0] for name in names}
    assert folders == {"agent", "device_profiles", f"edgeward-{__version__}.dist-info"}
    profiles = {f"device_profiles/{path.name}" for path in REPOSITORY.glob("device_profiles/*")}
    assert {name for name in names if name.startswith("device_profiles/")} == profiles


def test_the_bundle_is_all_that_a_device_needs(dist: Path) -> None:
    (bundle,) = dist.glob("*-device.tar.gz")
    with tarfile.open(bundle) as archive:
        names = {Path(name).name for name in archive.getnames()}
    needed = {"agent.toml", "constraints.txt", "edgeward.service", "edgeward.sysusers"}
    needed |= {"install.sh", "python.sh", "accelerator.conf", "secrets.conf"}
    assert needed <= names
    assert any(name.endswith(".whl") for name in names)


def test_what_the_source_distribution_lists_is_there() -> None:
    lines = (REPOSITORY / "MANIFEST.in").read_text().splitlines()
    listed = [Path(word) for line in lines for word in line.split()[1:] if "*" not in word]
    missing = [path for path in listed if not (REPOSITORY / path).exists()]
    assert set(missing) <= {Path("examples"), Path("__pycache__")}
