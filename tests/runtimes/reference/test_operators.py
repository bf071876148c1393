"""Every operator gives what ONNX Runtime gives, as far as rounding lets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, defs

from agent.runtimes.api import Array
from agent.runtimes.reference.plan import NEWEST_ML_OPSET, NEWEST_OPSET, OPERATORS
from tests.runtimes.reference.comparing import (
    DOUBLE,
    FLOAT,
    INT64,
    ML,
    STRING,
    assert_equal,
    both,
    one_node,
)

BOOL, UINT8 = TensorProto.BOOL, TensorProto.UINT8
RNG = np.random.default_rng(7)
X = RNG.normal(size=(4, 3)).astype(np.float32)
Y = RNG.normal(size=(4, 3)).astype(np.float32)
IMAGE = RNG.normal(size=(2, 3, 4)).astype(np.float32)
WIDE = X.astype(np.float64)
WHOLE = np.array([[7, -7, 0], [3, 2, -5]])
HOLES = np.array([[1, np.nan, 3], [0, 5, np.nan]], np.float32)
FLAGS = np.array([[True, False, True]])
TEXTS = np.array(["a", "b", "zz"], object)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


class Case(NamedTuple):
    """An operator with operands; `steps` is how far rounding may lead apart."""

    op_type: str
    inputs: tuple[Array, ...]
    steps: int = 0
    more: Mapping[str, Any] = {}


def case(op_type: str, *inputs: Array, steps: int = 0, **more: Any) -> Case:
    return Case(op_type, inputs, steps, more)


def ml(op_type: str, *inputs: Array, steps: int = 0, **more: Any) -> Case:
    return Case(op_type, inputs, steps, {"domain": ML, **more})


CASES = (
    *(case(op, X) for op in ("Abs", "Ceil", "Floor", "Neg", "Relu", "Sign")),
    *(case(op, X, steps=4) for op in ("Exp", "Sigmoid", "Tanh", "Softplus", "Elu", "Softmax")),
    *(case(op, np.abs(X), steps=2) for op in ("Sqrt", "Log", "Reciprocal")),
    *(case(op, X, Y) for op in ("Add", "Sub", "Mul", "Div")),
    *(case(op, WIDE, WIDE[:1], outputs=(DOUBLE,)) for op in ("Add", "Sub", "Mul", "Div")),
    *(case(op, WHOLE, ints(2, -2, 3), outputs=(INT64,)) for op in ("Add", "Sub", "Mul", "Div")),
    *(
        case(op, X, Y, outputs=(BOOL,))
        for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    *(case(op, FLAGS, ~FLAGS, outputs=(BOOL,)) for op in ("And", "Or")),
    case("Not", FLAGS, outputs=(BOOL,)),
    case("IsNaN", HOLES, outputs=(BOOL,)),
    *(case(op, X, Y, IMAGE[0, :1, :3], steps=2) for op in ("Max", "Min", "Sum", "Mean")),
    case("Pow", np.abs(X), np.full(1, 2.5, np.float32), steps=4),
    case("Pow", X, ints(2), steps=2),
    case("LeakyRelu", X, alpha=0.3),
    case("LeakyRelu", X),
    case("Elu", X, alpha=0.3, steps=4),
    case("Clip", X, np.float32(-0.5).reshape(()), np.float32(0.5).reshape(())),
    case("Clip", X, opset=10, min=-0.5, max=0.25),
    case("Softmax", IMAGE, axis=1, steps=4),
    case("Softmax", IMAGE, opset=12, axis=1, steps=4),
    case("Softmax", IMAGE, opset=12, axis=2, steps=4),
    case("LogSoftmax", IMAGE, axis=-1, steps=4),
    case("MatMul", X, Y.T.copy(), steps=4),
    case("MatMul", IMAGE, IMAGE.transpose(0, 2, 1).copy(), steps=4),
    case("MatMul", X, X[0], steps=4),
    case("Gemm", X, Y, transB=1, steps=4),
    case("Gemm", X, Y, X[:3, 0].copy(), transA=1, alpha=0.5, beta=2.0, steps=8),
    case("BatchNormalization", IMAGE, *np.abs(RNG.normal(size=(4, 3))).astype("f4"), steps=8),
    *(
        case(op, IMAGE, opset=17, steps=4, keepdims=0, axes=[1, -1])
        for op in ("ReduceMax", "ReduceMean", "ReduceMin")
    ),
    *(
        case(op, IMAGE, constants={"axes": ints(-1)}, opset=18, steps=4)
        for op in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
    ),
    case("ReduceSum", IMAGE, steps=4),
    case("ReduceSum", IMAGE, constants={"axes": ints()}, noop_with_empty_axes=1),
    case("ReduceSum", WHOLE, outputs=(INT64,), keepdims=0),
    *(
        case(op, np.round(IMAGE), outputs=(INT64,), axis=axis, select_last_index=last)
        for op in ("ArgMax", "ArgMin")
        for axis, last in ((0, 0), (-1, 1))
    ),
    case("Where", X > 0, X, Y),
    case("Cast", X * 9, outputs=(INT64,), to=INT64),
    case("Cast", X, outputs=(DOUBLE,), to=DOUBLE),
    case("Cast", WHOLE, outputs=(BOOL,), to=BOOL),
    case("Cast", WIDE, to=FLOAT),
    case("Concat", X, Y, axis=1),
    case("Concat", X, Y, axis=-2),
    case("Dropout", X, outputs=(FLOAT, BOOL)),
    case("Flatten", IMAGE),
    case("Flatten", IMAGE, axis=0),
    case("Flatten", IMAGE, axis=-1),
    case("Gather", X, constants={"i": ints(2, 0, -1)}),
    case("Gather", IMAGE, constants={"i": ints(0, 2).reshape(2, 1)}, axis=1),
    case("Identity", TEXTS, outputs=(STRING,)),
    case("Reshape", IMAGE, constants={"s": ints(0, -1)}),
    case("Reshape", IMAGE, constants={"s": ints(4, 3, 2)}),
    case("Shape", IMAGE, outputs=(INT64,)),
    case("Shape", IMAGE, outputs=(INT64,), start=-2, end=3),
    case("Slice", IMAGE, constants={"a": ints(1, 0), "b": ints(99, 2), "c": ints(2, 1)}),
    case("Slice", IMAGE, constants={"a": ints(-1), "b": ints(-99), "c": ints(2), "d": ints(-2)}),
    case("Squeeze", IMAGE[:1]),
    case("Squeeze", IMAGE[:1], opset=11, axes=[0]),
    case("Squeeze", IMAGE[:1], constants={"a": ints(0)}),
    case("Unsqueeze", X, opset=11, axes=[0, 3]),
    case("Unsqueeze", X, constants={"a": ints(-1)}),
    case("Transpose", IMAGE),
    case("Transpose", IMAGE, perm=[0, 2, 1]),
    case(
        "QuantizeLinear",
        X * 40,
        constants={"s": np.array(0.3, "f4"), "z": np.array(100, "u1")},
        outputs=(UINT8,),
    ),
    case(
        "DequantizeLinear",
        (X * 40).astype(np.int8),
        constants={"s": np.array([0.3, 0.5, 2], "f4"), "z": np.array([1, -2, 3], "i1")},
    ),
    case("Constant", value_floats=[1.0, 2.0]),
    case("Constant", value_int=3, outputs=(INT64,)),
    ml("ArrayFeatureExtractor", X, ints(2, 0)),
    ml("ArrayFeatureExtractor", X[0], ints(2, 0)),
    ml("Binarizer", X, threshold=0.1),
    ml("FeatureVectorizer", X, X[:, :2].copy(), inputdimensions=[2, 3]),
    ml("Imputer", HOLES, imputed_value_floats=[9.0, 8.0, 7.0], replaced_value_float=float("nan")),
    ml("Imputer", HOLES, imputed_value_floats=[9.0], replaced_value_float=0.0),
    ml("Imputer", WHOLE, outputs=(INT64,), imputed_value_int64s=[4, 5, 6], replaced_value_int64=-7),
    *(ml("Normalizer", x, norm=norm, steps=2) for x in (X, WHOLE) for norm in ("MAX", "L1", "L2")),
    ml("Normalizer", np.zeros((2, 3), np.float32), norm="L2"),
    *(
        ml("Scaler", (X * 9).astype(kind), offset=[1.0, 2.0, 0.1], scale=[0.5, 0.3, 2.0])
        for kind in ("f4", "f8", "i8", "i4")
    ),
    ml("Scaler", X, offset=[0.1], scale=[0.3]),
    ml(
        "LabelEncoder",
        TEXTS,
        outputs=(INT64,),
        keys_strings=["a", "b", "a"],
        values_int64s=[4, 5, 6],
        default_int64=-3,
    ),
    ml("LabelEncoder", WHOLE, outputs=(STRING,), keys_int64s=[2, 3], values_strings=["x", "y"]),
    *(
        ml(
            "LabelEncoder",
            HOLES,
            ml=version,
            keys_floats=[1.0, float("nan")],
            values_floats=[10.0, 20.0],
            default_float=0.5,
        )
        for version in (3, 4)
    ),
    ml("OneHotEncoder", WHOLE, cats_int64s=[0, 7]),
    ml("OneHotEncoder", TEXTS, cats_strings=["a", "zz"]),
    ml("LinearRegressor", X[0], coefficients=[1.0, 2.0, 3.0], steps=4),
    *(
        ml(
            "LinearRegressor",
            X,
            coefficients=[1.0, -2.0, 0.5, 0.1, 0.2, 0.3],
            intercepts=[0.5, -0.5],
            targets=2,
            post_transform=after,
            steps=4,
        )
        for after in ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")
    ),
    *(
        ml(
            "LinearClassifier",
            X,
            outputs=(INT64, FLOAT),
            coefficients=[1.0, -2.0, 0.5],
            intercepts=[0.25],
            classlabels_ints=[3, 7],
            post_transform=after,
            steps=4,
        )
        for after in ("NONE", "LOGISTIC")
    ),
    *(
        ml(
            "LinearClassifier",
            X,
            outputs=(STRING, FLOAT),
            coefficients=[1.0, -2.0, 0.5, 0.1, 0.2, 0.3, 1.0, 1.0, -1.0],
            intercepts=[0.25, 0.0, -0.25],
            classlabels_strings=["u", "v", "w"],
            post_transform=after,
            steps=4,
        )
        for after in ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")
    ),
    *(
        ml(
            "SVMRegressor",
            X,
            kernel_type=kernel,
            kernel_params=[0.3, 0.5, 2.0],
            rho=[0.2],
            n_supports=count,
            coefficients=[1.0, -2.0, 0.5][: count or 3],
            one_class=one,
            steps=8,
            **({"support_vectors": [0.1, 0.2, 0.3, 1.0, -1.0, 0.5]} if count else {}),
        )
        for kernel in ("LINEAR", "POLY", "RBF", "SIGMOID")
        for count, one in ((0, 0), (2, 0), (2, 1))
    ),
)


def _name(one: Case) -> str:
    return one.op_type


@pytest.mark.parametrize("one", CASES, ids=_name)
def test_it_gives_what_onnx_runtime_gives(one: Case) -> None:
    inputs = {f"x{place}": np.ascontiguousarray(array) for place, array in enumerate(one.inputs)}
    assert_equal(one_node(one.op_type, inputs, **one.more), inputs, one.steps)


def test_every_operator_but_those_with_a_test_of_their_own_is_compared() -> None:
    compared = {one.op_type for one in CASES}
    elsewhere = {"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor", "ZipMap"}
    assert {name for _, name in OPERATORS} == compared | elsewhere


def test_the_newest_version_of_every_operator_is_known() -> None:
    for domain, name in OPERATORS:
        schema = defs.get_schema(name, domain="" if domain == "ai.onnx" else domain)
        assert schema.since_version <= (NEWEST_OPSET if domain == "ai.onnx" else NEWEST_ML_OPSET)


FLOATS = st.floats(-1e3, 1e3, width=32)
ROWS = arrays(np.float32, st.tuples(st.integers(1, 5), st.just(6)), elements=FLOATS)
WEIGHTS = arrays(np.float32, (6, 4), elements=st.floats(-2, 2, width=32))


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, weights=WEIGHTS, bias=arrays(np.float32, 4, elements=FLOATS))
def test_a_layer_is_exact(rows: Array, weights: Array, bias: Array) -> None:
    data = one_node("Gemm", {"x": rows}, constants={"w": weights, "b": bias})
    # What the sum of the magnitudes can round to is what an order of adding can change.
    size = float((np.abs(rows) @ np.abs(weights) + np.abs(bias)).max())
    ((own, other),) = both(data, {"x": rows})
    exact = rows.astype(np.float64) @ weights.astype(np.float64) + bias
    np.testing.assert_array_equal(own, exact.astype(np.float32))
    np.testing.assert_allclose(own, other, rtol=0, atol=8 * np.finfo(np.float32).eps * size)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS)
def test_what_is_rounded_once_is_the_same_everywhere(rows: Array) -> None:
    for op_type in ("Relu", "Neg", "Abs", "Floor", "Ceil"):
        assert_equal(one_node(op_type, {"x": rows}), {"x": rows})
