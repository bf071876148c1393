"""A model file is read by a child that may neither take long nor harm anybody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.author.reading import external_files, read_model
from agent.errors import ModelRejected, UsageError
from agent.formats.description import (
    ExternalData,
    ModelDescription,
    OnnxNeeds,
    TensorDescription,
)
from tests.author.models import model


def test_the_child_says_what_the_file_says(tmp_path: Path) -> None:
    described = read_model(model(tmp_path / "m.onnx"))
    assert described.format == "onnx"
    assert described.inputs[0].dim_names == ("batch", "")
    assert described.inputs[0].shape == (-1, 4)


def test_a_refusal_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ModelRejected, match=r"m\.onnx: the file is an HDF5"):
        read_model(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="no such file"):
        read_model(tmp_path / "gone.onnx")
    with pytest.raises(UsageError, match="is a folder"):
        read_model(tmp_path)


def test_a_reader_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="took more than"):
        read_model(model(tmp_path / "m.onnx"), deadline_s=0.0001)


def test_the_child_can_write_no_file_and_loads_no_runtime(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        f"sys.argv = ['pack_child', {str(model(tmp_path / 'm.onnx'))!r}]\n"
        "from agent.author import pack_child\n"
        "pack_child.main()\n"
        f"try: open({str(tmp_path / 'x')!r}, 'w').write('x' * 9999)\n"
        "except OSError: print('refused', file=sys.stderr)\n"
        "heavy = {'numpy', 'onnxruntime', 'ai_edge_litert'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr.split() == ["refused", "[]"]


def test_only_files_plainly_beside_the_model_are_its_weights(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(16))
    (tmp_path / "link.bin").symlink_to("/etc/passwd")
    (tmp_path / "door").symlink_to("/etc")

    def needs(location: str, length: int = 16) -> ModelDescription:
        external = (ExternalData(location, 0, length),)
        tensor = TensorDescription("x", "FP32", (1,))
        wanted = OnnxNeeds(8, {"ai.onnx": 17}, (), external_data=external)
        return ModelDescription("onnx", (tensor,), (tensor,), wanted)

    assert external_files(file, needs("sub/w.bin")) == ("sub/w.bin",)
    with pytest.raises(ModelRejected, match="has only 16"):
        external_files(file, needs("sub/w.bin", 17))
    for location in ("link.bin", "door/passwd", "../m.onnx", "/etc/passwd", "sub", "a\0b", ""):
        with pytest.raises(ModelRejected):
            external_files(file, needs(location))


def test_a_damaged_name_is_refused_with_its_reason(tmp_path: Path) -> None:
    damaged = model(tmp_path / "m.onnx").read_bytes().replace(b"Relu", b"Rel\xff")
    (tmp_path / "m.onnx").write_bytes(damaged)
    with pytest.raises(ModelRejected, match=r"m\.onnx: .* a name is not UTF-8"):
        read_model(tmp_path / "m.onnx")
