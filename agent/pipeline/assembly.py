"""Makes the parts of a chain from a manifest. Errors name the value that does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent.documents.manifest import Manifest, Pipeline, Tensor, Variant
from agent.errors import BadInput, BadOutput, DocumentError
from agent.pipeline.boundary import pair
from agent.pipeline.codecs import registry as codecs
from agent.pipeline.codecs.api import Codec, Decode, DecoderContext, Encode, EncoderContext
from agent.pipeline.message import ProducedBy
from agent.pipeline.options import look_up, read_options
from agent.pipeline.steps import registry as steps
from agent.pipeline.steps.api import CompiledStep, Run, StepContext, StepKind
from agent.pipeline.tensors import is_quantised, may_match, show_shape

Settings = Mapping[str, Any]


class Steps(msgspec.Struct, frozen=True):
    """The compiled steps of one side of the model."""

    runs: tuple[Run, ...]
    tensors: tuple[Tensor, ...]
    # As in `CompiledStep`, of the last step that names a class.
    class_labels: tuple[str, ...] | None
    # Whether one of them keeps something of each source.
    remember: bool


def compile_steps(
    raw: Sequence[Mapping[str, Any]],
    tensors: tuple[Tensor, ...],
    labels: tuple[str, ...],
    settings: Settings,
    *,
    path: str,
    refuse: type[BadInput] | type[BadOutput],
) -> Steps:
    """Compile steps one after the other, each against what the one before it gives.

    Args:
        raw: As the manifest lists them.
        tensors: What reaches the first one.
        labels: The pack's class labels.
        settings: The slot's; they win over options of the same name.
        path: Where in the manifest the steps stand.
        refuse: The error of a value that a step cannot take.

    Raises:
        DocumentError: A step or one of its options does not fit.
    """
    for tensor in tensors if raw else ():
        if is_quantised(tensor):
            raise DocumentError(
                f"{path}[0]", "real numbers before a step", f"{tensor.name} with a scale"
            )
    compiled: list[CompiledStep] = []
    kinds = _kinds(raw, path)
    for index, (options, kind) in enumerate(zip(raw, kinds, strict=True)):
        here = f"{path}[{index}]"
        overrides = {name: settings[name] for name in kind.settings if name in settings}
        checked = read_options(options, kind.options, "step", path=here, overrides=overrides)
        step = kind.compile(checked, StepContext(tensors, labels, here, refuse))
        compiled.append(step)
        tensors = step.tensors
    named = [step.class_labels for step in compiled if step.class_labels is not None]
    return Steps(
        runs=tuple(step.run for step in compiled),
        tensors=tensors,
        class_labels=named[-1] if named else None,
        remember=any(kind.remembers for kind in kinds),
    )


def check_settings(pipeline: Pipeline, settings: Settings) -> None:
    """Refuse a setting that no step of the pack has.

    Raises:
        DocumentError: There is one: a typing mistake must not go unnoticed.
    """
    kinds = _kinds(pipeline.pre, "manifest.pipeline.pre")
    kinds += _kinds(pipeline.post, "manifest.pipeline.post")
    known = sorted({name for kind in kinds for name in kind.settings})
    for name in settings:
        if name not in known:
            raise DocumentError(
                f"settings.{name}",
                f"a setting of this pack ({', '.join(known) or 'it has none'})",
                repr(name),
            )


def _kinds(raw: Sequence[Mapping[str, Any]], path: str) -> list[StepKind]:
    return [
        look_up(options, "step", steps.STEPS, "edgeward.steps", path=f"{path}[{index}]")
        for index, options in enumerate(raw)
    ]


def public_inputs(manifest: Manifest) -> tuple[Tensor, ...]:
    """Return what a payload holds: the manifest's inputs, without those fed from a state."""
    fed = {pair.input for pair in manifest.state}
    return tuple(tensor for tensor in manifest.inputs if tensor.name not in fed)


def model_outputs(manifest: Manifest, variant: Variant) -> tuple[Tensor, ...]:
    """Return what steps after the model start from: outputs of the first variant's file, in real
    numbers. Without such steps these are the manifest's outputs."""
    if not manifest.pipeline.post:
        return manifest.outputs
    first = manifest.variants[0] if manifest.variants else variant
    fed = {pair.output for pair in manifest.state}
    return tuple(real(tensor) for tensor in first.outputs if tensor.name not in fed)


