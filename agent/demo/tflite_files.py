"""The demo's thermal model as a TFLite file, written field by field without TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from agent.demo.networks import Layer, Network

_OPERATOR = schema.BuiltinOperator
_OPTIONS = schema.BuiltinOptions


def write_excess_heat(
    path: Path, network: Network, measured: Layer, scale: Layer, shape: tuple[int, ...]
) -> None:
    """The graph: expected = network(x); anomaly = logistic(scale(measured(x) - expected)).

    Args:
        path: Where to write.
        network: From the flattened window to the expected temperature.
        measured: Picks the measured temperature out of the flattened window.
        scale: One number to one, from excess kelvins to logits.
        shape: Of one window, without the batch.
    """
    graph = _Graph()
    size = int(np.prod(shape))
    readings = graph.tensor("readings", (1, *shape))
    row = graph.reshape(readings, "row", (1, size))
    expected = row
    for number, layer in enumerate(network.layers):
        is_last = number == len(network.layers) - 1
        name = "expected_c" if is_last else f"dense_{number}"
        expected = graph.dense(expected, name, layer, relu=not is_last)
    actual = graph.dense(row, "measured_c", measured)
    excess = graph.plain(_OPERATOR.SUB, [actual, expected], "excess_k")
    logit = graph.dense(excess, "logit", scale)
    anomaly = graph.plain(_OPERATOR.LOGISTIC, [logit], "anomaly")
    path.write_bytes(graph.packed([readings], [anomaly, expected]))


class _Graph:
    """One subgraph under construction; tensors are known by their number."""

    def __init__(self) -> None:
        self._buffers: list[Any] = [schema.BufferT()]  # 0 means "no data", by the format's rule
        self._codes: list[int] = []
        self._subgraph = schema.SubGraphT()
        self._subgraph.name = "main"
        self._subgraph.tensors, self._subgraph.operators = [], []

    def tensor(
        self, name: str, shape: Sequence[int], data: NDArray[np.float32 | np.int32] | None = None
    ) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name, list(shape)
        integers = data is not None and data.dtype == np.int32
        tensor.type = schema.TensorType.INT32 if integers else schema.TensorType.FLOAT32
        tensor.buffer = 0 if data is None else self._buffer(data)
        self._subgraph.tensors.append(tensor)
        return len(self._subgraph.tensors) - 1

    def dense(self, source: int, name: str, layer: Layer, *, relu: bool = False) -> int:
        options = schema.FullyConnectedOptionsT()
        kind = schema.ActivationFunctionType
        options.fusedActivationFunction = kind.RELU if relu else kind.NONE
        # TFLite keeps a dense layer's weights as (outputs, inputs).
        weights = self.tensor(f"{name}/weights", layer.weights.T.shape, layer.weights.T)
        bias = self.tensor(f"{name}/bias", layer.bias.shape, layer.bias)
        output = self.tensor(name, (1, len(layer.bias)))
        inputs = [source, weights, bias]
        self._operator(
            _OPERATOR.FULLY_CONNECTED, inputs, output, _OPTIONS.FullyConnectedOptions, options
        )
        return output

    def reshape(self, source: int, name: str, shape: Sequence[int]) -> int:
        options = schema.ReshapeOptionsT()
        options.newShape = list(shape)
        wanted = self.tensor(f"{name}/shape", (len(shape),), np.array(shape, np.int32))
        output = self.tensor(name, shape)
        self._operator(
            _OPERATOR.RESHAPE, [source, wanted], output, _OPTIONS.ReshapeOptions, options
        )
        return output

    def plain(self, code: int, inputs: Sequence[int], name: str) -> int:
        """An operator without options, whose output is shaped like its first input."""
        output = self.tensor(name, self._subgraph.tensors[inputs[0]].shape)
        self._operator(code, inputs, output)
        return output

    def packed(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        self._subgraph.inputs, self._subgraph.outputs = list(inputs), list(outputs)
        model = schema.ModelT()
        model.version, model.description = 3, "edgeward demo: heat beyond what the load explains"
        model.subgraphs, model.buffers = [self._subgraph], self._buffers
        model.operatorCodes = [_operator_code(code) for code in self._codes]
        model.signatureDefs = [self._signature(inputs, outputs)]
        builder = flatbuffers.Builder(4096)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _buffer(self, data: NDArray[np.float32 | np.int32]) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        self._buffers.append(buffer)
        return len(self._buffers) - 1

    def _operator(
        self, code: int, inputs: Sequence[int], output: int, kind: int = 0, options: Any = None
    ) -> None:
        if code not in self._codes:
            self._codes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.index(code)
        operator.inputs, operator.outputs = list(inputs), [output]
        operator.builtinOptionsType, operator.builtinOptions = kind, options
        self._subgraph.operators.append(operator)

    def _signature(self, inputs: Sequence[int], outputs: Sequence[int]) -> Any:
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs = [self._named(number) for number in inputs]
        signature.outputs = [self._named(number) for number in outputs]
        return signature

    def _named(self, number: int) -> Any:
        named = schema.TensorMapT()
        named.name, named.tensorIndex = self._subgraph.tensors[number].name, number
        return named


def _operator_code(code: int) -> Any:
    """Old readers look at an 8-bit field and new ones at a 32-bit one: both are set."""
    operator_code = schema.OperatorCodeT()
    operator_code.builtinCode, operator_code.version = code, 1
    operator_code.deprecatedBuiltinCode = min(code, 127)
    return operator_code
