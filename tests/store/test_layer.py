"""No code of the store changes the disk but through the layer that tests can interrupt."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

STORE = Path(__file__).parents[2] / "agent" / "store"
LAYER = "files.py"

OS_ALLOWED = {"getpid", "urandom", "fspath"}
PATH_CHANGES = {
    "chmod",
    "hardlink_to",
    "lchmod",
    "mkdir",
    "open",
    "rename",
    "replace",
    "rmdir",
    "symlink_to",
    "touch",
    "unlink",
    "write_bytes",
    "write_text",
}
MODULES_FORBIDDEN = {"fcntl", "mmap", "pathlib.os", "shutil", "sqlite3", "subprocess", "tempfile"}
LAYER_NAMES = {"files", "_files"}


def violations(source: str) -> list[str]:
    """Calls that reach the disk without the layer, with their line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [f"{node.lineno}: {n.name}" for n in names if n.name in MODULES_FORBIDDEN]
            case ast.ImportFrom(module=module) if module in MODULES_FORBIDDEN or module == "os":
                found.append(f"{node.lineno}: from {module}")
            case ast.Call(func=ast.Name(id="open")):
                found.append(f"{node.lineno}: open")
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name not in OS_ALLOWED:
                found.append(f"{node.lineno}: os.{name}")
            case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in PATH_CHANGES:
                if not _is_layer(value):
                    found.append(f"{node.lineno}: .{name}")
    return found


def _is_layer(value: ast.expr) -> bool:
    name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
    return name in LAYER_NAMES


@pytest.mark.parametrize(
    "path", sorted(p for p in STORE.glob("*.py") if p.name != LAYER), ids=lambda path: path.name
)
def test_the_store_changes_the_disk_only_through_the_layer(path: Path) -> None:
    assert violations(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "open('x', 'w')",
        "import os\nos.unlink('x')",
        "from os import unlink",
        "import shutil",
        "path.write_bytes(b'')",
        "self._path.rename(other)",
    ],
)
def test_the_check_itself_sees_a_bypass(source: str) -> None:
    assert violations(source)