def real(tensor: Tensor) -> Tensor:
    """Return a tensor as it looks outside the file: dequantised."""
    if not is_quantised(tensor):
        return tensor
    return msgspec.structs.replace(tensor, datatype="FP32", scale=None, zero_point=None)


def public_outputs(
    pipeline: Pipeline, outputs: Sequence[Tensor], labels: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """Return the outputs that a manifest must declare.

    Args:
        pipeline: Its steps.
        outputs: The first variant's, without those that are state.
        labels: The pack's class labels.

    Raises:
        DocumentError: A step does not fit.
    """
    start = tuple(real(tensor) for tensor in outputs)
    path = "manifest.pipeline.post"
    return compile_steps(pipeline.post, start, labels, {}, path=path, refuse=BadOutput).tensors


def check_outputs(declared: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Hold the manifest's outputs against what the steps give.

    Raises:
        DocumentError: They differ.
    """
    by_name = {tensor.name: tensor for tensor in declared}
    names = ", ".join(tensor.name for tensor in given)
    if set(by_name) != {tensor.name for tensor in given}:
        raise DocumentError(
            "manifest.outputs", f"what pipeline.post gives ({names})", ", ".join(by_name) or "none"
        )
    for tensor in given:
        other = by_name[tensor.name]
        if other.datatype != tensor.datatype or not may_match(other.shape, tensor.shape):
            raise DocumentError(
                f"manifest.outputs.{tensor.name}",
                f"{tensor.datatype} {show_shape(tensor.shape)}, as pipeline.post gives it",
                f"{other.datatype} {show_shape(other.shape)}",
            )


def compile_decoder(
    manifest: Manifest, variant: Variant, inputs: tuple[Tensor, ...], *, reply_to: bool
) -> Decode:
    """Return the decoder that the manifest names (V2 JSON if none).

    Raises:
        DocumentError: There is no such codec, or it cannot carry these inputs.
    """
    pipeline, path = manifest.pipeline, "manifest.pipeline.decode"
    raw = {"codec": codecs.DEFAULT} if pipeline.decode is None else pipeline.decode
    codec: Codec = look_up(raw, "codec", codecs.CODECS, "edgeward.codecs", path=path)
    if codec.decoder is None:
        raise DocumentError(f"{path}.codec", "a codec that reads", repr(raw["codec"]))
    field = pipeline.window.time_field if pipeline.window else ""
    context = DecoderContext(
        inputs=inputs,
        stored=stored_inputs(manifest, variant, inputs),
        reply_to=reply_to,
        time_field="" if any(tensor.name == field for tensor in inputs) else field,
        path=path,
    )
    return codec.decoder(read_options(raw, codec.options, "codec", path=path), context)


def stored_inputs(
    manifest: Manifest, variant: Variant, inputs: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return, by public name, the file's tensors whose own integers a payload may hold as well.

    Only where nothing stands between payload and model: steps work on real numbers.
    """
    if manifest.pipeline.window or manifest.pipeline.pre:
        return {}
    fed = {pair.input for pair in manifest.state}
    file = [tensor for tensor in variant.inputs if tensor.name not in fed]
    return {
        public.name: target
        for target, public in pair(file, inputs, path=f"variant {variant.name}: inputs")
        if target.datatype != public.datatype and is_quantised(target)
    }


def compile_encoder(
    manifest: Manifest, variant: Variant, outputs: tuple[Tensor, ...], produced_by: ProducedBy
) -> Encode:
    """Return the encoder that the manifest names (V2 JSON if none).

    Raises:
        DocumentError: There is no such codec, or it cannot carry these outputs.
    """
    path = "manifest.pipeline.encode"
    encode = manifest.pipeline.encode
    raw = {"codec": codecs.DEFAULT} if encode is None else encode
    codec: Codec = look_up(raw, "codec", codecs.CODECS, "edgeward.codecs", path=path)
    if codec.encoder is None:
        raise DocumentError(f"{path}.codec", "a codec that writes", repr(raw["codec"]))
    context = EncoderContext(
        manifest.name, manifest.version, variant.name, produced_by, outputs, path
    )
    return codec.encoder(read_options(raw, codec.options, "codec", path=path), context)
