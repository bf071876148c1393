"""ONNX model files, read from the protobuf wire format.

Source of field numbers: `onnx.proto` of ONNX. Weights are passed over as views, never walked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from agent.errors import ModelRejected
from agent.formats.bounds import (
    MAX_METADATA_ENTRIES,
    MAX_NOTES,
    MAX_TENSORS_DESCRIBED,
    Budget,
    damaged,
    shown,
)
from agent.formats.description import ExternalData, ModelDescription, OnnxNeeds, TensorDescription
from agent.formats.labels import parse_names
from agent.formats.onnx_survey import Survey, survey
from agent.formats.onnx_types import describe_value
from agent.formats.protobuf import Message, fields, read

MAX_STEPS = 6_000_000  # some four seconds; a network of 10,000 nodes takes 300,000
_FIRST_IR_WITH_OPSETS = 3

# The domains whose operators ONNX itself or ONNX Runtime's stock build defines.
REGISTERED_DOMAINS = frozenset(
    (
        *("ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"),
        *("com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental"),
        *("com.ms.internal.nhwc", "org.pytorch.aten"),
    )
)
_QUANTISED = re.compile(r"QLinear|QuantizeLinear|DequantizeLinear|Integer$|^QAttention$|^QGemm$")
_RANDOM = re.compile(r"(Random(Normal|Uniform)(Like)?|Multinomial|Bernoulli)$")


def describe(data: memoryview) -> ModelDescription:
    """Describe an ONNX model.

    Raises:
        ModelRejected: the file is not a complete ONNX model, or has more parts than any.
    """
    budget = Budget(MAX_STEPS, "ONNX")
    model = read([data], budget, (1, 2, 3, 5, 6, 7, 8, 14))
    _check_complete(model)
    graph = read(model.views(7), budget, (2, 10, 11, 12))
    needs = _needs(model, survey(data, budget))
    inputs = _inputs(graph, _initialisers(model.views(7), budget), budget)
    outputs = _values(graph.views(12), "output", budget)
    if not outputs:
        raise damaged("ONNX", "the graph has no output")
    return ModelDescription(
        format="onnx",
        inputs=inputs,
        outputs=outputs,
        needs=needs,
        producer=" ".join(filter(None, (model.text(2), model.text(3)))),
        name=graph.text(2),
        description=model.text(6) or graph.text(10),
        model_version=str(model.integer(5)) if model.integer(5) > 0 else None,
        metadata=_metadata(model, budget),
        labels=_labels(model, budget),
        quantised=computes_on_integers(needs.operators),
        notes=_notes(inputs, outputs, needs),
    )


def computes_on_integers(operators: Sequence[tuple[str, str]]) -> bool:
    """Whether one of the operators, (domain, name) each, is of a quantised model."""
    return any(_QUANTISED.search(op_type) for _, op_type in operators)


def _check_complete(model: Message) -> None:
    """What every model has; the operator sets come after the graph, so a cut file lacks them."""
    version = model.integer(1)
    if version < 1:
        raise damaged("ONNX", "it has no ir_version")
    if 7 not in model:
        raise damaged("ONNX", "it holds no graph")
    if 8 not in model and version >= _FIRST_IR_WITH_OPSETS:
        raise damaged("ONNX", "it imports no operator set")


def _needs(model: Message, found: Survey) -> OnnxNeeds:
    operators = sorted(found.operators - found.functions)
    return OnnxNeeds(
        ir_version=model.integer(1),
        # Older files name no operator set and mean the first one.
        opsets=dict(sorted(found.opsets.items())) or {"ai.onnx": 1},
        operators=tuple(operators),
        custom_operators=tuple(o for o in operators if o[0] not in REGISTERED_DOMAINS),
        external_data=tuple(sorted(found.external, key=_external_order)),
    )


def _external_order(data: ExternalData) -> tuple[str, int, int]:
    return data.location, data.offset, -1 if data.length is None else data.length


def _initialisers(graphs: Sequence[memoryview], budget: Budget) -> set[str]:
    """Names of the graph's constants, dense (5) and sparse (15)."""
    names: set[str] = set()
    for graph in graphs:
        for number, value in fields(graph, budget):
            if isinstance(value, int) or number not in (5, 15):
                continue
            tensors = [value] if number == 5 else read([value], budget, (1,)).views(1)
            names.add(read(tensors, budget, (8,)).name(8))
    return names


def _inputs(
    graph: Message, initialisers: set[str], budget: Budget
) -> tuple[TensorDescription, ...]:
    """Graph inputs without those that only declare a constant, as all of them did before IR 4."""
    views = graph.views(11)
    names = [read([view], budget, (1,)).name(1) for view in views]
    own = [view for view, name in zip(views, names, strict=True) if name not in initialisers]
    return _values(own, "input", budget)


def _values(
    views: Sequence[memoryview], role: str, budget: Budget
) -> tuple[TensorDescription, ...]:
    if len(views) > MAX_TENSORS_DESCRIBED:
        raise ModelRejected(
            f"the ONNX model has {len(views)} {role}s (at most {MAX_TENSORS_DESCRIBED})"
        )
    values = tuple(describe_value(view, budget) for view in views)
    for name, count in Counter(value.name for value in values).items():
        if not name:
            raise damaged("ONNX", f"an {role} has no name")
        if count > 1:
            raise damaged("ONNX", f"{count} {role}s are called {shown(name)}")
    return values


def _metadata(model: Message, budget: Budget) -> dict[str, str]:
    entries = [read([view], budget, (1, 2)) for view in model.views(14)[:MAX_METADATA_ENTRIES]]
    return {entry.text(1): entry.text(2) for entry in entries}


def _labels(model: Message, budget: Budget) -> tuple[str, ...] | None:
    """Class names that exporters of detectors put under the metadata key "names"."""
    for view in model.views(14)[:MAX_METADATA_ENTRIES]:
        entry = read([view], budget, (1, 2))
        if entry.text(1) == "names" and entry.views(2):
            return parse_names(entry.views(2)[-1])
    return None


def _notes(
    inputs: Sequence[TensorDescription], outputs: Sequence[TensorDescription], needs: OnnxNeeds
) -> tuple[str, ...]:
    notes = []
    if any(_RANDOM.match(op_type) for _, op_type in needs.operators):
        notes.append("it draws random numbers: the same input gives different answers")
    if not inputs:
        notes.append("it has no input")
    for role, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            if tensor.kind == "unknown":
                notes.append(f"the file does not say what type {role} {shown(tensor.name)} has")
            elif tensor.kind != "tensor":
                notes.append(f"{role} {shown(tensor.name)} is of type {tensor.kind}")
    return tuple(notes[:MAX_NOTES])
