"""Whatever the bytes are, a reader answers soon: with a description or with one refusal."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from agent.errors import ModelRejected
from agent.formats.description import ModelDescription
from agent.formats.registry import describe, recognise
from tests.formats.building import (
    add_metadata_buffer,
    archive,
    external_tensor,
    nested_if,
    onnx_model,
    operator_code,
    quantised,
    tflite_bytes,
    tflite_model,
    tflite_tensor,
)
from tests.formats.test_tflite_metadata import metadata

EXAMPLES = settings(max_examples=300, deadline=None)


@functools.cache
def onnx_sample() -> bytes:
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        nested_if(2, [helper.make_node("Relu", ["h"], ["y"])]),
    ]
    model = onnx_model(nodes, initializers=[weights, external_tensor("w.bin", offset="0")])
    model.metadata_props.add(key="names", value="{0: 'a', 1: 'b'}")
    return bytes(model.SerializeToString())


@functools.cache
def tflite_sample() -> bytes:
    x = tflite_tensor("x", type=9, quantization=quantised([0.5], [1]), shapeSignature=[-1, 4])
    codes = [operator_code(9, version=4), operator_code(32, custom="edgetpu-custom-op")]
    model = tflite_model([x, tflite_tensor("state", isVariable=True), tflite_tensor("y")], codes)
    add_metadata_buffer(model, "TFLITE_METADATA", metadata())
    add_metadata_buffer(model, "min_runtime_version", b"1.5.0" + bytes(11))
    return tflite_bytes(model) + archive({"classes.txt": b"a\nb"})


SAMPLES: list[Callable[[], bytes]] = [onnx_sample, tflite_sample]


def answer(data: bytes, filename: str) -> None:
    """Describe, and check that the answer can be handed to another process either way."""
    refusal, description = None, None
    try:
        description = describe(data, filename=filename)
    except ModelRejected as error:
        refusal = str(error)
    if description is None:
        assert refusal is not None
        assert len(refusal) < 500
        assert "\n" not in refusal
        return
    encoded = msgspec.json.encode(description)
    assert msgspec.json.decode(encoded, type=ModelDescription) == description


@pytest.mark.parametrize("filename", ["m.onnx", "m.tflite", "m"])
@given(data=st.binary(max_size=300))
@EXAMPLES
def test_any_bytes_are_answered(filename: str, data: bytes) -> None:
    recognise(data)
    answer(data, filename)


@pytest.mark.parametrize("sample", SAMPLES)
@given(data=st.data())
@EXAMPLES
def test_a_model_with_changed_bytes_is_answered(
    sample: Callable[[], bytes], data: st.DataObject
) -> None:
    changed = bytearray(sample())
    places = st.lists(st.tuples(st.integers(8, len(changed) - 1), st.integers(0, 255)), min_size=1)
    for position, value in data.draw(places):
        changed[position] = value
    answer(bytes(changed), sample.__name__)


@given(
    position=st.integers(0, 10_000),
    value=st.sampled_from([0, 1, 4, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC, 1 << 16]),
)
@EXAMPLES
def test_a_flatbuffer_with_any_offset_replaced_is_answered(position: int, value: int) -> None:
    changed = bytearray(tflite_sample())
    struct.pack_into("<I", changed, position % (len(changed) // 4) * 4, value)
    answer(bytes(changed), "m.tflite")


@pytest.mark.parametrize("sample", SAMPLES)
@given(cuts=st.tuples(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5000)))
@EXAMPLES
def test_a_model_with_a_piece_cut_out_or_doubled_is_answered(
    sample: Callable[[], bytes], cuts: tuple[int, int, int]
) -> None:
    whole = sample()
    first, second, third = sorted(cut % (len(whole) + 1) for cut in cuts)
    answer(whole[:first] + whole[second:], "m.onnx")
    answer(whole[:third] + whole[first:], "m.tflite")


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_samples_themselves_are_described(sample: Callable[[], bytes]) -> None:
    description = describe(sample())
    assert description.labels == ("a", "b")
    answer(sample(), "")
