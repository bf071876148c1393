"""Write constraints.txt: the exact version of everything that `make` installs, per Python.

    python requirements/lock.py python3.10 python3.11 python3.12 python3.13

Each interpreter named on the command line, oldest first, is asked what the newest versions within
the ranges of pyproject.toml are for it. A package that gets the same version everywhere has one
line; one that does not has a line for each range of Pythons. Only the standard library is needed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
EXTRAS = "dev,pack"
HEADER = """\
# Written by requirements/lock.py; do not edit. Exact versions of everything that `make` and the
# checks install; what an installation may use are the ranges in pyproject.toml.
"""


def resolve(interpreter: str) -> tuple[str, dict[str, str]]:
    """Ask pip under one interpreter for the newest versions that fit together.

    Returns:
        The interpreter's version as `3.10`, and a version for each package name.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        subprocess.run([interpreter, "-m", "venv", f"{folder}/venv"], check=True)
        python = f"{folder}/venv/bin/python"
        # Older pips cannot write the report.
        subprocess.run([python, "-m", "pip", "install", "-q", "--upgrade", "pip"], check=True)
        ask = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        ask += ["--report", str(report), f"{REPOSITORY}[{EXTRAS}]"]
        subprocess.run(ask, check=True)
        answer = json.loads(report.read_text())
    packages = (item["metadata"] for item in answer["install"])
    versions = {p["name"].lower().replace("_", "-"): p["version"] for p in packages}
    versions.pop("edgeward")
    return answer["environment"]["python_version"], versions


def lines(by_python: Mapping[str, Mapping[str, str]]) -> list[str]:
    """One line for each package and version; a marker only where the Pythons differ."""
    written = []
    for name in sorted({name for versions in by_python.values() for name in versions}):
        pythons: dict[str, list[str]] = {}
        for python, versions in by_python.items():
            if name in versions:
                pythons.setdefault(versions[name], []).append(python)
        if len(pythons) == 1:
            written.append(f"{name}=={next(iter(pythons))}")
            continue
        for version, used_by in pythons.items():
            written.append(f"{name}=={version} ; {marker(used_by, list(by_python))}")
    return written


def marker(used_by: list[str], pythons: list[str]) -> str:
    """The range of Pythons, open below the oldest and above the newest that were asked.

    Args:
        used_by: The Pythons that use this version, a run of `pythons`.
        pythons: All that were asked, oldest first.
    """
    first, last = pythons.index(used_by[0]), pythons.index(used_by[-1])
    bounds = [f'python_version >= "{used_by[0]}"'] if first > 0 else []
    if last + 1 < len(pythons):
        bounds.append(f'python_version < "{pythons[last + 1]}"')
    return " and ".join(bounds)


def main(interpreters: list[str]) -> int:
    if not interpreters:
        print(__doc__, file=sys.stderr)
        return 2
    by_python = {}
    for interpreter in interpreters:
        python, by_python[python] = resolve(interpreter)
        print(f"Python {python}: {len(by_python[python])} packages")
    constraints = HERE / "constraints.txt"
    constraints.write_text(HEADER + "\n".join(lines(by_python)) + "\n")
    print(f"wrote {constraints.relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
