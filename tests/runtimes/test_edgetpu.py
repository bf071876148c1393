"""The Edge TPU's runtime against a double of its library, with whichever interpreter is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent.errors import AcceleratorFailed, BadInput, ModelRejected, RuntimeUnavailable
from agent.runtimes import edgetpu_library
from agent.runtimes.api import Wanted
from agent.runtimes.edgetpu import EdgeTpuRuntime, EdgeTpuSession
from tests.delegate import double as doubles
from tests.delegate import models
from tests.delegate.double import Double

ROW = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
TPU = Wanted("edgetpu")
# Loads and runs MODEL, in a process that may die of it.
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from agent.runtimes.api import Wanted
from agent.runtimes.edgetpu import EdgeTpuRuntime
session = EdgeTpuRuntime().load(Path(sys.argv[1]), Wanted("edgetpu"))
print(session.run({"x": np.ones((1, 4), np.float32)})["y"].tolist(), flush=True)
"""


@pytest.fixture
def double(loaded_double: Double) -> Double:
    loaded_double.plug()
    return loaded_double


@pytest.fixture
def runtime(double: Double) -> EdgeTpuRuntime:
    return EdgeTpuRuntime()


def load(
    runtime: EdgeTpuRuntime, folder: Path, data: bytes | None = None, wanted: Wanted = TPU
) -> EdgeTpuSession:
    path = folder / "model.tflite"
    path.write_bytes(models.compiled() if data is None else data)
    return runtime.load(path, wanted)


def test_a_compiled_model_runs_on_the_device(
    runtime: EdgeTpuRuntime, double: Double, tmp_path: Path
) -> None:
    before = double.get("invoked")
    session = load(runtime, tmp_path)
    np.testing.assert_array_equal(session.run({"x": ROW})["y"], ROW)
    assert double.get("invoked") == before + 1
    placement = session.placement
    assert (placement.wanted, placement.got) == ("edgetpu", "edgetpu")
    assert (placement.operators, placement.time, placement.why) == (1.0, 1.0, "")
    session.close()


def test_operators_that_stay_on_the_cpu_are_counted_and_named(
    runtime: EdgeTpuRuntime, tmp_path: Path
) -> None:
    session = load(runtime, tmp_path, models.compiled(relu_after=True))
    assert (session.placement.operators, session.placement.time) == (0.5, None)
    assert session.placement.why == "1 of 2 operators run on the CPU: 1 RELU"
    session.close()


def test_its_facts_name_the_pair_of_interpreter_and_library(runtime: EdgeTpuRuntime) -> None:
    facts = runtime.facts()
    assert facts.providers == ("edgetpu",)
    assert facts.driver == "BuildLabel(double), RuntimeVersion(14)"
    interpreter, _, library = facts.version.partition("+libedgetpu.")
    assert interpreter[0].isdigit()
    assert len(library) == 8


def test_no_package_called_pycoral_is_imported(runtime: EdgeTpuRuntime, tmp_path: Path) -> None:
    load(runtime, tmp_path).close()
    assert not [name for name in sys.modules if name.split(".")[0] == "pycoral"]


def test_a_model_that_was_not_compiled_is_refused_since_it_would_run_on_the_cpu(
    runtime: EdgeTpuRuntime, double: Double, tmp_path: Path
) -> None:
    before = double.get("created")
    with pytest.raises(ModelRejected, match="was not compiled for the Edge TPU"):
        load(runtime, tmp_path, models.plain())
    assert double.get("created") == before


def test_a_refusal_without_a_word_gets_one(
    runtime: EdgeTpuRuntime, double: Double, tmp_path: Path
) -> None:
    double.set("silent null")
    with pytest.raises(AcceleratorFailed) as caught:
        load(runtime, tmp_path)
    assert caught.value.message.startswith("the Edge TPU cannot be opened: ")
    assert len(caught.value.message) > len("the Edge TPU cannot be opened: ")
    assert "\n" not in caught.value.message


