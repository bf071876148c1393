"""How a runtime is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import RuntimeUnavailable
from agent.runtimes import registry


def in_fresh_python(code: str, *paths: Path) -> str:
    """Run code where the given folders come first on the import path; return what it prints."""
    program = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n{code}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def declare(folder: Path, name: str, module: str) -> None:
    """Install a package that declares a runtime, as pip would leave it."""
    info = folder / f"{name}_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[edgeward.runtimes]\n{name} = {name}_rt:Runtime\n")
    (folder / f"{name}_rt.py").write_text(module)


def test_the_built_in_runtimes_have_names() -> None:
    assert {"onnx", "reference", "tflite"} <= set(registry.names())


def test_only_the_one_asked_for_is_imported() -> None:
    code = """
from agent.runtimes import registry
registry.names()
registry.find("tflite")
print("onnxruntime" in sys.modules, "ai_edge_litert" in sys.modules)
"""
    assert in_fresh_python(code) == "False True"


def test_a_runtime_of_another_package_joins_by_an_entry_point(tmp_path: Path) -> None:
    declare(
        tmp_path,
        "mine",
        "class Runtime:\n    name, version, formats = 'mine', '3', ()\n"
        "    def probe(self): return None\n",
    )
    code = """
from agent.runtimes import registry
print("mine" in registry.names(), registry.find("mine").version)
"""
    assert in_fresh_python(code, tmp_path) == "True 3"


def test_what_a_machine_lacks_is_told(tmp_path: Path) -> None:
    declare(
        tmp_path,
        "npu",
        "class Runtime:\n    name = 'npu'\n    def probe(self): return 'there is no /dev/npu0'\n",
    )
    code = """
from agent.errors import RuntimeUnavailable
from agent.runtimes import registry
try:
    registry.find("npu")
except RuntimeUnavailable as error:
    print(error)
"""
    assert in_fresh_python(code, tmp_path).endswith("cannot work here: there is no /dev/npu0")


def test_a_missing_library_names_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libfoo: not found')")
    code = """
from agent.errors import RuntimeUnavailable
from agent.runtimes import registry
try:
    registry.find("onnx")
except RuntimeUnavailable as error:
    print(error)
"""
    told = in_fresh_python(code, tmp_path)
    assert "libfoo: not found" in told
    assert "pip install 'edgeward[onnx]'" in told


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        RuntimeUnavailable, match=r"no runtime called 'tensorrt'.*onnx, openvino, reference, tflite"
    ):
        registry.find("tensorrt")
