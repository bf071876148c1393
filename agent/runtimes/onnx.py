"""ONNX Runtime, on the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from agent.documents.device import RuntimeFacts
from agent.documents.manifest import Datatype, Tensor
from agent.documents.report import Placement
from agent.errors import AgentError, BadInput, ModelError, ModelRejected
from agent.runtimes.api import Array, Arrays, Wanted, shorten

# ONNX type names as `NodeArg.type` gives them. bfloat16, float8 and 4-bit types have no NumPy type.
DATATYPES: dict[str, Datatype] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
}
PROVIDER = "CPUExecutionProvider"
_TENSOR = re.compile(r"tensor\((\w+)\)$")
_MAP = re.compile(r"(?:seq\()?map\(\w+,tensor\((\w+)\)\)\)?$")
_OPSET = re.compile(
    r"Opset (\d+) is under development.*support for domain (\S+) is till opset (\d+)", re.DOTALL
)
_IR_VERSION = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_NO_MEMORY = re.compile(r"bad_alloc|[Ff]ailed to allocate memory|bad allocation")
_NO_OPERATOR = re.compile(
    r"(?P<custom>\S+?)(?:\(-?\d+\))? is not a registered function/op"
    r"|No Op registered for (?P<standard>\w+ with domain_version of \d+)"
)
# The library's own source files and C++ signatures are of no use to who reads the reason.
_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:"
    r"|/onnxruntime_src/\S+:\d+ (?:[^(]*\([^)]*\)(?: const)?(?: \[with [^\]]*\])? )?"
)


class OnnxRuntime:
    """Loads `.onnx` files."""

    name = "onnx"
    version: str = onnxruntime.__version__
    formats = ("onnx",)

    def __init__(self) -> None:
        # Its warnings are coloured stderr lines; what matters comes as an exception.
        onnxruntime.set_default_logger_severity(4)

    def facts(self) -> RuntimeFacts:
        """Say what this build offers; whether a provider works is shown by a session only."""
        return RuntimeFacts(
            self.name,
            usable=True,
            version=self.version,
            formats=self.formats,
            providers=tuple(onnxruntime.get_available_providers()),
        )

    def probe(self) -> str | None:
        """Say what this machine lacks: nothing, once the library is imported."""
        if PROVIDER not in onnxruntime.get_available_providers():
            return f"its build has no {PROVIDER}"
        return None

    def load(self, model: Path, wanted: Wanted, *, outputs: Sequence[str] = ()) -> OnnxSession:
        """Load a model by its path: from bytes, external data would be looked for in the working
        directory."""
        try:
            native = onnxruntime.InferenceSession(
                str(model), _options(wanted.threads), providers=[PROVIDER]
            )
        except MemoryError:
            raise
        except Exception as error:
            raise _refusal(error, model) from None
        return OnnxSession(native, outputs)


class OnnxSession:
    """One ONNX Runtime session.

    An output that is a map from class to score, or a sequence of them (ZipMap), is given as one
    FP32 tensor (rows, classes) with the classes in ascending order of their keys.
    """

    def __init__(self, native: Any, outputs: Sequence[str]) -> None:
        self._native = native
        # The Python layer's own work costs a fifth of a small run. Of its checks the library makes
        # all but one again: without that a kernel would read an input that is not there.
        self._run: Callable[..., list[Any]] = native._sess.run
        self.inputs: tuple[Tensor, ...] = tuple(_tensor(node) for node in native.get_inputs())
        nodes = [node for node in native.get_outputs() if not outputs or node.name in outputs]
        self.outputs: tuple[Tensor, ...] = tuple(_tensor(node) for node in nodes)
        provider: str = native.get_providers()[0]
        self.placement = Placement(wanted=provider, got=provider)
        self._names = [node.name for node in nodes]
        self._converted = [
            (place, _CONVERT[_kind(node.type)])
            for place, node in enumerate(nodes)
            if _kind(node.type) in _CONVERT
        ]
        self._input_count = len(self.inputs)
        # An empty shape may be one that the file does not say.
        self._has_free_inputs = any(not t.shape or -1 in t.shape for t in self.inputs)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run once; see `Session.run`."""
        if len(arrays) != self._input_count:
            wanted = ", ".join(tensor.name for tensor in self.inputs)
            raise BadInput(
                f"the model takes the inputs {wanted}; got {', '.join(arrays) or 'none'}"
            )
        try:
            values = self._run(self._names, arrays, None)
        except MemoryError:
            raise
        except Exception as error:
            raise self._failure(error) from None
        for place, convert in self._converted:
            values[place] = convert(values[place])
        return dict(zip(self._names, values, strict=True))

    def reset(self) -> None:
        """Nothing: an ONNX graph keeps no state between runs."""

    def close(self) -> None:
        """Free the session."""
        self._native = None
        self._run = _closed

    def _failure(self, error: Exception) -> AgentError | MemoryError:
        text = str(error)
        if _NO_MEMORY.search(text):
            return MemoryError(shorten(text))
        reason = shorten(_NOISE.sub("", text))
        if type(error).__name__ == "InvalidArgument" or isinstance(error, ValueError):
            return BadInput(f"the model does not take this input: {reason}")
        # With every dimension fixed the same shapes have run before: then it is not the message.
        if self._has_free_inputs:
            return BadInput(f"the model cannot run on an input of this shape: {reason}")
        return ModelError(f"the model failed while running: {reason}")


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = max(1, threads)
    options.inter_op_num_threads = 1
    if threads > 1:
        # Waiting threads would burn a core for the next message (20 runs 50 ms apart: 1.27 s of
        # CPU time spinning, 0.38 s without).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _tensor(node: Any) -> Tensor:
    """Describe an input or output by what the session says of it."""
    kind = _kind(node.type)
    element = (_TENSOR if kind == "tensor" else _MAP).match(node.type) if kind else None
    datatype = DATATYPES.get(element.group(1)) if element else None
    if datatype is None:
        raise ModelRejected(
            f"{node.name!r} is a {node.type}, which has no plain tensor",
            hint="export the model with tensors of a NumPy type as inputs and outputs",
        )
    shape = (-1, -1) if kind != "tensor" else tuple(map(_dimension, node.shape))
    return Tensor(name=node.name, datatype=datatype, shape=shape)


