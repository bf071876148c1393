"""A pack's folder: verified file by file, and never half there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.author.folder import Folder, open_pack, replace_pack, require_whole, verify
from agent.documents.manifest import Manifest, Tensor, Tolerance, Variant
from agent.errors import DigestMismatch, DocumentError, ModelRejected, PackError, UsageError

X = Tensor("x", "FP32", (1,))


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A pack that no runtime would load, which nobody here asks for."""
    return made(tmp_path)


def made(place: Path, **changes: Any) -> Path:
    (place / "source").write_bytes(b"weights")
    folder = Folder.beside(place / "pack")
    folder.take(place / "source", "model.onnx")
    folder.write("selftest/000.json", b"{}")
    variant = Variant("v", "model.onnx", "onnx", (X,), (X,), Tolerance(1.0))
    manifest = Manifest(1, "pump", "1", (X,), (X,), (variant,), folder.files())
    manifest = msgspec.structs.replace(manifest, **changes)
    replace_pack(folder, place / "pack", msgspec.json.encode(manifest), force=True)
    return place / "pack"


def test_a_whole_pack_has_nothing_wrong(pack: Path) -> None:
    opened = open_pack(pack)
    assert verify(opened) == []
    require_whole(opened)
    assert not opened.signed
    (pack / "model.sig").write_bytes(b"{}")
    assert open_pack(pack).signed
    assert verify(open_pack(pack)) == []


def altered(pack: Path) -> None:
    (pack / "model.onnx").write_bytes(b"weightz")


def cut(pack: Path) -> None:
    (pack / "model.onnx").write_bytes(b"weight")


def missing(pack: Path) -> None:
    (pack / "selftest/000.json").unlink()


def linked(pack: Path) -> None:
    (pack / "model.onnx").rename(pack.parent / "elsewhere")
    (pack / "model.onnx").symlink_to(pack.parent / "elsewhere")


def extra(pack: Path) -> None:
    (pack / "selftest/001.json").write_bytes(b"{}")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (altered, "model.onnx: was altered; its digest is not the manifest's"),
        (cut, "model.onnx: has 6 bytes, the manifest says 7"),
        (missing, "selftest/000.json: is missing"),
        (linked, "model.onnx: is missing"),
        (extra, "selftest/001.json: is not in the manifest"),
    ],
)
def test_each_harm_is_named(pack: Path, harm: Any, sentence: str) -> None:
    harm(pack)
    assert verify(open_pack(pack)) == [sentence]
    with pytest.raises(DigestMismatch):
        require_whole(open_pack(pack))


def test_a_variant_without_its_file_is_wrong(tmp_path: Path) -> None:
    lost = Variant("v", "gone.onnx", "onnx", (X,), (X,), Tolerance(1.0))
    (sentence,) = verify(open_pack(made(tmp_path, variants=(lost,))))
    assert "gone.onnx" in sentence


def test_a_name_that_leads_out_of_the_pack_is_refused(tmp_path: Path) -> None:
    pack = made(tmp_path)
    data = (pack / "manifest.json").read_bytes().replace(b"selftest/000.json", b"selftest/../../x")
    (pack / "manifest.json").write_bytes(data)
    with pytest.raises(PackError):
        verify(open_pack(pack))


def test_no_pack_and_no_manifest_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no pack"):
        open_pack(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b'{"schema": 1}')
    with pytest.raises(DocumentError, match=r"manifest\.json"):
        open_pack(tmp_path)


def test_names_that_collide_are_changed_or_refused(tmp_path: Path) -> None:
    folder = Folder.beside(tmp_path / "pack")
    for content in ("one", "two"):
        (tmp_path / content).write_text(content)
    assert folder.take(tmp_path / "one", "model.onnx") == "model.onnx"
    assert folder.take(tmp_path / "one", "model.onnx") == "model.onnx"
    assert folder.take(tmp_path / "two", "model.onnx") == "model-2.onnx"
    assert folder.take(tmp_path / "one", "model.onnx", exactly=True) == "model.onnx"
    with pytest.raises(ModelRejected, match="two different files"):
        folder.take(tmp_path / "two", "model.onnx", exactly=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_may_not_be_written_is_said_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        Folder.beside(tmp_path / "pack")