def test_a_refusal_with_words_keeps_them(
    runtime: EdgeTpuRuntime, double: Double, tmp_path: Path
) -> None:
    double.set("null with message")
    with pytest.raises(AcceleratorFailed, match=r"cannot be opened: double: no such device \("):
        load(runtime, tmp_path)


def test_the_device_is_free_again_after_a_refusal(
    runtime: EdgeTpuRuntime, double: Double, tmp_path: Path
) -> None:
    double.set("silent null")
    for _ in range(3):
        with pytest.raises(AcceleratorFailed):
            load(runtime, tmp_path)
    double.plug()
    load(runtime, tmp_path).close()


def test_one_that_is_unplugged_fails_the_run_and_is_no_fault_of_the_message(
    runtime: EdgeTpuRuntime, double: Double, tmp_path: Path
) -> None:
    session = load(runtime, tmp_path)
    double.set(fail_after=2)
    session.run({"x": ROW})
    session.run({"x": ROW})
    with pytest.raises(AcceleratorFailed, match=r"failed: .*double: the device is lost \("):
        session.run({"x": ROW})
    with pytest.raises(BadInput):
        session.run({"x": ROW[:, :3].copy()})
    double.unplug()
    with pytest.raises(AcceleratorFailed):
        load(runtime, tmp_path)
    double.plug()
    session.run({"x": ROW})
    session.close()


@pytest.mark.parametrize("value", ["", ":0", ":12", "usb", "usb:1", "pci", "pci:0"])
def test_a_device_can_be_named(runtime: EdgeTpuRuntime, tmp_path: Path, value: str) -> None:
    load(runtime, tmp_path, wanted=Wanted("edgetpu", options={"device": value})).close()


@pytest.mark.parametrize(
    "options",
    [
        {"device": "/dev/apex_0"},
        {"device": "usb:"},
        {"device": "gpu"},
        {"Performance": "Turbo"},
        {"library": "/tmp/x.so"},
        {"Usb.MaxBulkInQueueLength": "-1"},
    ],
)
def test_no_other_option_gets_to_the_library(
    runtime: EdgeTpuRuntime, double: Double, tmp_path: Path, options: dict[str, str]
) -> None:
    before = double.get("created")
    with pytest.raises(RuntimeUnavailable):
        load(runtime, tmp_path, wanted=Wanted("edgetpu", options=options))
    assert double.get("created") == before


def test_another_provider_is_refused(runtime: EdgeTpuRuntime, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="no provider 'CPU'"):
        load(runtime, tmp_path, wanted=Wanted("CPU"))


