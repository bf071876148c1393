"""Public tensors and those of a file find each other; what a run gives is checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.documents.manifest import Tensor
from agent.errors import BadInput, BadOutput, DocumentError
from agent.pipeline.boundary import compile_inputs, compile_outputs, example, pair

X = Tensor("x", "FP32", (-1, 3))


def names(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[str, str]]:
    return [(wanted.name, offered.name) for wanted, offered in pairs]


def test_tensors_pair_by_name_and_never_by_position() -> None:
    first, second = Tensor("a", "FP32", (2,)), Tensor("b", "FP32", (2,))
    assert names(pair([first, second], [second, first], path="p")) == [("a", "a"), ("b", "b")]


def test_the_only_tensor_that_fits_may_have_another_name() -> None:
    a, b = Tensor("a", "FP32", (2,)), Tensor("b", "FP32", (3,))
    file = [Tensor("a_int8", "INT8", (1, 2)), Tensor("b_int8", "INT8", (3,))]
    assert names(pair(file, [b, a], path="p")) == [("a_int8", "a"), ("b_int8", "b")]


def test_two_that_fit_are_a_choice_nobody_makes() -> None:
    offered = [Tensor("a", "FP32", (2,)), Tensor("b", "FP32", (2,))]
    with pytest.raises(DocumentError, match="a tensor named 'c'"):
        pair([Tensor("c", "FP32", (2,))], offered, path="p")


def test_arrays_reach_the_model_contiguous_aligned_and_in_its_shape() -> None:
    bind = compile_inputs([X], [Tensor("x", "FP32", (-1, 3))], path="p", stored=False)
    crooked = np.frombuffer(b"\0" + np.arange(6, dtype="<f4").tobytes(), "<f4", offset=1)
    for array in (crooked.reshape(2, 3), np.arange(6, dtype=np.float32).reshape(3, 2).T):
        bound = bind({"x": array})["x"]
        assert bound.flags.c_contiguous
        assert bound.flags.aligned
        np.testing.assert_array_equal(bound, array)
    assert bind({"x": np.zeros(3, np.float32)})["x"].shape == (1, 3)


def test_stored_integers_pass_only_where_they_may() -> None:
    file = Tensor("x", "INT8", (-1, 3), scale=0.5, zero_point=1)
    stored = np.array([[1, 3, 5]], np.int8)
    passes = compile_inputs([X], [file], path="p", stored=True)
    np.testing.assert_array_equal(passes({"x": stored})["x"], stored)
    np.testing.assert_array_equal(passes({"x": np.array([[0, 1, 2]], np.float32)})["x"], stored)


def test_a_shape_that_can_never_fit_is_refused_with_its_place() -> None:
    with pytest.raises(DocumentError) as caught:
        compile_inputs([X], [Tensor("x", "FP32", (1, 4))], path="variant v: inputs", stored=False)
    assert caught.value.path == "variant v: inputs.x.shape"


def test_a_shape_that_does_not_fit_this_time_is_bad_input() -> None:
    bind = compile_inputs([Tensor("x", "FP32", (-1,))], [X], path="p", stored=False)
    with pytest.raises(BadInput, match=r"x\.shape: expected \[-1,3\], got \[4\]"):
        bind({"x": np.zeros(4, np.float32)})


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ({}, "expected an array, got NoneType"),
        ({"y": [1.0]}, "expected an array, got list"),
        ({"y": np.zeros((1, 2))}, "expected FP32, got float64"),
        ({"y": np.zeros((1, 3), np.float32)}, r"expected shape \[-1,2\], got \[1,3\]"),
        ({"y": np.array([[0, np.nan]], np.float32)}, "NaN or infinity"),
        ({"y": np.array([[np.inf, 0]], np.float32)}, "NaN or infinity"),
    ],
)
def test_an_answer_that_is_not_what_the_manifest_says_is_bad_output(
    raw: dict[str, Any], complaint: str
) -> None:
    tensor = Tensor("y", "FP32", (-1, 2))
    unbind = compile_outputs([tensor], [tensor], path="p")
    for _ in range(2):
        with pytest.raises(BadOutput, match=complaint):
            unbind(raw)


def test_nan_passes_where_the_author_means_it() -> None:
    public = Tensor("y", "FP32", (2,), allow_nan=True)
    unbind = compile_outputs([public], [Tensor("y", "FP32", (2,))], path="p")
    assert np.isnan(unbind({"y": np.array([0, np.nan], np.float32)})["y"][1])


def test_nan_bits_in_bf16_are_found() -> None:
    tensor = Tensor("y", "BF16", (1,))
    unbind = compile_outputs([tensor], [tensor], path="p")
    assert unbind({"y": np.array([0x3F80], np.uint16)})["y"][0] == 0x3F80
    with pytest.raises(BadOutput):
        unbind({"y": np.array([0x7FC0], np.uint16)})


def test_an_output_is_dequantised_once() -> None:
    file = Tensor("y_int8", "INT8", (1, 2), scale=0.5, zero_point=-1)
    unbind = compile_outputs([Tensor("y", "FP32", (-1, 2))], [file], path="p")
    found = unbind({"y_int8": np.array([[-1, 3]], np.int8)})["y"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[0.0, 2.0]])


@pytest.mark.parametrize(
    "array", [np.array(["é", ""], np.object_), np.array(["é".encode(), b""]), np.array(["é", ""])]
)
def test_texts_are_texts_whatever_a_runtime_calls_them(array: NDArray[Any]) -> None:
    tensor = Tensor("t", "BYTES", (-1,))
    unbind = compile_outputs([tensor], [tensor], path="p")
    assert unbind({"t": array})["t"].tolist() == ["é", ""]
    for odd in (np.array([1.5]), np.array([{}], np.object_)):
        with pytest.raises(BadOutput, match="expected texts"):
            unbind({"t": odd})


def test_a_warm_up_input_means_zero() -> None:
    assert example(Tensor("x", "INT8", (-1, 2), scale=0.5, zero_point=7)).tolist() == [[7, 7]]
    assert example(Tensor("x", "BYTES", (1,))).tolist() == [""]
    assert example(Tensor("x", "FP16", ())).dtype == np.float16
