"""Manifests for plans: made-up ones, and one whose variants are described from real files."""

from __future__ import annotations

from pathlib import Path

from agent.documents.manifest import Manifest, Needs, PackFile, Tensor, Tolerance, Variant
from agent.formats.description import Needs as FileNeeds
from agent.formats.description import OnnxNeeds, TensorDescription, TfliteNeeds
from agent.formats.registry import describe

DIGEST = "sha256:" + "0" * 64
# Not one network, but one pack as far as a plan looks: real files of every kind.
REAL = {
    "onnx-fp32": "basic_pitch/nmp.onnx",
    "tflite-fp32": "basic_pitch/nmp.tflite",
    "tflite-int8": "mobilenet_v1_025_128/mobilenet_v1_0.25_128_quant.tflite",
    "edgetpu": "mobilenet_v1_025_128/mobilenet_v1_0.25_128_quant_edgetpu.tflite",
}


def variant(
    name: str, model_format: str = "onnx", needs: Needs | None = None, **more: object
) -> Variant:
    integers = bool(more.pop("integers", False))
    tensor = Tensor("x", "INT8" if integers else "FP32", (1, 4), scale=0.1 if integers else None)
    return Variant(
        name,
        f"{name}.{model_format}",
        model_format,
        (tensor,),
        (tensor,),
        Tolerance(0.1),
        needs or Needs(),
        **more,  # type: ignore[arg-type]
    )


def pack(
    *variants: Variant, size: int = 1_000_000, files: dict[str, int] | None = None
) -> Manifest:
    sizes = {**{one.file: size for one in variants}, "case-0.json": 100, **(files or {})}
    return Manifest(
        1,
        "pump",
        "1",
        variants[0].inputs,
        variants[0].outputs,
        variants,
        {name: PackFile(DIGEST, bytes_) for name, bytes_ in sizes.items()},
        selftest=("case-0.json",),
    )


def real_pack(models: Path) -> Manifest:
    """A pack of an ONNX model, TFLite ones of real numbers and of integers, and an Edge TPU's."""
    variants, files = [], {}
    for name, place in REAL.items():
        data = (models / place).read_bytes()
        told = describe(data, filename=place)
        file = Path(place).name
        tensors = tuple(map(_tensor, told.inputs)), tuple(map(_tensor, told.outputs))
        variants.append(
            Variant(name, file, told.format, *tensors, Tolerance(0.1), _needs(told.needs))
        )
        files[file] = PackFile(DIGEST, len(data))
    return Manifest(
        1, "camera", "1", variants[0].inputs, variants[0].outputs, tuple(variants), files
    )


def _tensor(told: TensorDescription) -> Tensor:
    return Tensor(
        told.name or "x",
        told.datatype,  # type: ignore[arg-type]
        told.shape,
        scale=told.scale,
        zero_point=told.zero_point,
    )


def _needs(needs: FileNeeds) -> Needs:
    if isinstance(needs, OnnxNeeds):
        return Needs(
            needs.ir_version, needs.opsets, operators=tuple(name for _, name in needs.operators)
        )
    assert isinstance(needs, TfliteNeeds)
    return Needs(
        operators=tuple(f"{name}:{version}" for name, version in needs.operators.items()),
        custom_operators=needs.custom_operators,
        schema_version=needs.schema_version,
        min_runtime_version=needs.min_runtime_version or "",
        edgetpu=needs.edgetpu,
    )
