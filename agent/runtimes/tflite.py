"""LiteRT (or its predecessor TensorFlow Lite), on the CPU, with XNNPACK or without."""

from __future__ import annotations

import re
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.documents.device import RuntimeFacts
from agent.documents.manifest import Datatype, Tensor
from agent.documents.report import Placement
from agent.errors import BadInput, ModelError, ModelRejected, RuntimeUnavailable
from agent.runtimes import installed
from agent.runtimes.api import Array, Arrays, Wanted, shorten
from agent.runtimes.tflite_placement import placement

try:
    import ai_edge_litert as package
    from ai_edge_litert.interpreter import Interpreter, OpResolverType, load_delegate
except ImportError as litert:
    # The only one with wheels for 32-bit ARM; the same interface.
    try:
        import tflite_runtime as package
        from tflite_runtime.interpreter import Interpreter, OpResolverType, load_delegate
    except ModuleNotFoundError:
        # The one that is meant, where neither is there.
        raise litert from None

TITLE, DISTRIBUTION, OLDEST = {
    "ai_edge_litert": ("LiteRT", "ai-edge-litert", "1.2"),
    "tflite_runtime": ("TensorFlow Lite", "tflite-runtime", "2.5"),
}[package.__name__]
CPU, XNNPACK = "CPU", "XNNPACK"
# The last release: nobody will build it for a newer NumPy.
PROVIDERS = (CPU, XNNPACK)
_LAST_TFLITE_RUNTIME = (2, 14)
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
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
    "bytes": "BYTES",
    "str": "BYTES",
}
EDGETPU_OPERATOR = "edgetpu-custom-op"
# Operators over resource variables, which `reset_all_variables` does not clear.
_VARIABLE_OPERATORS = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}
_CUSTOM_OPERATOR = re.compile(r"unresolved custom op: (\S+?)\.?(?:Node number|\s|$)")
_SELECT_OPERATORS = re.compile(r"Select TensorFlow op\(s\)")
_NO_MEMORY = re.compile(r"bad_alloc|[Ff]ailed to allocate|[Oo]ut of memory")


class TfliteRuntime:
    """Loads `.tflite` files."""

    name = "tflite"
    formats = ("tflite",)

    def __init__(self) -> None:
        self.version: str = package.__version__
        installed.require_version(DISTRIBUTION, self.version, OLDEST)
        _require_its_numpy(self.version)

    def facts(self) -> RuntimeFacts:
        """Say what this build offers."""
        return RuntimeFacts(
            self.name,
            usable=True,
            version=self.version,
            package=DISTRIBUTION,
            formats=self.formats,
            providers=PROVIDERS,
        )

    def probe(self) -> str | None:
        """Say what this machine lacks: nothing, once the library is imported."""
        return None

    def load(self, model: Path, wanted: Wanted, *, outputs: Sequence[str] = ()) -> TfliteSession:
        """Load a model by its path, so that its weights are mapped and not copied."""
        _check_wanted(wanted)
        return TfliteSession(model, wanted, outputs)


def _require_its_numpy(version: str) -> None:
    """Refuse the wheels that were built for NumPy 1 beside another: they are imported without a
    word, and any model ends in a SystemError or a crash."""
    if package.__name__ != "tflite_runtime" or installed.numbers(version) > _LAST_TFLITE_RUNTIME:
        return
    if installed.numbers(np.__version__) >= (2,):
        raise RuntimeUnavailable(
            f"tflite-runtime {version} was built for NumPy 1 and fails with NumPy {np.__version__}",
            hint="pip install 'numpy<2', or use ai-edge-litert, which has no wheel for 32-bit ARM",
        )


def _check_wanted(wanted: Wanted) -> None:
    if wanted.provider not in ("", *PROVIDERS):
        raise RuntimeUnavailable(
            f"{TITLE} has no provider {wanted.provider!r} here", hint=f"it has {CPU}, {XNNPACK}"
        )
    if wanted.options:
        raise RuntimeUnavailable(
            f"{TITLE} has no option {next(iter(wanted.options))!r}", hint="it takes none"
        )


