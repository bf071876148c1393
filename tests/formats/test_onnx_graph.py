"""A small ONNX model is read whole: its wiring, attributes and weights."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from agent.errors import ModelRejected
from agent.formats.onnx_graph import Weights, read_graph
from tests.formats.building import onnx_model

TYPES = ("f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")


def graph_of(model: object) -> bytes:
    data: bytes = model.SerializeToString()  # type: ignore[attr-defined]
    return data


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("raw", [True, False])
def test_weights_of_every_type_are_read_in_both_ways(kind: str, raw: bool) -> None:
    values = np.array([[0, 1, 3], [1, 100, 0]]).astype(kind)
    if kind[0] == "i":
        values[0, 0] = -5
    tensor = numpy_helper.from_array(values, "w")
    if not raw:
        code = helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = helper.make_tensor("w", code, values.shape, values.ravel().tolist())
    graph = read_graph(memoryview(graph_of(onnx_model(initializers=[tensor]))))
    weights = graph.constants["w"]
    assert weights.shape == (2, 3)
    assert np.frombuffer(weights.data, kind).tolist() == values.ravel().tolist()


def test_texts_are_read() -> None:
    tensor = helper.make_tensor("w", TensorProto.STRING, [2], [b"a", "größe".encode()])
    graph = read_graph(memoryview(graph_of(onnx_model(initializers=[tensor]))))
    assert graph.constants["w"].texts == (b"a", "größe".encode())


FLOATS = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=300)
INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=300)


@settings(max_examples=60, deadline=None)
@given(floats=FLOATS, ints=INTEGERS, texts=st.lists(st.binary(max_size=5), min_size=1, max_size=5))
def test_attributes_are_read_as_they_were_written(
    floats: list[float], ints: list[int], texts: list[bytes]
) -> None:
    node = helper.make_node(
        "Relu",
        ["x", "", "z"],
        ["y"],
        floats=floats,
        ints=ints,
        texts=texts,
        one_float=floats[0],
        one_int=ints[0],
        one_text="word",
    )
    tensor = helper.make_attribute("tensor", numpy_helper.from_array(np.ones(2, "f4"), "t"))
    node.attribute.append(tensor)
    (read,) = read_graph(memoryview(graph_of(onnx_model([node])))).nodes
    assert (read.op_type, read.inputs, read.outputs) == ("Relu", ("x", "", "z"), ("y",))
    own = read.attributes
    assert np.array_equal(np.array(own["floats"], "f4"), np.array(floats, "f4"))
    assert list(own["ints"]) == ints  # type: ignore[arg-type]
    assert own["texts"] == tuple(texts)
    assert (own["one_float"], own["one_int"], own["one_text"]) == (floats[0], ints[0], b"word")
    assert isinstance(own["tensor"], Weights)
    assert own["tensor"].shape == (2,)


def test_a_file_that_is_cut_or_altered_anywhere_is_read_or_rejected() -> None:
    weights = numpy_helper.from_array(np.arange(4, dtype="f4"), "w")
    node = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0, 2.0, 3.0])
    data = graph_of(onnx_model([node], initializers=[weights]))
    for place in range(len(data)):
        for altered in (data[:place], data[:place] + b"\xff" + data[place + 1 :]):
            with suppress(ModelRejected):
                read_graph(memoryview(altered))


def test_weights_whose_shape_promises_more_than_there_is_are_rejected() -> None:
    tensor = numpy_helper.from_array(np.zeros(4, "f4"), "w")
    for dims in ([2**40], [5], [-4], [2**31, 2**31]):
        del tensor.dims[:]
        tensor.dims.extend(dims)
        with pytest.raises(ModelRejected, match="'w'"):
            read_graph(memoryview(graph_of(onnx_model(initializers=[tensor]))))
