"""OpenVINO, on Intel's processors, graphics and neural units, and on the CPUs of ARM boards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.documents.device import RuntimeFacts
from agent.documents.manifest import Datatype, Tensor
from agent.documents.report import Placement
from agent.errors import BadInput, ModelError, ModelRejected, RuntimeUnavailable
from agent.formats.magic import is_onnx, is_tflite
from agent.runtimes import installed
from agent.runtimes.api import Array, Arrays, Wanted, shorten
from agent.runtimes.inputs import check_inputs
from agent.runtimes.openvino_silent import FrontEndManager, openvino

OLDEST = "2024.0"
CPU = "CPU"
# The one file that it compiles into: `CompiledModel.export_model`. Its own cache (CACHE_DIR) would
# still read the model at each start, and chooses the names of its files itself.
BLOB = "model.blob"
# Of the library's properties, those that name no file; its names and values.
OPTIONS: Mapping[str, re.Pattern[str]] = {
    "EXECUTION_MODE_HINT": re.compile("ACCURACY|PERFORMANCE"),
    "INFERENCE_PRECISION_HINT": re.compile("f32|f16|bf16"),
    "NUM_STREAMS": re.compile(r"\d{1,3}"),
    "PERFORMANCE_HINT": re.compile("LATENCY|THROUGHPUT"),
}
_PLUGIN = re.compile(r"libopenvino_(?:intel|arm)_(cpu|gpu|npu)_plugin\.so")
_NO_OPERATOR = re.compile(r"No conversion rule found for operations: ([^\n]+)")
_NO_MEMORY = re.compile(r"bad_alloc|[Cc]an(?:no|')t allocate|[Ff]ailed to allocate|out of memory")
# Where in its own source the library noticed.
_NOISE = re.compile(r"(?:Exception from|Check '.*' failed at) \S+:\d+:|FrontEnd API failed with ")
_TYPES: Mapping[str, Datatype] = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
}


class OpenvinoRuntime:
    """Loads `.onnx` and `.tflite` files."""

    name = "openvino"
    formats = ("onnx", "tflite")

    def __init__(self) -> None:
        self.version: str = openvino.__version__.partition("-")[0]
        installed.require_version("openvino", self.version, OLDEST)
        self._providers = _plugins(Path(openvino.__file__).parent / "libs")

    def facts(self) -> RuntimeFacts:
        """Say what this build offers; only a session starts a plugin."""
        return RuntimeFacts(
            self.name,
            usable=True,
            version=self.version,
            package=next(iter(installed.distributions(openvino.__file__)), ""),
            formats=self.formats,
            providers=self._providers,
            compiles=dict.fromkeys(self._providers, ""),
        )

    def probe(self) -> str | None:
        """Say what this machine lacks."""
        return None if CPU in self._providers else "its build has no plugin for the CPU"

    def load(self, model: Path, wanted: Wanted, *, outputs: Sequence[str] = ()) -> OpenvinoSession:
        """Load a model by its path, and compile it for a device, unless that was done before."""
        device = wanted.provider or CPU
        properties = self._properties(device, wanted)
        core = openvino.Core()
        compiled, told = None, ""
        if wanted.cache is not None and not wanted.fill:
            compiled, told = _import(core, wanted.cache / BLOB, device, properties)
        if compiled is not None:
            return OpenvinoSession(compiled, device, outputs, outputs, told=told)
        graph = _read(model)
        names = [port.any_name for port in graph.outputs]
        try:
            compiled = core.compile_model(graph, device, properties)
            if wanted.cache is not None and wanted.fill:
                (wanted.cache / BLOB).write_bytes(_exported(compiled))
            return OpenvinoSession(compiled, device, outputs, names, told=told)
        except RuntimeError as error:
            if _NO_MEMORY.search(str(error)):
                raise MemoryError(shorten(error)) from None
            if device == CPU:
                raise _refusal(error, model) from None
            why = f"{device} does not work here: {_reason(error)}"
        on_cpu = self._properties(CPU, Wanted(threads=wanted.threads))
        try:
            compiled = core.compile_model(graph, CPU, on_cpu)
        except RuntimeError as error:
            raise _refusal(error, model) from None
        return OpenvinoSession(compiled, device, outputs, names, why)

    def _properties(self, device: str, wanted: Wanted) -> dict[str, str]:
        if device not in self._providers:
            raise RuntimeUnavailable(
                f"this build of OpenVINO has no device {device!r}",
                hint=f"it has {', '.join(self._providers)}",
            )
        for key, value in wanted.options.items():
            if key not in OPTIONS:
                raise RuntimeUnavailable(
                    f"OpenVINO has no option {key!r} that may be set",
                    hint=f"it takes {', '.join(OPTIONS)}",
                )
            if not OPTIONS[key].fullmatch(value):
                raise RuntimeUnavailable(
                    f"OpenVINO's option {key} does not take {value[:80]!r}",
                    hint=f"it must match {OPTIONS[key].pattern}",
                )
        properties = {"PERFORMANCE_HINT": "LATENCY"}
        if device == CPU:
            # Otherwise a processor that computes in bf16 does so, unasked.
            properties["INFERENCE_PRECISION_HINT"] = "f32"
            properties["INFERENCE_NUM_THREADS"] = str(max(1, wanted.threads))
        return {**properties, **wanted.options}


class OpenvinoSession:
    """One compiled model and one request to it.

    Args:
        compiled: The library's.
        wanted: What it was to be compiled for.
        outputs: Names of those that are given; none: all.
        names: That the file is known to give its outputs.
        why: Why it was compiled for the CPU instead.
        told: What became of what was compiled before; see `CompiledSession`.
    """

    def __init__(
        self,
        compiled: Any,
        wanted: str,
        outputs: Sequence[str],
        names: Sequence[str],
        why: str = "",
        told: str = "",
    ) -> None:
        named = [(_name(port, names), place, port) for place, port in enumerate(compiled.outputs)]
        chosen = [each for each in named if not outputs or each[0] in outputs]
        self.inputs = tuple(_tensor(port, port.any_name) for port in compiled.inputs)
        self.outputs = tuple(_tensor(port, name) for name, _, port in chosen)
        self.compiled = told
        self._request: Any = compiled.create_infer_request()
        self._places = {name: place for name, place, _ in chosen}
        self._ranked = {
            port.any_name: bool(port.partial_shape.rank.is_static) for port in compiled.inputs
        }
        self._has_free_inputs = any(not t.shape or -1 in t.shape for t in self.inputs)
        got = ",".join(map(str, compiled.get_property("EXECUTION_DEVICES")))
        # A whole graph is compiled for one device, or not at all.
        self.placement = Placement(wanted, got, 1.0, 1.0, why[:1000])

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run once; see `Session.run`."""
        if self._request is None:
            raise RuntimeError("the session is closed")
        check_inputs(self.inputs, self._ranked, arrays)
        try:
            # Copies of what goes in and of what comes out.
            results = self._request.infer(dict(arrays))
            return {name: _own(results[place]) for name, place in self._places.items()}
        except RuntimeError as error:
            raise self._failure(error) from None

    def reset(self) -> None:
        """Forget the state of recurrent operators."""
        self._request.reset_state()

    def close(self) -> None:
        """Free the request and its model."""
        self._request = None

    def _failure(self, error: Exception) -> Exception:
        if _NO_MEMORY.search(str(error)):
            return MemoryError(shorten(error))
        if self._has_free_inputs:
            return BadInput(f"the model cannot run on an input of this shape: {_reason(error)}")
        return ModelError(f"the model failed while running: {_reason(error)}")


