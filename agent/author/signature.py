"""From a model file's words and the author's to tensors, variants and needs of a manifest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import msgspec

from agent.author import spec as author
from agent.author.spec import HiddenState, Spec, TensorSpec, VariantSpec
from agent.documents.manifest import Datatype, Needs, Tensor, Tolerance, Variant
from agent.errors import DocumentError, ModelRejected
from agent.formats import description as formats
from agent.formats.description import ModelDescription, OnnxNeeds, OtherNeeds, TensorDescription
from agent.pipeline import assembly
from agent.pipeline.tensors import INTEGERS, is_quantised

MAX_RANK = 16

# 8-bit results of one file differ by up to 19 of 255 between the kernels of LiteRT and XNNPACK,
# those of a QDQ graph by 0.035 between optimisation levels of ONNX Runtime.
FLOAT_TOLERANCE = Tolerance(absolute=1e-3, relative=1e-3)
HALF_TOLERANCE = Tolerance(absolute=1e-2, relative=1e-2)
QUANTISED_STEPS = 26
QUANTISED_TOLERANCE = Tolerance(absolute=0.06)
INDEX_TOLERANCE = 0.4

HIDDEN_STATE: dict[str, HiddenState] = {
    "none": "none",
    "variable_tensors": "reset",
    "resource_variables": "per_source",
}
# What ONNX Runtime gives for an output that is a map from class to score, or a list of them: one
# FP32 tensor (rows, classes). See `agent.runtimes.onnx`.
_MAPS = re.compile(r"(?:sequence\()?map\(\w+,FP32\)\)?$")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9_-]+")


def variant_of(
    description: ModelDescription, file: str, given: VariantSpec | None, spec: Spec
) -> Variant:
    """Describe one model file as a variant.

    Args:
        description: What the file says.
        file: Its name in the pack.
        given: What the author says of this file.
        spec: What the author says of the pack.

    Raises:
        ModelRejected: An input or output is of a type that no payload can carry.
        DocumentError: The author's word contradicts the file.
    """
    hidden = HIDDEN_STATE[description.state]
    declared = (given and given.hidden_state) or spec.hidden_state
    if declared == "none" and hidden != "none":
        raise DocumentError(
            "model.toml.hidden_state",
            f"reset or per_source, as {file} keeps state between runs",
            "'none'",
        )
    return Variant(
        name=(given and given.name) or _variant_name(description),
        file=file,
        format=description.format,
        inputs=tuple(_tensor(t, "input", spec.inputs) for t in description.inputs),
        outputs=tuple(_tensor(t, "output", spec.outputs) for t in description.outputs),
        tolerance=FLOAT_TOLERANCE,
        needs=_needs(description.needs),
        hidden_state=declared or hidden,
    )


def with_tolerance(
    variant: Variant,
    description: ModelDescription,
    given: VariantSpec | None,
    spec: Spec,
    public: Sequence[Tensor],
) -> Variant:
    """Return a variant with the author's tolerance, or one that suits its numbers.

    Args:
        variant: From `variant_of`.
        description: What its file says.
        given: What the author says of this file.
        spec: What the author says of the pack.
        public: The pack's outputs: what a self-test compares.
    """
    tolerance = (given and given.tolerance) or spec.tolerance
    if tolerance is None:
        tolerance = default_tolerance(public, variant.outputs, quantised=_is_quantised(description))
    return msgspec.structs.replace(variant, tolerance=tolerance)


def _is_quantised(description: ModelDescription) -> bool:
    return description.quantised or any(t.scale is not None for t in description.outputs)


def _variant_name(description: ModelDescription) -> str:
    types = {t.datatype for t in (*description.inputs, *description.outputs)}
    number = "int8" if _is_quantised(description) else "fp16" if "FP16" in types else "fp32"
    edgetpu = "-edgetpu" if is_for_edgetpu(description) else ""
    return f"{description.format}-{number}{edgetpu}"


def is_for_edgetpu(description: ModelDescription) -> bool:
    """True for a file that no CPU runs."""
    return bool(getattr(description.needs, "edgetpu", False))


def default_tolerance(
    public: Sequence[Tensor], file: Sequence[Tensor], *, quantised: bool
) -> Tolerance:
    """Return how far a device's kernels may be from the author's.

    Args:
        public: The pack's outputs.
        file: The outputs of the variant's file.
        quantised: Whether the file computes on integers.
    """
    eight_bit = ("INT8", "UINT8")
    if any(is_quantised(tensor) and tensor.datatype in eight_bit for tensor in public):
        return Tolerance(absolute=float(QUANTISED_STEPS))
    scales = [tensor.scale for tensor in file if tensor.scale and tensor.datatype in eight_bit]
    if scales:
        absolute = QUANTISED_STEPS * max(scales)
        # The number of a class is right or wrong.
        has_index = any(tensor.datatype in INTEGERS for tensor in public)
        return Tolerance(absolute=min(absolute, INDEX_TOLERANCE) if has_index else absolute)
    if quantised:
        return QUANTISED_TOLERANCE
    return HALF_TOLERANCE if any(t.datatype == "FP16" for t in file) else FLOAT_TOLERANCE


def _tensor(said: TensorDescription, role: str, given: Sequence[TensorSpec]) -> Tensor:
    """Describe one tensor of a file as its runtime will, or refuse it with the reason."""
    own = next((entry for entry in given if entry.name == said.name), None)
    if not said.name:
        raise ModelRejected(
            f"an {role} of the model has no name", hint="name it where the model is exported"
        )
    datatype, shape = _type_and_shape(said, role, own)
    if len(shape) > MAX_RANK:
        raise ModelRejected(
            f"{role} {said.name!r} has {len(shape)} dimensions (at most {MAX_RANK})"
        )
    return Tensor(
        name=said.name,
        datatype=cast(Datatype, datatype),
        shape=shape,
        scale=said.scale,
        zero_point=said.zero_point,
        allow_nan=bool(own and own.allow_nan),
    )


def _type_and_shape(
    said: TensorDescription, role: str, own: TensorSpec | None
) -> tuple[str, tuple[int, ...]]:
    name = said.name
    if role == "output" and _MAPS.match(said.kind):
        return "FP32", (-1, -1)
    if said.kind == "unknown" and own and own.datatype and own.shape is not None:
        return own.datatype, own.shape
    if said.kind == "unknown":
        raise ModelRejected(
            f"the file does not say what type {role} {name!r} has",
            hint=f"state its datatype and shape under [[{role}s]] in model.toml",
        )
    if said.kind != "tensor":
        raise ModelRejected(
            f"{role} {name!r} is a {said.kind}, which no payload can carry",
            hint="export the model with tensors of plain numbers or strings",
        )
    if said.ranked:
        return said.datatype, said.shape
    if own and own.shape is not None:
        return said.datatype, own.shape
    if role == "output":
        return said.datatype, ()
    raise ModelRejected(
        f"the file does not say how many dimensions input {name!r} has",
        hint="state its shape under [[inputs]] in model.toml",
    )


def notes_of(description: ModelDescription) -> list[str]:
    """Return what a person should know of a file."""
    maps = [t for t in description.outputs if _MAPS.match(t.kind)]
    flattened = [
        f"output {t.name!r} is a {t.kind}; a prediction gives it as one FP32 tensor [rows, "
        "classes], the classes in the order of their keys"
        for t in maps
    ]
    kinds = tuple(f"is of type {t.kind}" for t in maps)
    return [*flattened, *(note for note in description.notes if not note.endswith(kinds or "\0"))]


def unranked_outputs(description: ModelDescription, given: Sequence[TensorSpec]) -> set[str]:
    """Return the outputs whose number of dimensions only a run can tell."""
    stated = {entry.name for entry in given if entry.shape is not None}
    return {
        tensor.name
        for tensor in description.outputs
        if tensor.kind == "tensor" and not tensor.ranked and tensor.name not in stated
    }


def _needs(needs: formats.Needs) -> Needs:
    if isinstance(needs, OnnxNeeds):
        return Needs(
            ir_version=needs.ir_version,
            opsets=needs.opsets,
            operators=tuple(map(_operator, needs.operators)),
            custom_operators=tuple(map(_operator, needs.custom_operators)),
        )
    if isinstance(needs, OtherNeeds):
        return Needs(operators=needs.operators)
    return Needs(
        operators=tuple(f"{name}:{version}" for name, version in sorted(needs.operators.items())),
        custom_operators=needs.custom_operators,
        schema_version=needs.schema_version,
        min_runtime_version=(needs.min_runtime_version or "")[:128],
        edgetpu=needs.edgetpu,
    )


def _operator(operator: tuple[str, str]) -> str:
    domain, name = operator
    return name if domain in ("", "ai.onnx") else f"{domain}:{name}"


def public_inputs(first: Variant, spec: Spec) -> tuple[Tensor, ...]:
    """Return what a payload holds.

    Without a window and steps before the model: the file's inputs, with the author's words on
    them. With either, or with a name that the file does not have: what the author lists, if that
    is anything.

    Raises:
        DocumentError: An input is neither the file's nor complete.
    """
    fed = {pair.input for pair in spec.state}
    own = {tensor.name: tensor for tensor in first.inputs if tensor.name not in fed}
    given = {entry.name: entry for entry in spec.inputs}
    stands_between = spec.pipeline.window is not None or bool(spec.pipeline.pre)
    if not given or (given.keys() <= own.keys() and not stands_between):
        return tuple(
            author.apply(given[name], tensor) if name in given else tensor
            for name, tensor in own.items()
        )
    return tuple(
        author.apply(entry, own[entry.name])
        if entry.name in own
        else author.named_alone(entry, f"model.toml.inputs[{index}]")
        for index, entry in enumerate(spec.inputs)
    )


def public_outputs(first: Variant, spec: Spec, labels: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Return what a prediction holds: what the steps give, with the author's words on it.

    Raises:
        DocumentError: A step does not fit, or the author speaks of an output that there is not.
    """
    fed = {pair.output for pair in spec.state}
    own = tuple(tensor for tensor in first.outputs if tensor.name not in fed)
    if spec.pipeline.post:
        own = assembly.public_outputs(spec.pipeline, own, labels)
    given = {entry.name: entry for entry in spec.outputs}
    known = {tensor.name for tensor in (*own, *first.outputs)}
    for index, entry in enumerate(spec.outputs):
        if entry.name not in known:
            raise DocumentError(
                f"model.toml.outputs[{index}].name",
                f"one of {', '.join(sorted(known))}",
                repr(entry.name),
            )
    return tuple(
        author.apply(_only_words(given[t.name], spec), t) if t.name in given else t for t in own
    )


def _only_words(entry: TensorSpec, spec: Spec) -> TensorSpec:
    """With steps, what an output is follows from them; only words about it are the author's."""
    if not spec.pipeline.post:
        return entry
    return msgspec.structs.replace(entry, datatype=None, shape=None)


def pack_name(stem: str) -> str:
    """Return a name for a pack, made from a file's name."""
    name = _NOT_IN_NAMES.sub("-", stem.lower()).strip("-_")[:64].rstrip("-_")
    return name or "model"
