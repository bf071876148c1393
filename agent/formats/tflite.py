"""TFLite model files, read from the flatbuffer itself.

Source of slots: the public TFLite schema, version 3. Indices from one vector into another are
checked too: a runtime's own verifier looks at offsets only.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.errors import ModelRejected
from agent.formats.bounds import MAX_TENSORS_DESCRIBED, Budget, damaged, readable
from agent.formats.description import (
    HiddenState,
    ModelDescription,
    Normalisation,
    Signature,
    TensorDescription,
    TfliteNeeds,
)
from agent.formats.flatbuffer import Flatbuffer, Table
from agent.formats.tflite_flow import check_flow
from agent.formats.tflite_metadata import read_words
from agent.formats.tflite_operators import CUSTOM, builtin_name
from agent.formats.tflite_tensors import describe_tensor, is_quantised, is_variable

MAX_STEPS = 1_000_000  # about three seconds; a network of 1,000 operators takes some 10,000
EDGETPU_OPERATOR = "edgetpu-custom-op"
_WHAT = "TFLite"
_RESOURCE = frozenset(("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"))
_RANDOM = frozenset(("RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL"))
_OFFSET_IS_SET = 2  # Buffer.offset 0 and 1 mean that the data is in the flatbuffer


def describe(data: memoryview) -> ModelDescription:
    """Describe a TFLite model.

    Raises:
        ModelRejected: the file is not a complete TFLite model, or has more parts than any.
    """
    _check_magic(data)
    model = Flatbuffer(data, Budget(MAX_STEPS, _WHAT), _WHAT).root()
    buffers = _buffers(model, len(data))
    codes = [_operator_code(code) for code in model.tables(6)]
    graphs = model.tables(8)
    if not graphs:
        raise damaged(_WHAT, "it holds no subgraph")
    tensors = [_tensors(graph, len(buffers), len(codes)) for graph in graphs]
    # The first buffer stands for "none", whatever is in it.
    filled = [place > 0 and _is_filled(buffer) for place, buffer in enumerate(buffers)]
    for graph, own in zip(graphs, tensors, strict=True):
        check_flow(graph, own, filled)
    named = _named_buffers(model, buffers)
    words = read_words(data, named.get("TFLITE_METADATA"))
    needs = _needs(model, codes, named.get("min_runtime_version"))
    return ModelDescription(
        format="tflite",
        inputs=_described(graphs[0], 6, tensors[0], words.inputs),
        outputs=_described(graphs[0], 8, tensors[0], words.outputs),
        needs=needs,
        producer=model.text(10),
        name=words.name,
        description=words.description,
        model_version=words.version or None,
        metadata=words.metadata,
        labels=words.labels,
        state=_state(needs, tensors),
        quantised=any(is_quantised(tensor) for graph in tensors for tensor in graph),
        signatures=tuple(_signature(entry, tensors) for entry in model.tables(18)),
        associated_files=words.associated_files,
        notes=(*words.notes, *_notes(needs)),
    )


def _check_magic(data: memoryview) -> None:
    magic = bytes(data[4:8])
    if magic != b"TFL3":
        raise ModelRejected(
            f"the file is not a TFLite model: bytes 4 to 7 are {magic.decode('latin-1')!r}, "
            "must be 'TFL3'",
            hint="copy or export it again",
        )


def _buffers(model: Table, size: int) -> list[Table]:
    """The weights' places, each inside the file: here a file that was cut short shows."""
    if model.count(20, 4) or model.count(22, 4):
        raise ModelRejected(
            "the TFLite model keeps weights in other files",
            hint="export it again with its weights inside",
        )
    buffers = model.tables(12)
    for buffer in buffers:
        buffer.blob(4)
        offset, length = buffer.number(6, "Q"), buffer.number(8, "Q")
        if offset >= _OFFSET_IS_SET and offset + length > size:
            raise damaged(_WHAT, f"weights end at byte {offset + length} of {size}")
    return buffers


def _is_filled(buffer: Table) -> bool:
    return bool(len(buffer.blob(4)) or buffer.number(8, "Q"))


