"""What is checked of a variant's file before a runtime sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.documents.manifest import Manifest, PackFile, Tensor, Tolerance, Variant
from agent.errors import ModelRejected, PackError
from agent.formats import registry
from agent.formats.description import ModelDescription, OtherNeeds
from agent.worker.load import check_file

X, Y = Tensor("x", "FP32", (1,)), Tensor("y", "FP32", (1,))
OURS = b"OURS" + bytes(registry.HEAD_LENGTH)


def describe(data: memoryview) -> ModelDescription:
    """A reader that knows nothing but whole files."""
    assert len(data) == len(OURS)
    return ModelDescription("ours", (), (), OtherNeeds())


BROUGHT = registry.Format("ours", "Our", ".our", lambda head: head[:4] == b"OURS", describe)


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package brings a format."""
    monkeypatch.setattr(registry, "_brought", [])
    registry.add(BROUGHT)


def check(folder: Path, file: str, content: bytes, model_format: str) -> Path:
    variant = Variant("v", file, model_format, (X,), (Y,), Tolerance(0.1))
    packed = {file: PackFile(f"sha256:{'a' * 64}", len(content))}
    (folder / file).write_bytes(content)
    manifest = Manifest(1, "m", "1", (X,), (Y,), (variant,), packed)
    return check_file(folder, manifest, variant, thorough=True)


@pytest.mark.usefixtures("brought")
def test_a_format_that_another_package_brings_is_a_format_like_any_other(tmp_path: Path) -> None:
    assert check(tmp_path, "model.our", OURS, "ours") == tmp_path / "model.our"
    with pytest.raises(PackError, match=r"the manifest calls model\.onnx onnx, it is ours"):
        check(tmp_path, "model.onnx", OURS, "onnx")


def test_a_file_of_a_format_that_nothing_here_reads_is_told_as_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="is not a TFLite, ORT or ONNX model"):
        check(tmp_path, "model.our", OURS, "ours")
    with pytest.raises(ModelRejected, match="ZIP"):
        check(tmp_path, "model.onnx", b"PK\x03\x04" + bytes(60), "onnx")
