"""One tensor of a TFLite model → its description."""

from __future__ import annotations

import math

from agent.errors import ModelRejected
from agent.formats.bounds import MAX_RANK, damaged, shown
from agent.formats.description import V2_DATATYPES, Normalisation, TensorDescription
from agent.formats.flatbuffer import Table

_WHAT = "TFLite"

# TensorType → V2 name where there is one, else TFLite's own.
DATATYPES = dict(
    enumerate(
        (
            *("FP32", "FP16", "INT32", "UINT8", "INT64", "BYTES", "BOOL", "INT16", "COMPLEX64"),
            *("INT8", "FP64", "COMPLEX128", "UINT64", "RESOURCE", "VARIANT", "UINT32", "UINT16"),
            *("INT4", "BF16", "INT2", "UINT4", "FLOAT8_E4M3FN", "FLOAT8_E5M2"),
        )
    )
)
_INTEGERS = frozenset(("INT8", "UINT8", "INT16", "UINT16", "INT32", "INT4", "INT2", "UINT4"))


def describe_tensor(
    tensor: Table, description: str, normalisation: Normalisation | None
) -> TensorDescription:
    """Describe one input or output (Tensor table).

    Raises:
        ModelRejected: more dimensions than allowed, or values that contradict each other.
    """
    datatype = _datatype(tensor)
    default = _dimensions(tensor, 4)
    signature = _dimensions(tensor, 18)
    shape = signature if len(signature) == len(default) else default
    plain = datatype in V2_DATATYPES
    scale, zero_point = _quantisation(tensor)
    return TensorDescription(
        tensor.name(10),
        datatype if plain else "",
        shape,
        ("",) * len(shape),
        # The flag is young: a file without it that names dimensions has a rank all the same.
        ranked=bool(shape) or tensor.number(20, "B") != 0,
        default_shape=default,
        scale=scale,
        zero_point=zero_point,
        kind="tensor" if plain else f"tensor({datatype})",
        description=description,
        normalisation=normalisation,
    )


def is_quantised(tensor: Table) -> bool:
    """Whether a tensor holds integers that stand for real numbers."""
    parameters = tensor.table(12)
    return (
        parameters is not None
        and parameters.count(8, 4) > 0
        and _datatype(tensor) in _INTEGERS - {"INT32"}
    )


def is_variable(tensor: Table) -> bool:
    return tensor.number(14, "B") != 0


def _datatype(tensor: Table) -> str:
    code = tensor.number(6, "b")
    return DATATYPES.get(code, f"TYPE_{code}")


def _dimensions(tensor: Table, slot: int) -> tuple[int, ...]:
    rank = tensor.count(slot, 4)
    if rank > MAX_RANK:
        raise ModelRejected(f"a tensor has {rank} dimensions (at most {MAX_RANK})")
    sizes = tensor.numbers(slot, "i")
    if any(size < -1 for size in sizes):
        raise damaged(_WHAT, f"tensor {shown(tensor.name(10))} has the shape {list(sizes)}")
    return sizes


def _quantisation(tensor: Table) -> tuple[float | None, int | None]:
    """Scale and zero point for the whole tensor; per-channel scales are for weights only."""
    parameters = tensor.table(12)
    if parameters is None or _datatype(tensor) not in _INTEGERS or parameters.count(8, 4) != 1:
        return None, None
    scale = parameters.floats(8)[0]
    if not (math.isfinite(scale) and scale >= 0):
        raise damaged(_WHAT, f"tensor {shown(tensor.name(10))} has the scale {scale}")
    zero_points = parameters.numbers(10, "q") if parameters.count(10, 8) == 1 else (0,)
    return (scale, zero_points[0]) if scale else (None, None)