class TfliteSession:
    """One interpreter. Free dimensions are resized when a run's shapes differ from the last.

    Args:
        model: The file, or its bytes.
        wanted: On what.
        outputs: As for `Runtime.load`.
        delegates: External ones, which take operators before XNNPACK does.
    """

    def __init__(
        self,
        model: Path | bytes,
        wanted: Wanted,
        outputs: Sequence[str],
        delegates: Sequence[Any] = (),
    ) -> None:
        self._model = model
        self._wanted = wanted
        self._delegates = delegates
        self._interpreter: Any = _interpreter(model, wanted, delegates)
        inputs = self._interpreter.get_input_details()
        chosen = [
            details
            for details in self._interpreter.get_output_details()
            if not outputs or details["name"] in outputs
        ]
        self.inputs: tuple[Tensor, ...] = tuple(map(_tensor, inputs))
        self.outputs: tuple[Tensor, ...] = tuple(map(_tensor, chosen))
        self._inputs: list[tuple[str, int]] = [(d["name"], d["index"]) for d in inputs]
        self._outputs: list[tuple[str, int]] = [(d["name"], d["index"]) for d in chosen]
        # The shape that each input with free dimensions is allocated for.
        self._allocated: dict[str, tuple[int, ...]] = {
            details["name"]: tuple(details["shape"])
            for details, tensor in zip(inputs, self.inputs, strict=True)
            if -1 in tensor.shape
        }
        # As the interpreter lists them, those that delegates have taken included.
        self.operators: list[dict[str, Any]] = self._interpreter._get_ops_details()
        self.placement: Placement = placement(wanted.provider, XNNPACK, self.operators)
        operators = {entry["op_name"] for entry in self.operators}
        self._has_variables = not _VARIABLE_OPERATORS.isdisjoint(operators)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run once; see `Session.run`."""
        interpreter = self._interpreter
        if self._allocated:
            self._resize(arrays)
        try:
            for name, index in self._inputs:
                interpreter.set_tensor(index, arrays[name])
        except (ValueError, KeyError, TypeError) as error:
            raise self._misfit(arrays, error) from None
        try:
            interpreter.invoke()
            # A copy each, with the shape that this run gave it.
            return {name: interpreter.get_tensor(index) for name, index in self._outputs}
        except (RuntimeError, ValueError) as error:
            raise self._failure(error) from None

    def reset(self) -> None:
        """Forget the state of recurrent operators; resource variables need a new interpreter."""
        if not self._has_variables:
            try:
                self._interpreter.reset_all_variables()
            except RuntimeError as error:
                reason = _last_words(error)
                raise ModelError(f"the model's state cannot be reset: {reason}") from None
            return
        self._interpreter = _interpreter(self._model, self._wanted, self._delegates)
        self._allocated = {
            details["name"]: tuple(details["shape"])
            for details in self._interpreter.get_input_details()
            if details["name"] in self._allocated
        }

    def close(self) -> None:
        """Free the interpreter."""
        self._interpreter = None

    def _resize(self, arrays: Arrays) -> None:
        changed = {
            name: arrays[name].shape
            for name, shape in self._allocated.items()
            if name in arrays and arrays[name].shape != shape
        }
        if not changed:
            return
        indices = dict(self._inputs)
        # Until it has worked, the shapes count as unknown: a failed one must not be trusted.
        self._allocated.update(dict.fromkeys(changed, (-1,)))
        try:
            for name, shape in changed.items():
                self._interpreter.resize_tensor_input(indices[name], shape, strict=True)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            if _needs_too_much(self._interpreter, str(error)):
                raise MemoryError(_last_words(error)) from None
            raise BadInput(f"the model does not take this shape: {_last_words(error)}") from None
        self._allocated.update(changed)

    def _misfit(self, arrays: Arrays, error: Exception) -> BadInput:
        for tensor in self.inputs:
            if tensor.name not in arrays:
                return BadInput(f"the input {tensor.name!r} is missing")
        return BadInput(f"the model does not take this input: {_last_words(error)}")

    def _failure(self, error: Exception) -> Exception:
        if _needs_too_much(self._interpreter, str(error)):
            return MemoryError(_last_words(error))
        return ModelError(f"the model failed while running: {_last_words(error)}")


def external_delegate(library: str, options: Mapping[str, str]) -> Any:
    """Create a delegate from a native library, which the loader finds by its name.

    Raises:
        ValueError: The library gives none; its words, where it has any, stand after a line's end.
        OSError: It does not load.
    """
    return load_delegate(library, dict(options))


def _interpreter(model: Path | bytes, wanted: Wanted, delegates: Sequence[Any]) -> Any:
    if isinstance(model, bytes):
        source: dict[str, Any] = {"model_content": model}
    else:
        source = {"model_path": str(model)}
    # Unless it is turned off, XNNPACK takes all operators that it knows.
    kernels = "BUILTIN_WITHOUT_DEFAULT_DELEGATES" if wanted.provider == CPU else "AUTO"
    try:
        interpreter = Interpreter(
            **source,
            experimental_delegates=list(delegates) or None,
            num_threads=max(1, wanted.threads),
            experimental_op_resolver_type=OpResolverType[kernels],
        )
    except (ValueError, RuntimeError) as error:
        raise _refusal(error, model) from None
    try:
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        if _needs_too_much(interpreter, str(error)):
            raise MemoryError(_last_words(error)) from None
        raise _refusal(error, model) from None
    return interpreter


def _refusal(error: Exception, model: Path | bytes) -> ModelRejected:
    text = str(error)
    if found := _CUSTOM_OPERATOR.search(text):
        if found[1] == EDGETPU_OPERATOR:
            return ModelRejected(
                "the variant needs an Edge TPU: it is compiled for it and for nothing else",
                hint="use the variant that is not compiled for the Edge TPU",
            )
        return ModelRejected(f"this runtime does not know the custom operator {found[1]}")
    if _SELECT_OPERATORS.search(text):
        return ModelRejected(
            "the model needs TensorFlow's own (Flex) operators, which this runtime does not have",
            hint="convert it with TFLITE_BUILTINS only",
        )
    name = model.name if isinstance(model, Path) else "the model"
    return ModelRejected(f"{TITLE} {package.__version__} refuses {name}: {shorten(text)}")


def _needs_too_much(interpreter: Any, text: str) -> bool:
    """Tell a refused allocation from any other failure.

    XNNPACK says only that it "failed to reshape"; so what the tensors would need is held against
    the limit of this process.
    """
    if _NO_MEMORY.search(text):
        return True
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return False
    return any(_bytes_of(details) > limit for details in interpreter.get_tensor_details())


def _bytes_of(details: dict[str, Any]) -> float:
    size = np.dtype(details["dtype"]).itemsize or 1
    # In floating point: a hostile shape overflows every integer type.
    return float(np.prod(np.asarray(details["shape"], np.float64))) * size


def _tensor(details: dict[str, Any]) -> Tensor:
    name = details["name"]
    datatype = DATATYPES.get(np.dtype(details["dtype"]).name)
    if datatype is None:
        raise ModelRejected(f"{name!r} has the type {details['dtype']}, which is not supported")
    signature = details.get("shape_signature")
    shape = details["shape"] if signature is None or len(signature) == 0 else signature
    scale, zero_point = details["quantization"]
    return Tensor(
        name=name,
        datatype=datatype,
        shape=tuple(int(size) for size in shape),
        scale=float(scale) if scale else None,
        zero_point=int(zero_point) if scale else None,
    )


def _last_words(error: Exception) -> str:
    """Return the end of a message: those of earlier failures pile up in front of it."""
    return shorten(str(error)[-400:])
