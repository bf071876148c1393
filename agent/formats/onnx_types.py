"""ONNX's ValueInfoProto and TypeProto → a tensor description (field numbers: `onnx.proto`)."""

from __future__ import annotations

from agent.errors import ModelRejected
from agent.formats.bounds import MAX_RANK, Budget, damaged
from agent.formats.description import V2_DATATYPES, TensorDescription
from agent.formats.protobuf import Message, read

MAX_TYPE_DEPTH = 16

# TensorProto.DataType → V2 name where there is one, else ONNX's own.
DATATYPES = dict(
    enumerate(
        (
            *("UNDEFINED", "FP32", "UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "BYTES"),
            *("BOOL", "FP16", "FP64", "UINT32", "UINT64", "COMPLEX64", "COMPLEX128", "BF16"),
            *("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "UINT4", "INT4"),
            *("FLOAT4E2M1", "FLOAT8E8M0", "UINT2", "INT2", "FLOAT6E2M3", "FLOAT6E3M2"),
        )
    )
)

_TENSOR, _SEQUENCE, _MAP, _OPAQUE, _SPARSE, _OPTIONAL = 1, 4, 5, 7, 8, 9
_KINDS = (_TENSOR, _SEQUENCE, _MAP, _OPAQUE, _SPARSE, _OPTIONAL)


def describe_value(view: memoryview, budget: Budget) -> TensorDescription:
    """One ValueInfoProto (name 1, type 2, doc_string 3)."""
    value = read([view], budget, (1, 2, 3))
    name, description = value.name(1), value.text(3)
    declared = read(value.views(2), budget, _KINDS)
    kind = _kind(declared)
    if kind != _TENSOR:
        return TensorDescription(
            name, "", ranked=False, kind=_type_name(declared, budget, 0), description=description
        )
    tensor = read(declared.views(_TENSOR), budget, (1, 2))
    datatype = _datatype(tensor)
    shape, dim_names = _shape(tensor, budget)
    plain = datatype in V2_DATATYPES
    return TensorDescription(
        name,
        datatype if plain else "",
        shape,
        dim_names,
        ranked=2 in tensor,
        kind="tensor" if plain else f"tensor({datatype})",
        description=description,
    )


def _kind(declared: Message) -> int | None:
    """Which member of TypeProto's oneof is set; parsers may differ on which of two counts."""
    present = [number for number in _KINDS if number in declared]
    if len(present) > 1:
        raise damaged("ONNX", "a type is two things at once")
    return present[0] if present else None


def _datatype(tensor: Message) -> str:
    code = tensor.integer32(1)
    return DATATYPES.get(code, f"DATATYPE_{code}")


def _shape(tensor: Message, budget: Budget) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """TensorShapeProto (dim 1: dim_value 1, dim_param 2) → sizes, -1 for free, and names."""
    views = read(tensor.views(2), budget, (1,)).views(1)
    if len(views) > MAX_RANK:
        raise ModelRejected(f"a tensor has {len(views)} dimensions (at most {MAX_RANK})")
    dims = [read([view], budget, (1, 2)) for view in views]
    return tuple(_size(dim) for dim in dims), tuple(dim.name(2) for dim in dims)


def _size(dim: Message) -> int:
    # Some exporters write -1 (or any negative) for a free dimension, and runtimes take it so.
    return max(dim.integer(1, -1), -1) if 2 not in dim else -1


def _type_name(declared: Message, budget: Budget, depth: int) -> str:
    """The type in words, e.g. "sequence(map(INT64,FP32))"; "unknown" where the file is silent."""
    if depth > MAX_TYPE_DEPTH:
        raise ModelRejected(f"a type of the ONNX model is nested more than {MAX_TYPE_DEPTH} deep")
    kind = _kind(declared)
    if kind is None:
        return "unknown"
    inner = read(declared.views(kind), budget, (1, 2))
    if kind == _TENSOR:
        return _datatype(inner)
    if kind == _SPARSE:
        return f"sparse_tensor({_datatype(inner)})"
    if kind == _OPAQUE:
        return f"opaque({inner.text(1)},{inner.text(2)})"
    if kind == _MAP:
        value = _type_name(read(inner.views(2), budget, _KINDS), budget, depth + 1)
        return f"map({_datatype(inner)},{value})"
    element = _type_name(read(inner.views(1), budget, _KINDS), budget, depth + 1)
    return f"{'sequence' if kind == _SEQUENCE else 'optional'}({element})"
