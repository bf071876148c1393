"""What runtimes know and need: tables of public facts, and questions to them. Nothing is imported
or tried here; a runtime's own word, where there is one, counts more than a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from agent.control.versions import at_least, release
from agent.documents.choice import CPU_PROVIDERS
from agent.documents.device import Device, RuntimeFacts

# The oldest Python that the agent runs on.
OLDEST_PYTHON = "3.10"

TITLES: Mapping[str, str] = {
    "onnx": "ONNX Runtime",
    "tflite": "LiteRT",
    "edgetpu": "the Edge TPU's runtime",
    "openvino": "OpenVINO",
    "reference": "the reference runtime",
}
ACCELERATORS: Mapping[str, str] = {
    "edgetpu": "Edge TPU",
    "cuda": "NVIDIA GPU",
    "intel_npu": "Intel NPU",
    "intel_gpu": "Intel GPU",
}
# What a runtime loads, where its own facts do not say.
FORMATS: Mapping[str, tuple[str, ...]] = {
    "onnx": ("onnx", "ort"),
    "tflite": ("tflite",),
    "edgetpu": ("tflite",),
    "openvino": ("onnx",),
    "reference": ("onnx",),
}
# More threads make these no faster.
SINGLE_THREADED = frozenset({"edgetpu", "reference"})
# Custom operators that LiteRT and TensorFlow Lite carry themselves (their BuiltinOpResolver).
TFLITE_CUSTOM = frozenset(
    {"AudioSpectrogram", "Mfcc", "NumericVerify", "TFLite_Detection_PostProcess"}
)
EDGETPU_OPERATOR = "edgetpu-custom-op"
# Of the flatbuffer schema, since 2017.
TFLITE_SCHEMA = 3
# Instruction sets that multiply and add 8-bit integers several at a time.
INTEGER_FEATURES = frozenset({"asimddp", "i8mm", "avx_vnni", "avx512_vnni", "amx_int8"})

# ONNX Runtime's version → the newest operator set and IR version that it takes: found by loading
# models of one node into each of these releases (CPU wheels, x86_64).
_ONNX_LIMITS: Mapping[str, tuple[int, int]] = {
    "1.19": (21, 10),
    "1.21": (22, 10),
    "1.23": (23, 11),
    "1.24": (25, 13),
    "1.25": (26, 13),
    "1.32": (28, 14),
}
_ONNX_NEWEST_TRIED = "1.32"


class OnnxLimits(NamedTuple):
    """The newest that an ONNX Runtime takes; None: not known. `guessed`: by a table."""

    opset: int | None
    ir_version: int | None
    guessed: bool


def onnx_limits(facts: RuntimeFacts) -> OnnxLimits:
    """Return what a runtime says of itself, else what its version is known for.

    A release newer than the table takes at least what the newest in it takes, so nothing is known
    of what it does not.
    """
    if facts.opset is not None or facts.ir_version is not None:
        return OnnxLimits(facts.opset, facts.ir_version, guessed=False)
    known = [version for version in _ONNX_LIMITS if at_least(facts.version, version)]
    if (
        facts.name != "onnx"
        or not known
        or release(facts.version)[:2] > release(_ONNX_NEWEST_TRIED)
    ):
        return OnnxLimits(None, None, guessed=True)
    opset, ir_version = _ONNX_LIMITS[max(known, key=release)]
    return OnnxLimits(opset, ir_version, guessed=True)


def formats_of(runtime: str, facts: RuntimeFacts | None) -> tuple[str, ...]:
    """Return the model formats that a runtime loads."""
    return (facts.formats if facts else ()) or FORMATS.get(runtime, ())


def runtimes_for(model_format: str) -> tuple[str, ...]:
    """Return the runtimes that anybody would think of first for a format."""
    return {"onnx": ("onnx",), "ort": ("onnx",), "tflite": ("tflite",)}.get(model_format, ())


# What a way of running needs beside the CPU.

_BY_PROVIDER: Mapping[str, str] = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NPU": "intel_npu",
    "GPU": "intel_gpu",
}


def accelerator_for(runtime: str, provider: str, options: Mapping[str, str]) -> str:
    """Return the kind of accelerator that a way needs; nothing: none, or it is not known."""
    if runtime == "edgetpu":
        return "edgetpu"
    device = options.get("device_type", "") if provider == "OpenVINOExecutionProvider" else provider
    # `GPU.1` and `HETERO:NPU,CPU` name their first device.
    first = device.partition(":")[2] or device
    return _BY_PROVIDER.get(first.partition(",")[0].partition(".")[0], "")


def offers(facts: RuntimeFacts, provider: str) -> bool:
    """Whether a build says that it can compute on a provider; its CPU kernels are always there."""
    return provider in CPU_PROVIDERS or not facts.providers or provider in facts.providers


def how_to_get(provider: str, device: Device) -> str:
    """Say what to install for a provider that a build of ONNX Runtime lacks."""
    if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        return _how_to_get_cuda(device)
    if provider == "OpenVINOExecutionProvider":
        if device.system.architecture != "x86_64":
            return "onnxruntime-openvino is built for x86_64 only; use another provider"
        return (
            "pip uninstall onnxruntime, then pip install onnxruntime-openvino: two flavours in "
            "one place take each other's providers away"
        )
    if provider == "QNNExecutionProvider":
        return (
            "no wheel for Linux has it: build ONNX Runtime with QNN; onnxruntime-qnn from 2.0 on "
            "is a plug-in, which is not used here"
        )
    return "install the flavour of onnxruntime that has it, in place of the one that is there"


def _how_to_get_cuda(device: Device) -> str:
    if device.jetson is None:
        return "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
    l4t = release(device.jetson.l4t)[:1]
    jetpack = device.jetson.jetpack or f"with L4T {device.jetson.l4t}"
    if l4t < (36,):
        return (
            f"NVIDIA's wheels with CUDA for JetPack {jetpack} are for its own old Python only: "
            "build ONNX Runtime with CUDA for this Python, or serve on the CPU"
        )
    if l4t < (38,):
        return (
            f"for JetPack {jetpack} onnxruntime-gpu comes from NVIDIA's Jetson AI Lab index "
            "(jp6/cu126); the public wheel needs CUDA 13"
        )
    return "pip uninstall onnxruntime, then pip install onnxruntime-gpu (CUDA 13)"


# How much memory a model takes.

# Of the process with its library and a tiny model, resident (measured on x86_64, Python 3.11).
_PROCESS_BYTES: Mapping[str, int] = {
    "onnx": 56_000_000,
    "tflite": 38_000_000,
    "edgetpu": 38_000_000,
}


class Footprint(msgspec.Struct, frozen=True):
    """An estimate of a worker's memory.

    Args:
        peak_bytes: Resident, while the model is loaded.
        private_bytes: Of that, what weights alone take of private writable memory.
    """

    peak_bytes: int
    private_bytes: int


def footprint(runtime: str, weights_bytes: int, *, integers: bool) -> Footprint:
    """Estimate from the size of a model's files.

    ONNX Runtime holds the weights twice while it loads them. LiteRT maps the file, and XNNPACK
    packs a second copy of real-valued weights.
    """
    process = _PROCESS_BYTES.get(runtime, min(_PROCESS_BYTES.values()))
    if runtime in ("tflite", "edgetpu"):
        packed = 0 if integers or runtime == "edgetpu" else weights_bytes
        return Footprint(process + weights_bytes + packed, packed)
    if runtime == "onnx":
        return Footprint(process + 2 * weights_bytes, 2 * weights_bytes)
    return Footprint(process + weights_bytes, weights_bytes)
