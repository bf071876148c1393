"""A wheel of a few lines, in the program's place where only its installation is looked at."""

from __future__ import annotations

import zipfile
from pathlib import Path

_PROGRAM = """\
import sys

def main():
    print("edgeward stand-in {version}")
    return {status}
"""


def wheel(folder: Path, version: str, *, checks: bool = True) -> Path:
    """Write an installable wheel called edgeward that needs nothing.

    Args:
        folder: Where to put it.
        version: Its version.
        checks: Whether `edgeward run --check` is content.
    """
    info = f"edgeward-{version}.dist-info"
    files = {
        "agent/__init__.py": "",
        "agent/__main__.py": _PROGRAM.format(version=version, status=0 if checks else 1),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: edgeward\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nedgeward = agent.__main__:main\n",
    }
    record = "".join(f"{name},,\n" for name in files) + f"{info}/RECORD,,\n"
    path = folder / f"edgeward-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return path
