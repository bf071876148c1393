"""ONNX Runtime, on the CPU or on an execution provider of the installed build."""

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
from agent.runtimes import installed, onnx_providers
from agent.runtimes.api import Array, Arrays, Wanted, shorten
from agent.runtimes.onnx_refusals import limit_in, needs_memory, reason_in, refusal
from agent.runtimes.onnx_session import open_session

OLDEST = "1.17"
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
_TENSOR = re.compile(r"tensor\((\w+)\)$")
_MAP = re.compile(r"(?:seq\()?map\(\w+,tensor\((\w+)\)\)\)?$")
# Models that no version takes, each in one respect: IR version 255, operator set 2^31 - 1.
_TOO_NEW = (
    b"\x08\xff\x01:\x03\x12\x01gB\x02\x10\x01",
    b"\x08\x08:\x03\x12\x01gB\x06\x10\xff\xff\xff\xff\x07",
)


class OnnxRuntime:
    """Loads `.onnx` and `.ort` files."""

    name = "onnx"
    version: str = onnxruntime.__version__
    formats = ("onnx", "ort")

    def __init__(self) -> None:
        installed.require_version("onnxruntime", self.version, OLDEST)
        self._packages = installed.distributions(onnxruntime.__file__)
        installed.refuse_mixture("ONNX Runtime", self._packages)
        # Its warnings are coloured stderr lines; what matters comes as an exception.
        onnxruntime.set_default_logger_severity(4)

    def facts(self) -> RuntimeFacts:
        """Say what this build offers; whether a provider works is shown by a session only."""
        newest = _limits()
        offer = onnx_providers.offered(onnxruntime.get_available_providers())
        return RuntimeFacts(
            self.name,
            usable=True,
            version=self.version,
            package=next(iter(self._packages), ""),
            formats=self.formats,
            providers=offer,
            compiles=onnx_providers.compiling(offer, _library_folders()),
            opset=newest.get("opset"),
            ir_version=newest.get("ir_version"),
        )

    def probe(self) -> str | None:
        """Say what this machine lacks: nothing, once the library is imported."""
        if onnx_providers.CPU not in onnxruntime.get_available_providers():
            return f"its build has no {onnx_providers.CPU}"
        return None

    def load(self, model: Path, wanted: Wanted, *, outputs: Sequence[str] = ()) -> OnnxSession:
        """Load a model; see `Runtime.load`."""
        try:
            native, placement = open_session(model, wanted)
        except (AgentError, MemoryError):
            raise
        except Exception as error:
            raise refusal(error, self.version, model.name) from None
        return OnnxSession(native, placement, outputs)


def _library_folders() -> list[Path]:
    """Where TensorRT's library is installed by its own packages, and by the system's."""
    packages = Path(onnxruntime.__file__).parents[1]
    return [*packages.glob("tensorrt*_libs"), *Path("/usr/lib").glob("*-linux-gnu")]


def _limits() -> dict[str, int]:
    """Return the newest opset and IR version that this library knows: what it says itself when it
    is given newer ones. Nothing of a refused model stays, no thread either."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    known: dict[str, int] = {}
    for model in _TOO_NEW:
        try:
            onnxruntime.InferenceSession(model, options, providers=[onnx_providers.CPU])
        except Exception as error:
            known.update(filter(None, [limit_in(str(error))]))
    return known


class OnnxSession:
    """One ONNX Runtime session.

    An output that is a map from class to score, or a sequence of them (ZipMap), is given as one
    FP32 tensor (rows, classes) with the classes in ascending order of their keys.
    """

    def __init__(self, native: Any, placement: Placement, outputs: Sequence[str]) -> None:
        self._native = native
        # The Python layer's own work costs a fifth of a small run. Of its checks the library makes
        # all but one again: without that a kernel would read an input that is not there.
        self._run: Callable[..., list[Any]] = native._sess.run
        self.inputs: tuple[Tensor, ...] = tuple(_tensor(node) for node in native.get_inputs())
        nodes = [node for node in native.get_outputs() if not outputs or node.name in outputs]
        self.outputs: tuple[Tensor, ...] = tuple(_tensor(node) for node in nodes)
        self.placement = placement
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
        if needs_memory(text):
            return MemoryError(shorten(text))
        reason = reason_in(text)
        if type(error).__name__ == "InvalidArgument" or isinstance(error, ValueError):
            return BadInput(f"the model does not take this input: {reason}")
        # With every dimension fixed the same shapes have run before: then it is not the message.
        if self._has_free_inputs:
            return BadInput(f"the model cannot run on an input of this shape: {reason}")
        return ModelError(f"the model failed while running: {reason}")


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


def _closed(*_: object) -> list[Any]:
    raise RuntimeError("the session is closed")
