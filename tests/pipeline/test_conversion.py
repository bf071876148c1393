"""Quantised, dequantised or cast: the right numbers, once, or a refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.documents.manifest import Datatype, Tensor
from agent.errors import BadInput, BadOutput, DocumentError
from agent.pipeline.conversion import Convert, compile_conversion
from agent.pipeline.tensors import DTYPES, FLOAT_MAX


def tensor(datatype: Datatype, scale: float | None = None, zero_point: int | None = None) -> Tensor:
    return Tensor("x", datatype, (-1,), scale=scale, zero_point=zero_point)


def conversion(source: Tensor, target: Tensor) -> Convert:
    convert = compile_conversion(source, target, path="p", refuse=BadInput)
    return convert or (lambda array: array)


def array(values: Any, datatype: Datatype) -> NDArray[Any]:
    return np.array(values, DTYPES[datatype])


def test_real_numbers_are_rounded_half_to_even_and_clipped() -> None:
    quantise = conversion(tensor("FP32"), tensor("INT8", 0.5, -3))
    values = array([0, 0.25, 0.75, -0.25, 100, -100, 1e30, np.inf], "FP32")
    np.testing.assert_array_equal(quantise(values), [-3, -2, -2, -4, 127, -128, 127, 127])


def test_bytes_of_a_picture_are_quantised_as_the_real_numbers_they_are() -> None:
    to_int8 = conversion(tensor("UINT8"), tensor("INT8", 1.0, -128))
    np.testing.assert_array_equal(to_int8(array([0, 128, 255], "UINT8")), [-128, 0, 127])


def test_the_stored_integers_of_a_tensor_are_not_quantised_again() -> None:
    assert (
        compile_conversion(tensor("UINT8"), tensor("UINT8", 0.5, 1), path="p", refuse=BadInput)
        is None
    )


def test_integers_of_another_scale_go_through_real_numbers() -> None:
    convert = conversion(tensor("INT8", 0.5, 0), tensor("INT8", 0.25, 10))
    np.testing.assert_array_equal(convert(array([-4, 0, 4], "INT8")), [2, 10, 18])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["INT8", "UINT8", "INT16", "UINT16"]),
    st.floats(1e-6, 1e3),
    st.data(),
)
def test_stored_integers_survive_the_way_out_and_in(
    datatype: Datatype, scale: float, data: st.DataObject
) -> None:
    limits = np.iinfo(DTYPES[datatype])
    zero_point = data.draw(st.integers(int(limits.min), int(limits.max)))
    stored = array(data.draw(st.lists(st.integers(int(limits.min), int(limits.max)))), datatype)
    inside = tensor(datatype, scale, zero_point)
    real = conversion(inside, tensor("FP32"))(stored)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(conversion(tensor("FP32"), inside)(real), stored)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["INT8", "UINT8", "INT16", "INT32", "INT64", "UINT64"]),
    st.lists(st.floats(allow_nan=False, width=32)),
    st.floats(1e-6, 1e3),
)
def test_any_real_number_becomes_some_integer_of_the_tensor(
    datatype: Datatype, values: list[float], scale: float
) -> None:
    stored = conversion(tensor("FP32"), tensor(datatype, scale, 0))(array(values, "FP32"))
    assert stored.dtype == DTYPES[datatype]
    for value, got in zip(values, stored.tolist(), strict=True):
        assert got == 0 or (got > 0) == (value > 0)


def test_nan_cannot_be_quantised() -> None:
    missing = Tensor("x", "FP32", (-1,), allow_nan=True)
    with pytest.raises(BadInput, match="NaN"):
        conversion(missing, tensor("INT8", 1.0, 0))(array([np.nan], "FP32"))


def test_scalars_stay_arrays() -> None:
    inside = tensor("INT8", 0.5, 1)
    real = conversion(inside, tensor("FP32"))(array(3, "INT8"))
    assert isinstance(real, np.ndarray)
    assert real.shape == ()
    assert isinstance(conversion(tensor("FP32"), inside)(real), np.ndarray)


@pytest.mark.parametrize(
    ("source", "target", "values"),
    [
        ("FP64", "FP32", [1e300]),
        ("FP32", "FP16", [70000.0]),
        ("FP32", "BF16", [FLOAT_MAX["FP32"]]),
        ("INT64", "INT32", [1 << 40]),
        ("INT32", "UINT8", [-1]),
    ],
)
def test_a_number_beyond_the_target_is_refused_not_wrapped(
    source: Datatype, target: Datatype, values: list[float]
) -> None:
    with pytest.raises(BadInput, match="beyond"):
        conversion(tensor(source), tensor(target))(array(values, source))


@pytest.mark.parametrize(
    ("source", "target"),
    [("FP32", "INT32"), ("INT32", "BOOL"), ("BYTES", "FP32"), ("FP32", "BYTES")],
)
def test_what_would_lose_its_meaning_is_refused_at_once(source: Datatype, target: Datatype) -> None:
    with pytest.raises(DocumentError) as caught:
        compile_conversion(tensor(source), tensor(target), path="here", refuse=BadOutput)
    assert caught.value.path == "here"


@pytest.mark.parametrize("target", ["FP16", "FP32", "FP64", "BF16", "INT32", "INT64"])
@pytest.mark.parametrize("source", ["BOOL", "INT8", "UINT8"])
def test_small_integers_go_everywhere(source: Datatype, target: Datatype) -> None:
    convert = conversion(tensor(source), tensor(target))
    assert convert(array([0, 1], source)).dtype == DTYPES[target]
