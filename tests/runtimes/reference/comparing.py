"""Runs one model through ONNX Runtime and through the reference runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from agent.runtimes.api import Array, Wanted
from agent.runtimes.onnx import OnnxRuntime
from agent.runtimes.reference.runtime import ReferenceRuntime
from tests.runtimes import models

ML = "ai.onnx.ml"
FLOAT, DOUBLE, INT64, STRING = (
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.INT64,
    TensorProto.STRING,
)
_CODES = {"f4": 1, "f8": 11, "i8": 7, "i4": 6, "u1": 2, "i1": 3, "b1": 9, "O": 8}


def one_node(
    op_type: str,
    inputs: Mapping[str, Array],
    *,
    constants: Mapping[str, Array] | None = None,
    outputs: Sequence[Any] = (FLOAT,),
    domain: str = "",
    opset: int = 17,
    ml: int = 3,
    **attributes: Any,
) -> bytes:
    """A model of one operator.

    Args:
        inputs: What it will get; every dimension is free.
        constants: Operands that are weights, after the inputs.
        outputs: The type of each.
    """
    weights = dict(constants or {})
    names = [f"y{place}" for place in range(len(outputs))]
    node = helper.make_node(op_type, [*inputs, *weights], names, domain=domain, **attributes)
    return models.onnx_bytes(
        [node],
        {
            name: (_code(array), [f"{name}{axis}" for axis in range(array.ndim)])
            for name, array in inputs.items()
        },
        {name: (kind, None) for name, kind in zip(names, outputs, strict=True)},
        initializers=[numpy_helper.from_array(value, name) for name, value in weights.items()],
        opsets=(("", opset), (ML, ml)),
    )


def _code(array: Array) -> int:
    return _CODES[array.dtype.str.lstrip("<|>=")]


def both(data: bytes, inputs: Mapping[str, Array]) -> list[tuple[Array, Array]]:
    """Return what the reference and ONNX Runtime give, by output."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(data)
        own = ReferenceRuntime().load(path, Wanted())
        other = OnnxRuntime().load(path, Wanted())
        given, expected = own.run(inputs), other.run(inputs)
    assert given.keys() == expected.keys()
    return [(given[name], expected[name]) for name in given]


def assert_equal(data: bytes, inputs: Mapping[str, Array], steps: int = 0) -> None:
    """Both give the same, in floating point up to some of its steps.

    Args:
        steps: How many representable numbers of the larger magnitude an answer may be off.
    """
    for given, expected in both(data, inputs):
        assert given.dtype == expected.dtype
        assert given.shape == expected.shape
        if given.dtype.kind != "f" or not steps:
            np.testing.assert_array_equal(given, expected)
            continue
        finite = np.abs(expected[np.isfinite(expected)]).max(initial=0)
        np.testing.assert_allclose(
            given,
            expected,
            rtol=steps * np.finfo(given.dtype).eps,
            atol=steps * float(np.spacing(given.dtype.type(finite))),
        )
