"""The model format `steps`: one line that names it, then JSON.

    edgeward-steps 1
    {"inputs": {"x": [-1, 4]}, "outputs": {"y": [-1, 4]},
     "steps": [{"op": "relu", "in": ["x"], "out": "y"}]}

All numbers are FP32; -1 is a dimension that each run may choose. Neither NumPy nor the runtime is
imported here: `edgeward pack` reads a file that nobody trusts yet, in a process with little memory.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from agent.errors import ModelRejected
from agent.formats.description import ModelDescription, OtherNeeds, TensorDescription
from agent.formats.registry import Format

MAGIC = b"edgeward-steps 1\n"
MAX_BYTES = 1024 * 1024
# Operator → how many operands it takes.
OPERATORS = {"relu": 1, "add": 2, "subtract": 2, "multiply": 2}

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,64}$")]
Size = Annotated[int, msgspec.Meta(ge=-1, le=1_000_000)]
Shape = Annotated[tuple[Size, ...], msgspec.Meta(max_length=8)]
Tensors = Annotated[dict[Name, Shape], msgspec.Meta(min_length=1, max_length=16)]


class Step(msgspec.Struct, frozen=True, rename={"inputs": "in", "output": "out"}):
    """One operator."""

    op: str
    inputs: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=2)]
    output: Name


class Model(msgspec.Struct, frozen=True):
    """A whole model."""

    inputs: Tensors
    outputs: Tensors
    steps: Annotated[tuple[Step, ...], msgspec.Meta(max_length=1000)]


def read(data: bytes) -> Model:
    """Read a model file and check that it can be run.

    Raises:
        ModelRejected: It cannot; says why in one sentence.
    """
    if not data.startswith(MAGIC):
        raise ModelRejected("the file is not a model of steps: its first line does not say so")
    if len(data) > MAX_BYTES:
        raise ModelRejected(f"the model has {len(data)} bytes (at most {MAX_BYTES})")
    try:
        model = msgspec.json.decode(data[len(MAGIC) :], type=Model)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelRejected(f"the model of steps is damaged: {str(error)[:200]}") from None
    made = set(model.inputs)
    for step in model.steps:
        if step.op not in OPERATORS:
            raise ModelRejected(f"this runtime does not know the operator {step.op[:64]}")
        if len(step.inputs) != OPERATORS[step.op]:
            raise ModelRejected(f"{step.op} takes {OPERATORS[step.op]} operands")
        lacking = set(step.inputs) - made
        if lacking or step.output in made:
            raise ModelRejected(f"{step.op} reads what nothing makes, or makes something twice")
        made.add(step.output)
    if not made.issuperset(model.outputs):
        raise ModelRejected("nothing makes one of the outputs")
    return model


def describe(data: memoryview) -> ModelDescription:
    """Say what a file says of itself; see `agent.formats.registry.Format`."""
    model = read(bytes(data[: MAX_BYTES + 1]))
    return ModelDescription(
        format="steps",
        inputs=_described(model.inputs),
        outputs=_described(model.outputs),
        needs=OtherNeeds(tuple(sorted({step.op for step in model.steps}))),
    )


def _described(tensors: dict[str, tuple[int, ...]]) -> tuple[TensorDescription, ...]:
    return tuple(TensorDescription(name, "FP32", shape) for name, shape in tensors.items())


def _matches(head: bytes) -> bool:
    return head.startswith(MAGIC)


STEPS = Format("steps", "steps", ".steps", _matches, describe)
