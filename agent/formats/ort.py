"""Model files in ONNX Runtime's own format: a flatbuffer of a graph that is already prepared.

Source of slots: ONNX Runtime's public schema `ort.fbs`. The datatype codes are ONNX's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agent.errors import ModelRejected
from agent.formats.bounds import (
    MAX_METADATA_ENTRIES,
    MAX_RANK,
    MAX_TENSORS_DESCRIBED,
    Budget,
    damaged,
    shown,
)
from agent.formats.description import (
    V2_DATATYPES,
    ModelDescription,
    OnnxNeeds,
    TensorDescription,
)
from agent.formats.flatbuffer import Flatbuffer, Table
from agent.formats.onnx import REGISTERED_DOMAINS, computes_on_integers
from agent.formats.onnx_survey import MAX_GRAPH_DEPTH, domain_in_words
from agent.formats.onnx_types import DATATYPES, MAX_TYPE_DEPTH

MAX_STEPS = 2_000_000
_WHAT = "ORT"
_TENSOR, _SEQUENCE, _MAP = 1, 2, 3  # of the union TypeInfoValue
_VALUE = 1  # of the enumeration DimensionValueType
_NO_OFFSET = -1


def describe(data: memoryview) -> ModelDescription:
    """Describe a model in ORT format.

    Raises:
        ModelRejected: The file is not a complete one, keeps weights elsewhere, or has more parts
            than any.
    """
    root = Flatbuffer(data, Budget(MAX_STEPS, _WHAT), _WHAT).root()
    model = root.table(6)
    graph = model.table(18) if model is not None else None
    if model is None or graph is None:
        raise damaged(_WHAT, "it holds no graph")
    types = {info.name(4): info for info in graph.tables(6)}
    constants = {tensor.name(4) for tensor in graph.tables(4)}
    inputs = [name for name in graph.names(14) if name not in constants]
    outputs = graph.names(16)
    if not outputs:
        raise damaged(_WHAT, "the graph has no output")
    needs = _needs(model, graph)
    return ModelDescription(
        format="ort",
        inputs=tuple(_described(name, types, "input") for name in _few(inputs, "input")),
        outputs=tuple(_described(name, types, "output") for name in _few(outputs, "output")),
        needs=needs,
        producer=" ".join(filter(None, (model.text(8), model.text(10)))),
        description=model.text(16) or model.text(20),
        model_version=str(version) if 0 < (version := model.number(14, "q")) < 2**63 - 1 else None,
        metadata=_metadata(model),
        quantised=computes_on_integers(needs.operators),
        notes=(f"its layout is version {root.text(4)} of the ORT format",),
    )


def _few(names: list[str], role: str) -> list[str]:
    if len(names) > MAX_TENSORS_DESCRIBED:
        raise ModelRejected(
            f"the ORT model has {len(names)} {role}s (at most {MAX_TENSORS_DESCRIBED})"
        )
    if len(set(names)) < len(names) or "" in names:
        raise damaged(_WHAT, f"an {role} has no name, or two have the same")
    return names


def _metadata(model: Table) -> dict[str, str]:
    entries = model.tables(22)[:MAX_METADATA_ENTRIES]
    return {entry.text(4): entry.text(6) for entry in entries}


def _needs(model: Table, graph: Table) -> OnnxNeeds:
    operators: set[tuple[str, str]] = set()
    for inner in _graphs(graph):
        for tensor in inner.tables(4):
            if tensor.number(16, "q", _NO_OFFSET) != _NO_OFFSET:
                raise ModelRejected(
                    f"the ORT model keeps {shown(tensor.name(4))} in another file",
                    hint="convert it with its weights inside",
                )
        for node in inner.tables(8):
            operators.add((domain_in_words(node.name(8)), node.name(14)))
    # The converter imports every domain that it knows; those count whose operators are used.
    used = {domain for domain, _ in operators}
    imports = {domain_in_words(entry.name(4)): entry.number(6, "q") for entry in model.tables(6)}
    return OnnxNeeds(
        ir_version=model.number(4, "q"),
        opsets={domain: imports[domain] for domain in sorted(used & imports.keys())},
        operators=tuple(sorted(operators)),
        custom_operators=tuple(sorted(o for o in operators if o[0] not in REGISTERED_DOMAINS)),
    )


def _graphs(graph: Table) -> Iterator[Table]:
    """Yield the graph and those inside its operators, at most `MAX_GRAPH_DEPTH` deep."""
    waiting = [(graph, 1)]
    while waiting:
        current, depth = waiting.pop()
        if depth > MAX_GRAPH_DEPTH:
            raise ModelRejected(f"the ORT model nests graphs more than {MAX_GRAPH_DEPTH} deep")
        yield current
        for node in current.tables(8):
            for attribute in node.tables(24):
                inner = attribute.table(18)
                graphs = [*attribute.tables(28), *([inner] if inner is not None else [])]
                waiting += [(one, depth + 1) for one in graphs]


def _described(name: str, types: Mapping[str, Table], role: str) -> TensorDescription:
    info = types.get(name)
    kind = info.table(8) if info is not None else None
    if info is None or kind is None:
        raise damaged(_WHAT, f"the file does not say what type {role} {shown(name)} has")
    declared = kind.number(6, "B")
    value = kind.table(8)
    if declared != _TENSOR or value is None:
        return TensorDescription(name, "", ranked=False, kind=_type_name(kind, 0))
    datatype = _datatype(value)
    plain = datatype in V2_DATATYPES
    shape = value.table(6)
    dims = [_dimension(dim) for dim in shape.tables(4)] if shape is not None else []
    if len(dims) > MAX_RANK:
        raise ModelRejected(f"a tensor has {len(dims)} dimensions (at most {MAX_RANK})")
    return TensorDescription(
        name,
        datatype if plain else "",
        tuple(size for size, _ in dims),
        tuple(label for _, label in dims),
        ranked=shape is not None,
        kind="tensor" if plain else f"tensor({datatype})",
        description=info.text(6),
    )


def _datatype(tensor: Table) -> str:
    code = tensor.number(4, "i")
    return DATATYPES.get(code, f"DATATYPE_{code}")


def _dimension(dim: Table) -> tuple[int, str]:
    value = dim.table(4)
    if value is None or value.number(4, "b") != _VALUE:
        return -1, value.name(8) if value is not None else ""
    return max(value.number(6, "q"), -1), ""


def _type_name(kind: Table, depth: int) -> str:
    """The type in the words of `onnx_types`, such as `sequence(map(INT64,FP32))`."""
    if depth > MAX_TYPE_DEPTH:
        raise ModelRejected(f"a type of the ORT model is nested more than {MAX_TYPE_DEPTH} deep")
    declared, value = kind.number(6, "B"), kind.table(8)
    if value is None:
        return "unknown"
    if declared == _TENSOR:
        return _datatype(value)
    inner = value.table(6 if declared == _MAP else 4) if declared in (_MAP, _SEQUENCE) else None
    if inner is None:
        return "unknown"
    name = _type_name(inner, depth + 1)
    if declared == _SEQUENCE:
        return f"sequence({name})"
    return f"map({DATATYPES.get(value.number(4, 'i'), 'UNDEFINED')},{name})"