def _operator_code(code: Table) -> tuple[str, str, int]:
    """(builtin name, custom name, version); codes above 127 only fit the newer field."""
    number = max(code.number(4, "b"), code.number(10, "i"))
    custom = code.name(6) if number == CUSTOM else ""
    return builtin_name(number), custom, code.number(8, "i", 1)


def _tensors(graph: Table, buffer_count: int, code_count: int) -> list[Table]:
    """A subgraph's tensors, after checking every index from and to them."""
    tensors = graph.tables(4)
    for tensor in tensors:
        _check_indices((tensor.number(8, "I"),), 0, buffer_count, "a buffer")
    for slot in (6, 8):
        _check_indices(graph.numbers(slot, "i"), 0, len(tensors), "a tensor")
    for operator in graph.tables(10):
        _check_indices((operator.number(4, "I"),), 0, code_count, "an operator code")
        for slot in (6, 8):
            # -1 stands for an optional tensor that is left out.
            _check_indices(operator.numbers(slot, "i"), -1, len(tensors), "a tensor")
    return tensors


def _check_indices(indices: Sequence[int], lowest: int, count: int, what: str) -> None:
    if indices and (min(indices) < lowest or max(indices) >= count):
        bad = next(index for index in indices if not lowest <= index < count)
        raise damaged(_WHAT, f"it refers to {what} {bad} of {count}")


def _named_buffers(model: Table, buffers: Sequence[Table]) -> dict[str, memoryview]:
    entries = [(entry.name(4), entry.number(6, "I")) for entry in model.tables(16)]
    return {name: buffers[index].blob(4) for name, index in entries if index < len(buffers)}


def _needs(
    model: Table, codes: Sequence[tuple[str, str, int]], min_version: memoryview | None
) -> TfliteNeeds:
    operators: dict[str, int] = {}
    for name, custom, version in codes:
        if not custom:
            operators[name] = max(operators.get(name, 0), version)
    custom_operators = tuple(sorted({custom for _, custom, _ in codes if custom}))
    oldest = readable(bytes(min_version[:64]).split(b"\0")[0]) if min_version else ""
    return TfliteNeeds(
        schema_version=model.number(4, "I"),
        operators=dict(sorted(operators.items())),
        custom_operators=custom_operators,
        min_runtime_version=oldest or None,
        edgetpu=EDGETPU_OPERATOR in custom_operators,
    )


def _described(
    graph: Table,
    slot: int,
    tensors: Sequence[Table],
    words: Sequence[tuple[str, Normalisation | None]],
) -> tuple[TensorDescription, ...]:
    indices = graph.numbers(slot, "i")
    if len(indices) > MAX_TENSORS_DESCRIBED:
        raise ModelRejected(f"the TFLite model has {len(indices)} inputs or outputs")
    said = words if len(words) == len(indices) else [("", None)] * len(indices)
    return tuple(
        describe_tensor(tensors[index], *own) for index, own in zip(indices, said, strict=True)
    )


def _state(needs: TfliteNeeds, graphs: Sequence[Sequence[Table]]) -> HiddenState:
    if not _RESOURCE.isdisjoint(needs.operators):
        return "resource_variables"
    if any(is_variable(tensor) for graph in graphs for tensor in graph):
        return "variable_tensors"
    return "none"


def _signature(entry: Table, graphs: Sequence[Sequence[Table]]) -> Signature:
    index = entry.number(12, "I")
    _check_indices((index,), 0, len(graphs), "a subgraph")
    inputs, outputs = (_arguments(entry.tables(slot), graphs[index]) for slot in (4, 6))
    return Signature(entry.name(8), inputs, outputs)


def _arguments(entries: Sequence[Table], tensors: Sequence[Table]) -> dict[str, str]:
    places = {entry.name(4): entry.number(6, "I") for entry in entries}
    _check_indices(tuple(places.values()), 0, len(tensors), "a tensor")
    return {name: tensors[index].name(10) for name, index in places.items()}


def _notes(needs: TfliteNeeds) -> tuple[str, ...]:
    notes = []
    if needs.schema_version != 3:
        notes.append(f"its schema version is {needs.schema_version}, not 3")
    if not _RANDOM.isdisjoint(needs.operators):
        notes.append("it draws random numbers: the same input gives different answers")
    return tuple(notes)
