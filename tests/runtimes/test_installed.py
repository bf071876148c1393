"""Libraries that are badly installed: one sentence each, and what to do."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import RuntimeUnavailable
from agent.runtimes import installed
from tests.runtimes.test_registry import in_fresh_python

WHY_NOT = """
from agent.errors import RuntimeUnavailable
from agent.runtimes import registry
try:
    registry.find({name!r})
except RuntimeUnavailable as error:
    print(error.message)
    print(error.hint)
else:
    print("it works")
"""
# What a library that is not there does, whatever is installed beside it.
ABSENT = "import sys\nsys.modules[{name!r}] = None\n"


def why_not(name: str, *folders: Path, absent: tuple[str, ...] = ()) -> tuple[str, str]:
    """Return message and hint of the refusal of a runtime."""
    program = "".join(ABSENT.format(name=one) for one in absent) + WHY_NOT.format(name=name)
    message, _, hint = in_fresh_python(program, *folders).partition("\n")
    return message, hint


def stand_in(folder: Path, package: str, code: str, **modules: str) -> None:
    """Make a package that looks like an inference library up to a point."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(code)
    for name, content in modules.items():
        (folder / package / f"{name}.py").write_text(content)


def distribution(folder: Path, name: str, version: str, *files: str) -> None:
    """Leave what pip leaves of an installed distribution."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "RECORD").write_text("".join(f"{file},sha256=x,1\n" for file in files))


def test_a_library_that_is_absent_is_to_be_installed() -> None:
    message, hint = why_not("onnx", absent=("onnxruntime",))
    assert message.startswith("the runtime onnx cannot be imported: ModuleNotFoundError")
    assert hint == "pip install 'edgeward[onnx]' installs it"


def test_where_both_libraries_are_absent_the_newer_is_named() -> None:
    message, hint = why_not("tflite", absent=("ai_edge_litert", "tflite_runtime"))
    assert "ai_edge_litert" in message
    assert hint == "pip install 'edgeward[tflite]' installs it"


def test_a_library_that_is_too_old_is_to_be_updated(tmp_path: Path) -> None:
    stand_in(tmp_path, "onnxruntime", "__version__ = '1.8.1'\n")
    assert why_not("onnx", tmp_path) == (
        "onnxruntime 1.8.1 is too old: 1.17 is the oldest that is supported",
        "pip install --upgrade 'onnxruntime>=1.17'",
    )


@pytest.mark.parametrize(
    ("failure", "cure"),
    [
        ("numpy.core.multiarray failed to import", "pip install 'numpy<2'"),
        ("libgomp.so.1: cannot open shared object file: No such file", "libgomp1"),
        ("libcudnn.so.9: cannot open shared object file: No such file", "with libcudnn.so.9"),
        ("/lib/libc.so.6: version `GLIBC_2.34' not found", "older version of the library"),
        ("libgomp-d22c.so.1: cannot allocate memory in static TLS block", "LD_PRELOAD"),
        ("/x/onnx.so: wrong ELF class: ELFCLASS64", "the one for this system"),
    ],
)
def test_what_an_import_dies_of_is_told_with_its_cure(
    tmp_path: Path, failure: str, cure: str
) -> None:
    stand_in(tmp_path, "onnxruntime", f"raise ImportError({failure!r})\n")
    message, hint = why_not("onnx", tmp_path)
    assert message == f"the runtime onnx cannot be imported: ImportError: {failure}"
    assert cure in hint


def test_a_package_that_lost_its_files_to_another_is_to_be_reinstalled(tmp_path: Path) -> None:
    stand_in(tmp_path, "onnxruntime", "")
    message, hint = why_not("onnx", tmp_path)
    assert "has no attribute '__version__'" in message
    assert "--force-reinstall" in hint


def test_two_flavours_over_each_other_are_told(tmp_path: Path) -> None:
    stand_in(tmp_path, "onnxruntime", "__version__ = '1.23.2'\n")
    distribution(tmp_path, "onnxruntime", "1.23.2", "onnxruntime/__init__.py")
    distribution(tmp_path, "onnxruntime_gpu", "1.23.2", "onnxruntime/__init__.py")
    message, hint = why_not("onnx", tmp_path)
    assert message.startswith("onnxruntime and onnxruntime-gpu are installed over each other")
    assert hint.startswith("pip uninstall -y onnxruntime onnxruntime-gpu, then install")


def test_wheels_for_numpy_1_are_refused_before_any_model(tmp_path: Path) -> None:
    stand_in(
        tmp_path,
        "tflite_runtime",
        "__version__ = '2.14.0'\n",
        interpreter="Interpreter = OpResolverType = load_delegate = None\n",
    )
    message, hint = why_not("tflite", tmp_path, absent=("ai_edge_litert",))
    assert message.startswith("tflite-runtime 2.14.0 was built for NumPy 1 and fails with NumPy 2")
    assert hint.startswith("pip install 'numpy<2'")


def test_an_instruction_that_the_processor_lacks_ends_the_child_alone(tmp_path: Path) -> None:
    stand_in(tmp_path, "onnxruntime", "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    program = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\n" + WHY_NOT.format(name="onnx")
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, timeout=50)
    # `TemplateProcess.failure` makes a sentence of that.
    assert done.returncode == -signal.SIGILL


def test_the_distribution_of_a_package_is_found_by_its_files(tmp_path: Path) -> None:
    stand_in(tmp_path, "onnxruntime", "")
    module = str(tmp_path / "onnxruntime" / "__init__.py")
    assert installed.distributions(module) == ()
    distribution(tmp_path, "onnxruntime_openvino", "1.24.1", "onnxruntime/__init__.py")
    # Both begin alike and own nothing of it.
    distribution(tmp_path, "onnxruntime_extensions", "0.14", "onnxruntime_extensions/__init__.py")
    distribution(tmp_path, "onnxruntime_qnn", "2.7.0", "onnxruntime_qnn/__init__.py")
    assert installed.distributions(module) == ("onnxruntime-openvino",)


def test_one_of_the_system_s_package_manager_has_no_list_of_files(tmp_path: Path) -> None:
    stand_in(tmp_path, "onnxruntime", "")
    (tmp_path / "onnxruntime-1.21.0.egg-info").write_text("Name: onnxruntime\n")
    module = str(tmp_path / "onnxruntime" / "__init__.py")
    assert installed.distributions(module) == ("onnxruntime",)


@pytest.mark.parametrize(
    ("version", "least", "is_enough"),
    [("1.17.0", "1.17", True), ("1.9.0", "1.17", False), ("2.0rc1", "1.17", True)],
)
def test_versions_are_compared_by_their_numbers(version: str, least: str, is_enough: bool) -> None:
    if is_enough:
        installed.require_version("onnxruntime", version, least)
        return
    with pytest.raises(RuntimeUnavailable, match="too old"):
        installed.require_version("onnxruntime", version, least)
