"""What a file is recognised as, and what the refusal of anything else says."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tarfile

import numpy as np
import pytest

from agent.errors import ModelRejected
from agent.formats import magic, registry
from agent.formats.registry import FORMATS, HEAD_LENGTH, Format, describe, recognise
from tests.formats.building import (
    archive,
    bytes_field,
    integer_field,
    onnx_model,
    tflite_bytes,
    tflite_model,
)


def tar() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as out:
        out.addfile(tarfile.TarInfo("model.onnx"))
    return target.getvalue()


def npy() -> bytes:
    target = io.BytesIO()
    np.save(target, np.zeros(3))
    return target.getvalue()


FOREIGN = {
    "zip": archive({"model.onnx": b"x"}),
    "gzip": gzip.compress(b"model"),
    "tar": tar(),
    "pickle": pickle.dumps({"weights": [1.0]}),
    "numpy": npy(),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(8),
    "elf": b"\x7fELF\x02\x01\x01",
    "html": b"\n<!DOCTYPE html><html>Sign in</html>",
    "xml": b'<?xml version="1.0"?><net name="x" version="11">',
    "json": b'{"error": "not found"}',
    "git_lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "saved_model": b"\x08\x01\x12\xd1\x8a\x04",
    "coreml": b"\x08\x04\x12\x30\x0a\x10\x0a\x05image",
    "gguf": b"GGUF\x03\x00\x00\x00",
    "safetensors": b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"w":{}}',
}


@pytest.mark.parametrize("kind", sorted(FOREIGN))
def test_a_foreign_file_is_named_and_the_refusal_helps(kind: str) -> None:
    data = FOREIGN[kind]
    assert recognise(data[:HEAD_LENGTH]) == kind
    title = next(foreign.title for foreign in magic.FOREIGN if foreign.name == kind)
    with pytest.raises(ModelRejected, match=re.escape(f"the file is {title}, not a ")) as caught:
        describe(data, filename="model.onnx")
    assert caught.value.hint


def test_models_are_recognised_by_content_whatever_their_name() -> None:
    onnx, tflite = onnx_model().SerializeToString(), tflite_bytes(tflite_model())
    assert recognise(onnx[:HEAD_LENGTH]) == "onnx"
    assert recognise(tflite[:HEAD_LENGTH]) == "tflite"
    assert describe(onnx, filename="model.tflite").format == "onnx"
    assert describe(tflite, filename="model.onnx").format == "tflite"


@pytest.mark.parametrize("ir_version", [1, 8, 99, 300])
def test_onnx_is_recognised_by_its_ir_version_and_next_field(ir_version: int) -> None:
    version = integer_field(1, ir_version)
    assert recognise(version + bytes_field(2, b"maker")) == "onnx"
    assert recognise(version + bytes_field(7, b"")) == "onnx"
    assert recognise(version + integer_field(1, 1)) == "unknown"


def test_onnx_in_an_unusual_order_is_believed_by_its_name() -> None:
    data = onnx_model().SerializeToString()
    assert data[0] == 0x08
    reordered = data[2:] + data[:2]
    assert recognise(reordered) == "unknown"
    assert describe(reordered, filename="m.onnx") == describe(data)
    with pytest.raises(ModelRejected, match="is not a TFLite, ORT or ONNX model: it begins with"):
        describe(reordered)


def test_an_empty_file_is_called_empty() -> None:
    assert recognise(b"") == "empty"
    with pytest.raises(ModelRejected, match="the model file is empty"):
        describe(b"", filename="model.onnx")


def test_bytes_and_views_of_any_layout_are_the_same_to_the_reader() -> None:
    data = tflite_bytes(tflite_model())
    assert describe(memoryview(data)) == describe(data)
    assert describe(memoryview(bytearray(data)).cast("b")) == describe(data)


def test_names_of_formats_and_foreign_kinds_are_unique() -> None:
    names = [kind.name for kind in (*FORMATS, *magic.FOREIGN)]
    assert len(names) == len(set(names))


def test_a_format_of_another_package_is_recognised_before_foreign_kinds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_brought", [])
    description = describe(onnx_model().SerializeToString())
    mine = Format("hef", "Hailo", ".hef", lambda head: head[1:4] == b"HEF", lambda _: description)
    assert recognise(b"\x01HEF") == "hef"
    with pytest.raises(ModelRejected, match="a Hailo HEF model"):
        describe(b"\x01HEF")
    registry.add(mine)
    registry.add(mine)
    assert describe(b"\x01HEF") == description
    assert [one.name for one in registry.known()].count("hef") == 1
    with pytest.raises(ValueError, match="two model formats called 'hef'"):
        registry.add(mine._replace(title="other"))
    with pytest.raises(ValueError, match="two model formats called 'onnx'"):
        registry.add(mine._replace(name="onnx"))
