"""model.toml: what it says reaches the pack, and a mistake in it is named by its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.author.spec import Spec, TensorSpec, apply, parse_spec, read_spec
from agent.documents.manifest import Tensor, Window
from agent.errors import DocumentError, UsageError

FOLDER = Path("/models/vibration")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('nam = "x"', "model.toml.nam"),
        ("[pipeline]\nwindow = {kind = 'sliding', siz = 3}", "model.toml.pipeline.window.siz"),
        ("[[inputs]]\nname = 'a'\nlow = 'cold'", "model.toml.inputs[0].low"),
        ("[[inputs]]\nname = 'a'\ndatatype = 'FLOAT'", "model.toml.inputs[0].datatype"),
        ("[[state]]\ninput = 'a'", "model.toml.state[0]"),
        ("[[variants]]\nfile = 'b'\ntolerance = {absolut = 1}", "model.toml.variants[0].tolerance"),
        ("[card]\nlicense = 'MIT'", "model.toml.card.license"),
        ("labels = ['a']\nlabels_file = 'b'", "model.toml.labels_file"),
        ("hidden_state = 'shared'", "model.toml.hidden_state"),
        ("name = ", "model.toml"),
    ],
)
def test_a_mistake_is_named_by_its_place(text: str, path: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_spec(text.encode(), FOLDER)
    assert caught.value.path.startswith(path)


def test_paths_start_from_the_folder_of_the_specification(tmp_path: Path) -> None:
    file = tmp_path / "model.toml"
    file.write_text(
        'labels_file = "labels.txt"\nsamples = ["golden.json"]\n[[variants]]\nfile = "int8.onnx"\n'
    )
    spec = read_spec(file)
    assert spec.labels_file == str(tmp_path / "labels.txt")
    assert spec.samples == (str(tmp_path / "golden.json"),)
    assert spec.variants[0].file == str(tmp_path / "int8.onnx")


def test_everything_may_be_left_out() -> None:
    assert parse_spec(b"", FOLDER) == Spec()


def test_a_window_and_a_range_are_read() -> None:
    spec = parse_spec(
        b"[pipeline]\nwindow = {kind = 'tumbling', size = 8}\n[[inputs]]\nname = 'a'\nhigh = 3\n",
        FOLDER,
    )
    assert spec.pipeline.window == Window("tumbling", size=8)
    assert spec.inputs == (TensorSpec("a", high=3.0),)


def test_a_missing_specification_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.toml"):
        read_spec(tmp_path / "model.toml")


def test_real_numbers_over_a_quantised_tensor_have_no_scale() -> None:
    stored = Tensor("x", "INT8", (1, 4), scale=0.5, zero_point=-3)
    public = apply(TensorSpec("x", datatype="FP32", unit="g"), stored)
    assert public == Tensor("x", "FP32", (1, 4), unit="g")
    assert apply(TensorSpec("x", unit="g"), stored).scale == 0.5
