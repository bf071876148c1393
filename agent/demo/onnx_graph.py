"""An ONNX graph under construction: nodes and constants in order, one input, one output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import helper, numpy_helper

# Opset 13 and IR 8 load in every ONNX Runtime that a supported board may carry (1.17 on).
OPSET, IR_VERSION = 13, 8


class OnnxGraph:
    """Each node is named after its only output.

    Args:
        name: Of the graph.
        source: Name of the only input, with its `dtype` and `shape`.
        dtype: Of the input.
        shape: Of the input, the batch included.
    """

    def __init__(self, name: str, source: str, dtype: DTypeLike, shape: Sequence[int]) -> None:
        self._name = name
        self._input = _value(source, dtype, shape)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        node = helper.make_node(op, list(inputs), [output], name=output, **attributes)
        self._nodes.append(node)
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Append an initializer; returns its name."""
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def dense(
        self, rows: str, name: str, weights: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> str:
        """Append a Gemm; weights are (inputs, outputs)."""
        operands = [self.constant(f"{name}_weights", weights), self.constant(f"{name}_bias", bias)]
        return self.add("Gemm", [rows, *operands], name)

    def write(
        self,
        path: Path,
        output: str,
        shape: Sequence[int],
        *,
        version: int = 1,
        description: str = "",
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """Check the graph and write it; `output` is float32 of `shape`. Same graph, same bytes."""
        outputs = [_value(output, np.float32, shape)]
        model = helper.make_model(
            helper.make_graph(self._nodes, self._name, [self._input], outputs, self._constants),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="edgeward",
            model_version=version,
            doc_string=description,
        )
        helper.set_model_props(model, dict(properties or {}))
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))


def _value(name: str, dtype: DTypeLike, shape: Sequence[int]) -> Any:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, element, list(shape))
