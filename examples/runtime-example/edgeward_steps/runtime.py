"""The adapter: what `agent.runtimes.api` asks for, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from agent.documents.device import RuntimeFacts
from agent.documents.manifest import Tensor
from agent.documents.report import Placement
from agent.errors import BadInput, ModelRejected, RuntimeUnavailable
from agent.runtimes.api import Array, Arrays, Wanted
from edgeward_steps import __version__
from edgeward_steps.model_format import MAX_BYTES, OPERATORS, Model, read

PROVIDER = "CPU"
_COMPUTE: Mapping[str, Callable[..., Array]] = {
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
}


class StepsRuntime:
    """Loads `.steps` files."""

    name = "steps"
    version = __version__
    formats = ("steps",)

    def facts(self) -> RuntimeFacts:
        return RuntimeFacts(
            self.name,
            usable=True,
            version=self.version,
            package="edgeward-steps",
            formats=self.formats,
            providers=(PROVIDER,),
            operators=tuple(OPERATORS),
        )

    def probe(self) -> str | None:
        # A driver or a device file would be looked for here.
        return None

    def load(self, model: Path, wanted: Wanted, *, outputs: Sequence[str] = ()) -> StepsSession:
        if wanted.provider not in ("", PROVIDER):
            raise RuntimeUnavailable(
                f"there is no provider {wanted.provider!r} here", hint=f"it has {PROVIDER}"
            )
        if wanted.options:
            raise RuntimeUnavailable(
                f"there is no option {next(iter(wanted.options))!r} here", hint="it takes none"
            )
        try:
            with model.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ModelRejected(f"{model.name} cannot be read: {error.strerror}") from None
        return StepsSession(read(data), outputs)


class StepsSession:
    """One loaded model."""

    def __init__(self, model: Model, outputs: Sequence[str]) -> None:
        self._model: Model | None = model
        self.inputs = tuple(Tensor(name, "FP32", shape) for name, shape in model.inputs.items())
        self.outputs = tuple(
            Tensor(name, "FP32", shape)
            for name, shape in model.outputs.items()
            if not outputs or name in outputs
        )
        # What was asked for, what computes, and the share of operators and of time on that.
        self.placement = Placement(PROVIDER, PROVIDER, 1.0, 1.0)

    def run(self, arrays: Arrays) -> dict[str, Array]:
        if self._model is None:
            raise RuntimeError("the session is closed")
        self._check(arrays)
        values = dict(arrays)
        for step in self._model.steps:
            operands = [values[name] for name in step.inputs]
            try:
                values[step.output] = np.asarray(_COMPUTE[step.op](*operands))
            except ValueError as error:
                raise BadInput(f"{step.op} cannot take this input: {error}") from None
        # The caller may change what it gets, and two outputs may be the same value.
        return {tensor.name: values[tensor.name].copy() for tensor in self.outputs}

    def reset(self) -> None:
        """Nothing is kept between runs."""

    def close(self) -> None:
        self._model = None

    def _check(self, arrays: Arrays) -> None:
        names = [tensor.name for tensor in self.inputs]
        if sorted(arrays) != sorted(names):
            raise BadInput(f"the model takes {', '.join(names)}; got {', '.join(arrays) or 'none'}")
        for tensor in self.inputs:
            array = arrays[tensor.name]
            fits = len(array.shape) == len(tensor.shape) and all(
                want in (-1, size) for want, size in zip(tensor.shape, array.shape, strict=True)
            )
            if array.dtype != np.float32 or not fits:
                raise BadInput(
                    f"the input {tensor.name!r} is FP32 {list(tensor.shape)}, "
                    f"not {array.dtype} {list(array.shape)}"
                )
