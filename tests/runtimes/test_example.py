"""The example of a runtime in another package, installed from its own folder as a user does it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.runtimes import models

EXAMPLE = REPOSITORY / "examples" / "runtime-example"


class Installation:
    """An interpreter with what is installed here, and with the example."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=False)
        self.python = str(folder / "venv" / "bin" / "python")
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        # The example's own packages come first; the agent runs from its folder.
        paths = [sysconfig.get_path("purelib"), str(REPOSITORY)]
        (site / "here.pth").write_text("\n".join(paths))
        source = shutil.copytree(EXAMPLE, folder / "source")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        command = [*pip, "--no-build-isolation", "--target", str(site), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=55)
        assert done.returncode == 0, done.stderr

    def edgeward(self, *arguments: str) -> str:
        command = [self.python, "-m", "agent", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd="/")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    pytest.importorskip("setuptools", reason="setuptools builds the example")
    return Installation(tmp_path_factory.mktemp("example"))


def test_it_is_packed_picked_and_answers(installed: Installation, tmp_path: Path) -> None:
    model = tmp_path / "rectifier.steps"
    model.write_bytes(models.relu_steps())
    pack = tmp_path / "pack"
    installed.edgeward("pack", str(model), "--out", str(pack), "--version", "1")
    manifest = json.loads((pack / "manifest.json").read_bytes())
    (variant,) = manifest["variants"]
    assert variant["format"] == "steps"
    assert variant["needs"]["operators"] == ["relu"]
    request = tmp_path / "request.json"
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [-1, 2, -3, 4]}
    request.write_text(json.dumps({"inputs": [tensor]}))
    answer = json.loads(installed.edgeward("predict", str(pack), "--input", str(request), "--json"))
    assert answer["outputs"][0]["data"] == [0, 2, 0, 4]
    assert answer["parameters"]["runtime"] == "steps"


def test_it_is_detected(installed: Installation) -> None:
    told = json.loads(installed.edgeward("detect", "--json"))
    (facts,) = [one for one in told["device"]["runtimes"] if one["name"] == "steps"]
    assert facts["usable"]
    assert facts["formats"] == ["steps"]


def test_a_damaged_model_of_it_is_refused_in_its_words(
    installed: Installation, tmp_path: Path
) -> None:
    model = tmp_path / "m.steps"
    model.write_bytes(models.steps_bytes({"x": [4]}, {"y": [4]}, ("cube", "y", "x")))
    command = [installed.python, "-m", "agent", "pack", str(model), "--out", str(tmp_path / "p")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd="/")
    assert done.returncode != 0
    assert "does not know the operator cube" in done.stderr
