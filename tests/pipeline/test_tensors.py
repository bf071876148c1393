"""Shapes that fit, BF16, finite values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import BadInput
from agent.pipeline.tensors import (
    FLOAT_MAX,
    MAX_KNOWN_SHAPES,
    Fit,
    all_finite,
    bf16_to_fp32,
    fp32_to_bf16,
    matches,
)

SIZES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
WANTED = st.lists(st.integers(-1, 5), max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("wanted", "shape", "fitted"),
    [
        ((1, 30), (1, 30), (1, 30)),
        ((1, 30), (30,), (1, 30)),
        ((30,), (1, 30), (30,)),
        ((-1, 30), (0, 30), (0, 30)),
        ((-1, 30), (30,), (1, 30)),
        ((-1, -1), (5,), (1, 5)),
        ((), (1,), ()),
        ((1,), (), (1,)),
    ],
)
def test_a_leading_one_may_be_missing_or_too_many(
    wanted: tuple[int, ...], shape: tuple[int, ...], fitted: tuple[int, ...]
) -> None:
    fit = Fit(wanted)
    assert fit(shape, "x") == fitted
    assert fit(shape, "x") == fitted  # as remembered


@pytest.mark.parametrize(
    ("wanted", "shape"),
    [((1, 30), (1, 29)), ((2, 30), (30,)), ((30,), (2, 30)), ((-1, 3), (-1, 3)), ((1, 1), ())],
)
def test_another_shape_is_refused_by_name(wanted: tuple[int, ...], shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"^inputs\[0\]\.shape: expected \[.*\], got \[.*\]$"):
        Fit(wanted)(shape, "inputs[0]")


@settings(max_examples=200, deadline=None)
@given(WANTED, SIZES)
def test_a_fitted_shape_matches_and_keeps_the_elements(
    wanted: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    try:
        fitted = Fit(wanted)(shape, "x")
    except BadInput:
        assert not matches(wanted, shape)
        return
    assert matches(wanted, fitted)
    assert math.prod(fitted) == math.prod(shape)


@settings(max_examples=200, deadline=None)
@given(WANTED, st.integers(0, 600))
def test_a_solved_shape_matches_and_has_as_many_elements(
    wanted: tuple[int, ...], count: int
) -> None:
    fit = Fit(wanted)
    if not fit.is_solvable():
        return
    try:
        shape = fit.solve(count, "x")
    except BadInput:
        return
    assert matches(wanted, shape)
    assert math.prod(shape) == count


def test_a_stranger_cannot_make_it_remember_without_end() -> None:
    fit = Fit((-1, 2))
    for rows in range(1000):
        assert fit((rows, 2), "x") == (rows, 2)
        assert fit.takes((rows, 2))
    assert len(fit.known) <= MAX_KNOWN_SHAPES


@settings(max_examples=200, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bf16_is_the_nearest_of_its_kind(value: float) -> None:
    if abs(value) > FLOAT_MAX["BF16"]:
        return
    bits = fp32_to_bf16(np.array([value], np.float32))
    found = float(bf16_to_fp32(bits)[0])
    neighbours = [
        float(bf16_to_fp32(np.array([int(bits[0]) + d], np.uint16))[0])
        for d in (-1, 1)
        if 0 <= int(bits[0]) + d <= 0xFFFF
    ]
    closest = min(abs(n - value) for n in neighbours if math.isfinite(n))
    assert abs(found - value) <= closest


def test_bf16_keeps_its_shape_and_its_largest_value() -> None:
    largest = np.array([[FLOAT_MAX["BF16"]]], np.float32)
    assert bf16_to_fp32(fp32_to_bf16(largest)) == largest
    assert fp32_to_bf16(np.zeros((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (100, 100)])
def test_one_nan_among_many_is_found(shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.float32)
    assert all_finite(array)
    for odd in (np.nan, np.inf, -np.inf):
        if array.size:
            array.flat[array.size - 1] = odd
            assert not all_finite(array)