def _import(core: Any, blob: Path, device: str, properties: dict[str, str]) -> tuple[Any, str]:
    """Return what was compiled before, or None; and what became of it."""
    try:
        data = blob.read_bytes()
    except OSError:
        return None, ""
    try:
        return core.import_model(data, device, properties), "used"
    except RuntimeError:
        # Of another version or for another device: its place says that it is for this one.
        return None, "refused"


def _exported(compiled: Any) -> bytes:
    """Return what a later start is loaded from; it holds the weights too."""
    data = compiled.export_model()
    return data if isinstance(data, bytes) else bytes(data.getbuffer())


def _plugins(folder: Path) -> tuple[str, ...]:
    found = (_PLUGIN.match(path.name) for path in sorted(folder.glob("libopenvino_*_plugin.so*")))
    return tuple(dict.fromkeys(match[1].upper() for match in found if match))


def _read(model: Path) -> Any:
    """Read a graph with the reader of its format: the library's own guess tries all that it has."""
    try:
        with model.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ModelRejected(f"{model.name} cannot be read: {error.strerror}") from None
    framework = "tflite" if is_tflite(head) else "onnx" if is_onnx(head) else ""
    if not framework:
        raise ModelRejected(f"{model.name} is neither an ONNX nor a TFLite model")
    if framework == "tflite" and model.suffix != ".tflite":
        raise ModelRejected("OpenVINO reads a TFLite model only from a file called *.tflite")
    try:
        reader = FrontEndManager().load_by_framework(framework)
        return reader.convert(reader.load(str(model)))
    except MemoryError:
        raise
    except Exception as error:
        # The readers' own errors have no base in common.
        raise _refusal(error, model) from None


def _refusal(error: Exception, model: Path) -> ModelRejected:
    if found := _NO_OPERATOR.search(str(error)):
        return ModelRejected(
            f"OpenVINO does not know the operator {found[1].strip()}",
            hint="run the model with ONNX Runtime",
        )
    return ModelRejected(
        f"OpenVINO {openvino.__version__.partition('-')[0]} refuses {model.name}: {_reason(error)}"
    )


def _reason(error: Exception) -> str:
    return shorten(_NOISE.sub("", str(error)))


def _name(port: Any, names: Sequence[str]) -> str:
    """Return an output's name: one that is computed by an operator which does nothing, and so is
    left out, also has the name of what that was given."""
    return next((name for name in names if name in port.names), port.any_name)


def _tensor(port: Any, name: str) -> Tensor:
    datatype = _TYPES.get(port.element_type.type_name)
    if datatype is None:
        raise ModelRejected(f"{name!r} has the type {port.element_type}, which has no array")
    shape = port.partial_shape
    # Of an unknown number of dimensions nothing can be said.
    sizes = shape if shape.rank.is_static else ()
    free = [size.get_length() if size.is_static else -1 for size in sizes]
    return Tensor(name=name, datatype=datatype, shape=tuple(free))


def _own(result: Any) -> Array:
    array: Array = np.asarray(result)
    return array if array.flags.owndata and array.flags.writeable else array.copy()
