"""The adapter: ONNX models of a few operators, with nothing but NumPy."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from agent import __version__
from agent.documents.device import RuntimeFacts
from agent.documents.manifest import Datatype, Tensor
from agent.documents.report import Placement
from agent.errors import AgentError, BadInput, ModelError, ModelRejected, RuntimeUnavailable
from agent.formats.description import TensorDescription
from agent.formats.magic import is_onnx
from agent.formats.onnx_graph import read_graph
from agent.pipeline.tensors import DTYPES
from agent.runtimes.api import Array, Arrays, Wanted, shorten
from agent.runtimes.inputs import check_inputs
from agent.runtimes.reference.plan import (
    NEWEST_IR_VERSION,
    NEWEST_OPSET,
    Plan,
    known_operators,
    make_plan,
)

PROVIDER = "NumPy"
MAX_MODEL_BYTES = 256 * 1024 * 1024
_MAPS = ("sequence(map(INT64,FP32))", "sequence(map(BYTES,FP32))")


class ReferenceRuntime:
    """Loads `.onnx` files."""

    name = "reference"
    version: str = __version__
    formats = ("onnx",)

    def facts(self) -> RuntimeFacts:
        """Say which operators it knows."""
        return RuntimeFacts(
            self.name,
            usable=True,
            version=self.version,
            package="edgeward",
            formats=self.formats,
            providers=(PROVIDER,),
            opset=NEWEST_OPSET,
            ir_version=NEWEST_IR_VERSION,
            operators=known_operators(),
        )

    def probe(self) -> str | None:
        """Say what this machine lacks: nothing."""
        return None

    def load(self, model: Path, wanted: Wanted, *, outputs: Sequence[str] = ()) -> ReferenceSession:
        """Load a model; see `Runtime.load`. A run takes one thread, whatever it may."""
        if wanted.provider not in ("", PROVIDER):
            raise RuntimeUnavailable(
                f"the reference runtime has no provider {wanted.provider!r}",
                hint=f"it has {PROVIDER}",
            )
        if wanted.options:
            raise RuntimeUnavailable(
                f"the reference runtime has no option {next(iter(wanted.options))!r}",
                hint="it takes none",
            )
        return ReferenceSession(_read(model), outputs)


def _read(model: Path) -> memoryview:
    """Map a model file; what is kept of it is copied."""
    try:
        with model.open("rb") as file:
            size = model.stat().st_size
            if not 0 < size <= MAX_MODEL_BYTES:
                raise ModelRejected(f"{model.name} has {size} bytes (at most {MAX_MODEL_BYTES})")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ModelRejected(f"{model.name} cannot be read: {error.strerror}") from None
    if not is_onnx(bytes(data[:64])):
        raise ModelRejected(f"{model.name} is no ONNX model")
    return data


class ReferenceSession:
    """One model as a list of steps over a list of values."""

    def __init__(self, data: memoryview, outputs: Sequence[str]) -> None:
        graph = read_graph(data)
        self._plan: Plan | None = make_plan(graph)
        chosen = [tensor for tensor in graph.outputs if not outputs or tensor.name in outputs]
        self.inputs = tuple(_tensor(tensor, is_input=True) for tensor in graph.inputs)
        self.outputs = tuple(_tensor(tensor, is_input=False) for tensor in chosen)
        self.placement = Placement(PROVIDER, PROVIDER, 1.0, 1.0)
        self._ranked = {tensor.name: tensor.ranked for tensor in graph.inputs}
        self._has_free_inputs = any(not t.shape or -1 in t.shape for t in self.inputs)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        """Run once; see `Session.run`."""
        plan = self._plan
        if plan is None:
            raise RuntimeError("the session is closed")
        check_inputs(self.inputs, self._ranked, arrays)
        values = list(plan.values)
        for name, place in plan.inputs.items():
            values[place] = arrays[name]
        with np.errstate(all="ignore"):
            for step in plan.steps:
                operands = [None if at is None else values[at] for at in step.inputs]
                try:
                    results = step.compute(*operands)
                except MemoryError:
                    raise
                except Exception as error:
                    raise self._failure(step.op_type, error) from None
                several = results if isinstance(results, tuple) else (results,)
                # Optional outputs at the end may be left out.
                for at, result in zip(step.outputs, several, strict=False):
                    if at is not None:
                        values[at] = result
        return self._given(plan, values, arrays)

    def reset(self) -> None:
        """Nothing: no state is kept between runs."""

    def close(self) -> None:
        """Let go of the weights."""
        self._plan = None

    def _failure(self, op_type: str, error: Exception) -> AgentError:
        if isinstance(error, BadInput) or self._has_free_inputs:
            return BadInput(f"{op_type} cannot take this input: {shorten(error)}")
        return ModelError(f"{op_type} failed: {shorten(error)}")

    def _given(
        self, plan: Plan, values: Sequence[Array | None], arrays: Arrays
    ) -> dict[str, Array]:
        # What is no array of its own is copied: an input, a constant, or a view of anything.
        taken = set(map(id, arrays.values()))
        given: dict[str, Array] = {}
        for tensor in self.outputs:
            value = values[plan.outputs[tensor.name]]
            if value is None:
                raise ModelError(f"the output {tensor.name!r} got no value")
            if value.dtype != DTYPES[tensor.datatype]:
                raise ModelError(
                    f"the output {tensor.name!r} is {value.dtype}, the file says {tensor.datatype}"
                )
            flags = value.flags
            is_own = flags.owndata and flags.writeable and flags.c_contiguous
            if id(value) in taken or not is_own:
                value = np.array(value, order="C")
            taken.add(id(value))
            given[tensor.name] = value
        return given


def _tensor(said: TensorDescription, *, is_input: bool) -> Tensor:
    if not is_input and said.kind in _MAPS:
        return Tensor(name=said.name, datatype="FP32", shape=(-1, -1))
    if said.kind != "tensor" or said.datatype == "BF16":
        raise ModelRejected(f"{said.name!r} is a {said.kind}, which has no plain tensor")
    return Tensor(name=said.name, datatype=cast(Datatype, said.datatype), shape=said.shape)
