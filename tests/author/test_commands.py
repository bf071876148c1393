"""`edgeward pack`, `inspect` and `predict` as a person types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.author import inspect as words
from agent.author.pack import Packed, pack
from agent.author.spec import Spec, TensorSpec
from agent.documents.manifest import Card, Pipeline, Tensor, Window
from tests.author.models import model

pytest.importorskip("onnxruntime")
pytest.importorskip("rich")

REQUEST = {
    "id": "r-1",
    "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [-1, 2, 3, 4]}],
}


def edgeward(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("pump")
    spec = Spec(
        labels=("still", "worn"),
        card=Card(licence="Apache-2.0", intended_use="Pumps of one kind"),
        pipeline=Pipeline(post=({"step": "threshold", "threshold": 2.5},)),
    )
    return pack(model(folder / "pump.onnx"), folder / "pack", spec=spec)


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(REQUEST))
    return file


def test_pack_shows_what_it_made_and_ends_with_the_id(tmp_path: Path) -> None:
    done = edgeward("pack", model(tmp_path / "m.onnx"), "--out", tmp_path / "pack", "--name", "a")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 passed" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("sha256:")


def test_pack_tells_programs_the_same(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text('version = "1.4.0"\ntask = "regression"\n')
    done = edgeward(
        *("pack", model(tmp_path / "m.onnx"), "--out", tmp_path / "pack", "--json"),
        *("--spec", tmp_path / "model.toml"),
    )
    told = json.loads(done.stdout)
    assert (told["name"], told["version"], told["selftest"]) == ("m", "1.4.0", 3)
    assert told["pack"].startswith("sha256:")
    (variant,) = told["variants"]
    assert variant["variant"] == "onnx-fp32"
    assert variant["probed"]["ready"]["placement"]["got"] == "CPUExecutionProvider"


def test_a_refusal_is_one_sentence_and_an_exit_code(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"PK\x03\x04 not a model")
    done = edgeward("pack", tmp_path / "m.onnx", "--out", tmp_path / "pack")
    assert done.returncode == 7
    assert done.stdout == ""
    assert done.stderr.startswith("edgeward: m.onnx: the file is a ZIP archive")
    assert len(done.stderr.splitlines()) == 1


def test_inspect_shows_a_pack(packed: Packed) -> None:
    done = edgeward("inspect", packed.directory)
    assert (done.returncode, done.stderr) == (0, "")
    for text in (
        packed.pack,
        "v2_json → model → threshold(threshold=2.5) → v2_json",
        "onnx-fp32",
        "opset ai.onnx 17",
        "licence: Apache-2.0",
        "intended use: Pumps of one kind",
        "labels: still, worn",
        "self-test: 3 cases",
    ):
        assert text in done.stdout


def test_inspect_names_an_altered_file(packed: Packed, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in packed.directory.rglob("*.*"):
        (copy / path.relative_to(packed.directory)).parent.mkdir(exist_ok=True)
        (copy / path.relative_to(packed.directory)).write_bytes(path.read_bytes())
    with (copy / "pump.onnx").open("ab") as file:
        file.write(b"!")
    done = edgeward("inspect", copy, "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 7
    assert told["whole"] is False
    assert "pump.onnx" in told["wrong"][0]
    assert "pump.onnx" in done.stderr


def test_predict_gives_programs_the_answer_itself(packed: Packed, request_file: Path) -> None:
    done = edgeward("predict", packed.directory, "--input", request_file, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["id"] == "r-1"
    assert answer["outputs"][0]["data"] == [0, 2, 3, 4]
    assert answer["parameters"]["pack"] == packed.pack


def test_predict_shows_people_a_table(packed: Packed, request_file: Path) -> None:
    done = edgeward("predict", packed.directory, "--input", request_file)
    assert done.returncode == 0
    assert "0 2 3 4" in done.stdout
    assert "CPUExecutionProvider" in done.stdout


def test_predict_takes_settings_as_a_slot_does(packed: Packed) -> None:
    def above(*options: str) -> list[bool]:
        done = edgeward(
            *("predict", packed.directory, "--input", "-", "--json", *options),
            stdin=json.dumps(REQUEST),
        )
        found: list[bool] = json.loads(done.stdout)["outputs"][-1]["data"]
        return found

    assert above() == [False, False, True, True]
    assert above("--setting", "threshold=3.5") == [False, False, False, True]


def test_predict_names_the_codec_that_a_payload_was_not_written_for(packed: Packed) -> None:
    done = edgeward("predict", packed.directory, "--input", "-", stdin="1,2,3")
    assert done.returncode == 1
    assert "the pack decodes v2_json; docs/packs.md" in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--setting", "treshold=1"), 2, "settings.treshold"),
        (("--setting", "threshold"), 2, "expected name=value"),
        (("--variant", "gpu"), 2, "no variant 'gpu'"),
        ((), 1, "expected FP32"),
    ],
)
def test_predict_says_what_is_wrong(
    packed: Packed, tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    bad: dict[str, Any] = {"inputs": [{**REQUEST["inputs"][0], "datatype": "FP64"}]}  # type: ignore[dict-item]
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    done = edgeward("predict", packed.directory, "--input", tmp_path / "bad.json", *options)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_predict_asks_for_the_messages_that_a_window_wants(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", inputs={"x": (1, [2, 4])}, outputs={"y": (1, [2, 4])})
    spec = Spec(
        pipeline=Pipeline(window=Window("tumbling", size=2)), inputs=(TensorSpec("x", shape=(4,)),)
    )
    made = pack(file, tmp_path / "pack", spec=spec)
    one = tmp_path / "one.json"
    one.write_text(
        json.dumps({"inputs": [{"name": "x", "shape": [4], "datatype": "FP32", "data": [1] * 4}]})
    )
    done = edgeward("predict", made.directory, "--input", one)
    assert done.returncode == 2
    assert "the window is still open" in done.stderr
    done = edgeward("predict", made.directory, "--input", one, "--input", one, "--json")
    assert json.loads(done.stdout)["outputs"][0]["data"] == [1] * 8


def test_tensors_are_shown_with_what_their_numbers_mean() -> None:
    tensor = Tensor("x", "INT8", (-1, 3), unit="g", scale=0.5, zero_point=-3, low=0)
    assert words.tensor_line(tensor) == "INT8 [?,3] g (real = (q - -3) * 0.5, 0 to any)"
    assert words.size_line(525_598) == "525.6 kB"
