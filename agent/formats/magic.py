"""What a file is, by its first bytes; foreign kinds are named so that a refusal helps."""

from __future__ import annotations

import re
from typing import NamedTuple

_EXPORT = "export the model as ONNX or TFLite where it was trained"
_UNPACK = "unpack it and give the model inside"
_SAVED_MODEL = rb"\x08\x01\x12[\x80-\xff]"
_CORE_ML = rb"\x08[\x01-\x20]\x12[\x80-\xff]*[\x00-\x7f]\x0a"
# An `ir_version` and the tag of some other field of ModelProto; other protobuf files begin alike.
_ONNX = re.compile(
    rb"(?!" + _SAVED_MODEL + rb"|" + _CORE_ML + rb")"
    rb"\x08[\x80-\xff]?[\x01-\x7f](?:[\x12\x1a\x22\x28\x32\x3a\x42\x72]|[\xa2\xca\xd2]\x01)"
)


def is_tflite(head: bytes) -> bool:
    return head[4:8] == b"TFL3"


def is_ort(head: bytes) -> bool:
    return head[4:8] == b"ORTM"


def is_onnx(head: bytes) -> bool:
    """ONNX has no magic number: it is protobuf whose first field is `ir_version`."""
    return _ONNX.match(head) is not None


class Foreign(NamedTuple):
    """A kind of file that people take for a model, or that holds one."""

    name: str
    title: str
    pattern: re.Pattern[bytes]
    advice: str

    def matches(self, head: bytes) -> bool:
        return self.pattern.match(head) is not None


def _foreign(name: str, title: str, pattern: bytes, advice: str) -> Foreign:
    return Foreign(name, title, re.compile(pattern, re.DOTALL), advice)


FOREIGN = (
    _foreign("executorch", "an ExecuTorch program", rb".{4}ET\d\d", _EXPORT),
    _foreign(
        "saved_model",
        "a TensorFlow SavedModel",
        _SAVED_MODEL,
        "convert it with tf2onnx or the LiteRT converter",
    ),
    _foreign("coreml", "a Core ML model", _CORE_ML, _EXPORT),
    _foreign("zip", "a ZIP archive", rb"PK(\x03\x04|\x05\x06|\x07\x08)", _UNPACK),
    _foreign("gzip", "a gzip archive", rb"\x1f\x8b", _UNPACK),
    _foreign("xz", "an xz archive", rb"\xfd7zXZ\x00", _UNPACK),
    _foreign("bzip2", "a bzip2 archive", rb"BZh[1-9]1AY", _UNPACK),
    _foreign("zstd", "a Zstandard archive", rb"\x28\xb5\x2f\xfd", _UNPACK),
    _foreign("7z", "a 7z archive", rb"7z\xbc\xaf\x27\x1c", _UNPACK),
    _foreign("tar", "a tar archive", rb".{257}ustar", _UNPACK),
    _foreign("hdf5", "an HDF5 (Keras) file", rb"\x89HDF\r\n", _EXPORT),
    _foreign(
        "pickle",
        "a Python pickle",
        rb"\x80[\x02-\x05][\x28-\x95]",
        "a pickle runs code when it is opened; " + _EXPORT,
    ),
    _foreign("numpy", "a NumPy array", rb"\x93NUMPY", "give the model, not its data"),
    _foreign("elf", "a Linux program or library", rb"\x7fELF", "native code is never loaded"),
    _foreign("pe", "a Windows program or library", rb"MZ.{58}", "native code is never loaded"),
    _foreign("gguf", "a GGUF language model", rb"GGUF", _EXPORT),
    _foreign(
        "safetensors", "a safetensors file", rb".{8}\{\s*\"", "it holds weights only; " + _EXPORT
    ),
    _foreign("rknn", "a Rockchip RKNN model", rb"RKNN", "give the model it was compiled from"),
    _foreign("hef", "a Hailo HEF model", rb"\x01HEF", "give the model it was compiled from"),
    _foreign("tensorrt", "a TensorRT engine", rb"[pf]trt", "give the model it was built from"),
    _foreign(
        "git_lfs",
        "a Git LFS pointer",
        rb"version https://git-lfs",
        "the model itself was not downloaded: run `git lfs pull`",
    ),
    _foreign(
        "html",
        "an HTML page",
        rb"(?i)(\xef\xbb\xbf)?\s*(<!doctype html|<html)",
        "the download probably got an error or sign-in page",
    ),
    _foreign(
        "xml",
        "an XML file",
        rb"(?i)(\xef\xbb\xbf)?\s*(<\?xml|<net |<pmml)",
        "OpenVINO IR, PMML and server errors look like this; " + _EXPORT,
    ),
    _foreign("json", "a JSON file", rb"(\xef\xbb\xbf)?\s*[\{\[]\s*[\"\{\[\}\]]", _EXPORT),
    _foreign(
        "lightgbm", "a LightGBM text model", rb"tree\r?\nversion", "convert it with onnxmltools"
    ),
)