def run_apart(double: Double, folder: Path) -> subprocess.Popen[str]:
    path = folder / "apart.tflite"
    path.write_bytes(models.compiled())
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)],
        env={**os.environ, "LD_LIBRARY_PATH": str(double.folder)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_only_one_process_holds_it_and_the_other_is_told_who(
    runtime: EdgeTpuRuntime, double: Double, tmp_path: Path
) -> None:
    # As a USB stick is: a second process would break the first one's.
    double.set(fragile=1)
    first, second = load(runtime, tmp_path), load(runtime, tmp_path)
    first.close()
    words = run_apart(double, tmp_path).communicate(timeout=30)[1]
    assert f"the Edge TPU is held by another process ({os.getpid()})" in words
    np.testing.assert_array_equal(second.run({"x": ROW})["y"], ROW)
    second.close()
    other = run_apart(double, tmp_path)
    assert other.communicate(timeout=30)[0] == "[[1.0, 1.0, 1.0, 1.0]]\n"
    double.set(fragile=0)


@pytest.mark.parametrize("mode", ["invoke crashes", "create crashes"])
def test_a_library_that_crashes_takes_only_its_process(
    double: Double, tmp_path: Path, mode: doubles.Mode
) -> None:
    double.set(mode)
    apart = run_apart(double, tmp_path)
    apart.communicate(timeout=30)
    assert apart.returncode == -11


def test_a_machine_without_the_library_is_told_what_to_install(tmp_path: Path) -> None:
    words = subprocess.run(
        [sys.executable, "-c", "from agent.runtimes.edgetpu import *; EdgeTpuRuntime()"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=30,
    ).stderr
    if "RuntimeUnavailable" not in words:
        pytest.skip("libedgetpu is on this machine")
    assert "libedgetpu.so.1 is not on this machine (install libedgetpu1-std" in words
    assert "Exception ignored" not in words


def test_what_is_known_of_the_device_is_said(tmp_path: Path) -> None:
    assert edgetpu_library.why_none(tmp_path) == ("none is plugged in, or its driver is not loaded")
    stick = tmp_path / "sys/bus/usb/devices/2-1"
    stick.mkdir(parents=True)
    for name, text in {
        "idVendor": "1a6e",
        "idProduct": "089a",
        "busnum": "2",
        "devnum": "7",
    }.items():
        (stick / name).write_text(f"{text}\n")
    assert "may not use" in edgetpu_library.why_none(tmp_path)
    assert "/dev/bus/usb/002/007" in edgetpu_library.why_none(tmp_path)
    node = tmp_path / "dev/bus/usb/002/007"
    node.parent.mkdir(parents=True)
    node.touch()
    assert "another program holds it" in edgetpu_library.why_none(tmp_path)


# What becomes of a session and of refusals, in one process: COMPILED PLAIN FOLDER.
STORY = """
import ctypes, sys
from pathlib import Path
import numpy as np
from agent.errors import AgentError
from agent.runtimes import tflite
from agent.runtimes.api import Wanted
from agent.runtimes.edgetpu import EdgeTpuRuntime
from tests.delegate.double import Double
compiled, plain, folder = map(Path, sys.argv[1:])
double = Double(folder)
runtime = EdgeTpuRuntime()
def told(act):
    try:
        print(act())
    except AgentError as error:
        print(type(error).__name__, error.message)
def load(path):
    return runtime.load(path, Wanted("edgetpu"))
row = np.array([[1, 2, 3, 4]], np.float32)
print(tflite.DISTRIBUTION)
session = load(compiled)
told(lambda: session.run({"x": row})["y"].tolist())
told(lambda: (session.placement.got, session.placement.operators))
told(lambda: load(plain))
double.set("invoke fails")
told(lambda: session.run({"x": row}))
double.set("silent null")
told(lambda: load(compiled))
double.set("null with message")
told(lambda: load(compiled))
double.plug()
told(lambda: session.run({"x": row})["y"].tolist())
"""
TOLD = [
    "[[1.0, 2.0, 3.0, 4.0]]",
    "('edgetpu', 1.0)",
    "ModelRejected the model was not compiled for the Edge TPU: all of it would run on the CPU",
    "AcceleratorFailed the Edge TPU failed: the model failed while running: "
    "double: the device is lost",
    "AcceleratorFailed the Edge TPU cannot be opened: none is plugged in, or its driver is not "
    "loaded",
    "AcceleratorFailed the Edge TPU cannot be opened: double: no such device",
    "[[1.0, 2.0, 3.0, 4.0]]",
]


@pytest.mark.parametrize("distribution", ["ai-edge-litert", "tflite-runtime"])
def test_both_interpreters_tell_the_same_story(
    double: Double, tmp_path: Path, distribution: str
) -> None:
    python = sys.executable
    if distribution == "tflite-runtime":
        # It wants NumPy 1, so it cannot be in one environment with the other.
        python = os.environ.get("PYTHON_WITH_TFLITE_RUNTIME", "")
        if not python:
            pytest.skip("PYTHON_WITH_TFLITE_RUNTIME names no interpreter that has tflite-runtime")
    compiled, plain = tmp_path / "compiled", tmp_path / "plain"
    compiled.write_bytes(models.compiled())
    plain.write_bytes(models.plain())
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [python, "-c", STORY, str(compiled), str(plain), str(double.folder)],
        env={**os.environ, "LD_LIBRARY_PATH": str(double.folder), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if edgetpu_library.why_none() != "none is plugged in, or its driver is not loaded":
        pytest.skip("there is an Edge TPU on this machine, of which other words are said")
    assert done.stdout.splitlines() == [distribution, *TOLD], done.stderr
