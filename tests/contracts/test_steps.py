"""What every step promises, built in or not. A new one joins by a line in `EXAMPLES`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from agent.documents.manifest import Tensor
from agent.errors import BadInput, BadOutput, DocumentError
from agent.pipeline.options import read_options
from agent.pipeline.steps.api import CLASS_INDEX, CompiledStep, Memory, StepContext
from agent.pipeline.steps.registry import STEPS
from agent.pipeline.tensors import DTYPES, Array, Arrays, matches

ROWS = Tensor("x", "FP32", (-1, 3))
LABELS = ("a", "b", "c")


# Every finite value, by the bytes of one.
FLOATS = {
    2: st.floats(allow_nan=False, allow_infinity=False, width=16),
    4: st.floats(allow_nan=False, allow_infinity=False, width=32),
    8: st.floats(allow_nan=False, allow_infinity=False),
}


@dataclass(frozen=True)
class Example:
    """One step with options, and what reaches it."""

    step: str
    options: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = (ROWS,)
    labels: tuple[str, ...] = ()


EXAMPLES = [
    Example("argmax", labels=LABELS),
    Example("argmax", {"keep": True}),
    Example("argmax", {}, (Tensor("x", "FP32", (3,)),), LABELS),
    Example("argmax", {"input": "x"}, (ROWS, Tensor("z", "BYTES", (-1,)))),
    Example("cast", {"datatype": "INT8"}),
    Example("cast", {"datatype": "INT64"}, (Tensor("x", "FP64", (2,)),)),
    Example("cast", {"datatype": "FP16"}),
    Example("cast", {"datatype": "INT16"}, (Tensor("x", "FP32", ()),)),
    Example("cast", {"datatype": "UINT8"}, (Tensor("x", "INT32", (-1,)),)),
    Example("constant", {"name": "sr", "value": 16000, "datatype": "INT64"}),
    Example("constant", {"name": "t", "value": ["a", "b"], "datatype": "BYTES", "shape": [2]}),
    Example("normalize", {"mean": [1, 2, 3], "std": [1, 2, 4], "scale": 0.5}),
    Example("normalize", {"scale": 2}, (Tensor("x", "INT64", ()),)),
    Example("normalize", {"mean": 3, "std": 10}, (Tensor("x", "UINT8", (-1, 4, 4, 3)),)),
    Example("overlap", {"size": 2}, (Tensor("x", "FP32", (5,)),)),
    Example("overlap", {"size": 3, "axis": 0}, (Tensor("x", "INT16", (-1, 2)),)),
    Example("reorder", {"flip": -1, "axes": [2, 0, 1]}, (Tensor("x", "UINT8", (4, 5, 3)),)),
    Example("reorder", {"shape": [1, -1]}),
    Example("reorder", {"shape": [-1, 1, 3]}),
    Example("resize", {"width": 3, "height": 5}, (Tensor("x", "UINT8", (-1, -1, 3)),)),
    Example(
        "resize",
        {"width": 7, "height": 2, "filter": "box", "crop": "center"},
        (Tensor("x", "FP32", (-1, 4, 4, 2)),),
    ),
    Example(
        "resize", {"width": 2, "height": 2, "filter": "nearest"}, (Tensor("x", "UINT8", (6, 7)),)
    ),
    Example("select", {"names": ["z", "x"], "rename": {"x": "y"}}, (ROWS, Tensor("z", "BOOL", ()))),
    Example("sigmoid"),
    Example("sigmoid", {}, (Tensor("x", "INT64", ()),)),
    Example("smooth", {"size": 3}, (Tensor("x", "FP32", (1, 3)),)),
    Example("smooth", {"size": 3}, (Tensor("x", "FP64", ()),)),
    Example("softmax"),
    Example("softmax", {"axis": 0}, (Tensor("x", "FP64", (3, 2)),)),
    Example("threshold", {"threshold": 0.8, "labels": ["low", "high"]}),
    Example("threshold", {"threshold": 3, "output": "hot"}, (Tensor("x", "INT64", ()),)),
    Example("top_k", {"k": 2}, labels=LABELS),
    Example("top_k", {"k": 1, "keep": True}, (Tensor("x", "INT32", (1, 3)),)),
    Example("top_k", {"k": 3}, (Tensor("x", "FP16", (3,)),), LABELS),
]
examples = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.step)


def compiled(example: Example, refuse: type[BadInput] | type[BadOutput] = BadInput) -> CompiledStep:
    kind = STEPS[example.step]
    options = read_options(example.options, kind.options, "step", path="pre[0]")
    return kind.compile(options, StepContext(example.tensors, example.labels, "pre[0]", refuse))


@st.composite
def arrays_for(draw: st.DrawFn, tensors: tuple[Tensor, ...]) -> Arrays:
    """Arrays of a signature, with every value that their datatypes have (finite ones)."""
    found: Arrays = {}
    for tensor in tensors:
        shape = tuple(draw(st.integers(1, 4)) if n == -1 else n for n in tensor.shape)
        dtype = DTYPES[tensor.datatype]
        if tensor.datatype == "BYTES":
            found[tensor.name] = np.full(shape, "text", np.object_)
            continue
        elements = FLOATS[dtype.itemsize] if dtype.kind == "f" else None
        array: Array = draw(arrays_of.arrays(dtype, shape, elements=elements))
        found[tensor.name] = array
    return found


def plain(tensors: tuple[Tensor, ...]) -> Arrays:
    """Small numbers that every step can take."""
    shapes = {t.name: tuple(2 if n == -1 else n for n in t.shape) for t in tensors}
    return {
        t.name: (np.arange(np.prod(shapes[t.name], dtype=int)) % 100)
        .reshape(shapes[t.name])
        .astype(DTYPES[t.datatype])
        for t in tensors
    }


def check(arrays: Arrays, tensors: tuple[Tensor, ...]) -> None:
    assert set(arrays) == {tensor.name for tensor in tensors}
    for tensor in tensors:
        array = arrays[tensor.name]
        assert isinstance(array, np.ndarray)
        assert array.dtype == DTYPES[tensor.datatype], tensor.name
        assert matches(tensor.shape, array.shape), (tensor, array.shape)


def test_every_step_has_an_example() -> None:
    assert {example.step for example in EXAMPLES} == set(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_options_are_frozen_and_documented(name: str) -> None:
    kind = STEPS[name]
    assert issubclass(kind.options, msgspec.Struct)
    assert kind.options.__struct_config__.frozen
    assert kind.options.__doc__
    assert kind.settings <= set(kind.options.__struct_fields__)


@examples
def test_an_unknown_option_is_named_with_its_path(example: Example) -> None:
    options = {**example.options, "colour": 1}
    with pytest.raises(DocumentError) as caught:
        read_options(options, STEPS[example.step].options, "step", path="pre[3]")
    assert caught.value.path == "pre[3].colour"


@examples
def test_what_leaves_a_step_is_what_it_declares(example: Example) -> None:
    step = compiled(example)
    check(step.run(plain(example.tensors), {}), step.tensors)


@examples
def test_a_step_never_writes_into_an_array(example: Example) -> None:
    step = compiled(example)
    given = plain(example.tensors)
    before = {name: array.copy() for name, array in given.items()}
    for array in given.values():
        array.flags.writeable = False
    step.run(dict(given), {})
    for name, array in given.items():
        np.testing.assert_array_equal(array, before[name])


@examples
@pytest.mark.parametrize("refuse", [BadInput, BadOutput])
def test_no_numbers_raise_anything_but_the_refusal(
    example: Example, refuse: type[BadInput] | type[BadOutput]
) -> None:
    step = compiled(example, refuse)

    @settings(max_examples=25, deadline=None)
    @given(arrays_for(example.tensors))
    def any_numbers(arrays: Arrays) -> None:
        finite = all(a.dtype.kind != "f" or np.isfinite(a).all() for a in arrays.values())
        try:
            found = step.run(dict(arrays), {})
        except refuse:
            return
        check(found, step.tensors)
        for array in found.values():
            assert not finite or array.dtype.kind != "f" or np.isfinite(array).all()

    any_numbers()


@examples
def test_only_steps_that_say_so_remember_a_source(example: Example) -> None:
    step = compiled(example)
    memory: Memory = {}
    first = step.run(plain(example.tensors), memory)
    memory.pop(CLASS_INDEX, None)
    assert bool(memory) == STEPS[example.step].remembers
    # Another source, or a step that keeps nothing: the same answer again.
    again = step.run(plain(example.tensors), {})
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])


@examples
def test_a_class_is_named_only_by_steps_that_declare_it(example: Example) -> None:
    step = compiled(example)
    memory: Memory = {}
    one = tuple(
        msgspec.structs.replace(t, shape=tuple(1 if n == -1 else n for n in t.shape))
        for t in example.tensors
    )
    step.run(plain(one), memory)
    assert (CLASS_INDEX in memory) == (step.class_labels is not None)
    if step.class_labels:
        assert -1 <= memory[CLASS_INDEX] < len(step.class_labels)


@pytest.mark.parametrize("name", sorted(set(STEPS) - {"constant", "select"}))
def test_a_tensor_that_is_not_there_is_named(name: str) -> None:
    example = next(example for example in EXAMPLES if example.step == name)
    lost = Example(name, {**example.options, "input": "lost"}, example.tensors, example.labels)
    with pytest.raises(DocumentError) as caught:
        compiled(lost)
    assert caught.value.path == "pre[0].input"


@pytest.mark.parametrize("name", sorted(set(STEPS) - {"constant", "select"}))
def test_a_choice_of_tensors_must_be_made(name: str) -> None:
    example = next(example for example in EXAMPLES if example.step == name)
    options = {key: value for key, value in example.options.items() if key != "input"}
    more = (*example.tensors, Tensor("other", "FP32", (2,)))
    with pytest.raises(DocumentError) as caught:
        compiled(Example(name, options, more, example.labels))
    assert caught.value.path == "pre[0].input"