def _kind(type_name: str) -> str:
    """Return how an output's values come: `tensor`, `map`, `maps`, or nothing for the others."""
    if _TENSOR.match(type_name):
        return "tensor"
    if _MAP.match(type_name):
        return "maps" if type_name.startswith("seq(") else "map"
    return ""


def _dimension(size: object) -> int:
    return size if isinstance(size, int) and size >= 0 else -1


def _rows(maps: list[dict[Any, float]]) -> Array:
    keys = sorted(maps[0]) if maps else []
    rows = [[row[key] for key in keys] for row in maps]
    return np.array(rows, np.float32).reshape(len(maps), len(keys))


_CONVERT: dict[str, Callable[[Any], Array]] = {"maps": _rows, "map": lambda one: _rows([one])}


def _refusal(error: Exception, model: Path) -> AgentError | MemoryError:
    text = str(error)
    if _NO_MEMORY.search(text):
        return MemoryError(shorten(text))
    newer = f"this is ONNX Runtime {onnxruntime.__version__}; update it, or export for an older one"
    if found := _OPSET.search(text):
        opset, domain, known = found.groups()
        return ModelRejected(
            f"this runtime does not know opset {opset} (of {domain}; it knows up to {known})",
            hint=newer,
        )
    if found := _IR_VERSION.search(text):
        return ModelRejected(
            f"this runtime does not know IR version {found[1]} (it knows up to {found[2]})",
            hint=newer,
        )
    if found := _NO_OPERATOR.search(text):
        operator = found["custom"] or found["standard"]
        return ModelRejected(f"this runtime does not know the operator {operator}", hint=newer)
    if type(error).__name__ == "InvalidProtobuf":
        return ModelRejected(
            f"{model.name} is no ONNX model: its bytes are not the Protocol Buffers they must be"
        )
    reason = shorten(_NOISE.sub("", text))
    return ModelRejected(f"ONNX Runtime {onnxruntime.__version__} refuses {model.name}: {reason}")


def _closed(*_: object) -> list[Any]:
    raise RuntimeError("the session is closed")
