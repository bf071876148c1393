"""Trees decide and add up exactly as ONNX Runtime's do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from agent.errors import BadInput, ModelRejected
from agent.runtimes.api import Array
from tests.runtimes.reference.comparing import FLOAT, INT64, ML, assert_equal, both, one_node

Draw = Callable[..., Any]
MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
WIDTH = 3
# Few values, so that rows often meet a threshold exactly.
VALUES = st.sampled_from([-1.5, -0.5, 0.0, 0.1, 0.5, 1.0, 2.5])


class Nodes(NamedTuple):
    """The attributes of random trees, and their leaves by tree and number."""

    attributes: dict[str, Any]
    leaves: list[tuple[int, int]]


@st.composite
def random_nodes(draw: st.DrawFn) -> Nodes:
    names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    columns: dict[str, list[Any]] = {name: [] for name in (*names, "missing_value_tracks_true")}
    leaves = []
    for tree in range(draw(st.integers(1, 4))):
        waiting, count = [0], 1
        while waiting:
            node = waiting.pop(0)
            inner = count < 12 and draw(st.integers(0, 2)) > 0
            row: dict[str, Any] = {"treeids": tree, "nodeids": node, "modes": "LEAF", "values": 0.0}
            row |= {"truenodeids": 0, "falsenodeids": 0, "featureids": 0}
            row["missing_value_tracks_true"] = 0
            if inner:
                row["modes"] = draw(st.sampled_from(MODES))
                row["featureids"] = draw(st.integers(0, WIDTH - 1))
                row["values"] = draw(VALUES)
                row["truenodeids"], row["falsenodeids"] = count, count + 1
                row["missing_value_tracks_true"] = draw(st.integers(0, 1))
                waiting += [count, count + 1]
                count += 2
            else:
                leaves.append((tree, node))
            for name, value in row.items():
                columns[name].append(value)
    return Nodes({f"nodes_{name}": column for name, column in columns.items()}, leaves)


ROWS = st.lists(
    st.lists(VALUES | st.just(float("nan")), min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=6
).map(lambda rows: np.array(rows, np.float32))
WEIGHT = st.floats(-4, 4, width=32)


def leaf_weights(
    draw: Draw, prefix: str, leaves: list[tuple[int, int]], targets: int, *, every: bool = False
) -> dict[str, Any]:
    """Weights of every leaf for its first target, and of most or all for the others: of a row of
    which no leaf says anything, ONNX Runtime makes an error."""
    chosen = [
        (leaf, target)
        for leaf in leaves
        for target in range(targets)
        if every or target == 0 or draw(st.integers(0, 4))
    ]
    return {
        f"{prefix}_treeids": [leaf[0] for leaf, _ in chosen],
        f"{prefix}_nodeids": [leaf[1] for leaf, _ in chosen],
        f"{prefix}_ids": [target for _, target in chosen],
        f"{prefix}_weights": [draw(WEIGHT) for _ in chosen],
    }


def base_values(*values: float) -> dict[str, Any]:
    return {"base_values": list(values)} if values else {}


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    nodes=random_nodes(),
    rows=ROWS,
    how=st.sampled_from(["SUM", "AVERAGE", "MIN", "MAX"]),
)
def test_a_regressor_is_the_same(data: st.DataObject, nodes: Nodes, rows: Array, how: str) -> None:
    targets = data.draw(st.integers(1, 3))
    # Where no leaf speaks of a target, ONNX Runtime leaves out its base value.
    base = data.draw(st.booleans())
    weights = leaf_weights(data.draw, "target", nodes.leaves, targets, every=base)
    model = one_node(
        "TreeEnsembleRegressor",
        {"x": rows},
        domain=ML,
        n_targets=targets,
        aggregate_function=how,
        **nodes.attributes,
        **weights,
        **base_values(*([0.5, 1.0, 1.5][:targets] if base else [])),
    )
    assert_equal(model, {"x": rows}, steps=0 if how != "AVERAGE" else 1)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), nodes=random_nodes(), rows=ROWS)
def test_a_classifier_is_the_same(data: st.DataObject, nodes: Nodes, rows: Array) -> None:
    weights = leaf_weights(data.draw, "class", nodes.leaves, 3)
    after = data.draw(st.sampled_from(["NONE", "SOFTMAX", "LOGISTIC"]))
    model = one_node(
        "TreeEnsembleClassifier",
        {"x": rows},
        outputs=(INT64, FLOAT),
        domain=ML,
        classlabels_int64s=[3, 7, 5],
        post_transform=after,
        **nodes.attributes,
        **weights,
    )
    if len(set(weights["class_ids"])) > 1:
        assert_equal(model, {"x": rows}, steps=0 if after == "NONE" else 8)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), nodes=random_nodes(), rows=ROWS)
def test_a_classifier_of_one_score_is_the_same(
    data: st.DataObject, nodes: Nodes, rows: Array
) -> None:
    weights = leaf_weights(data.draw, "class", nodes.leaves, 1, every=True)
    if data.draw(st.booleans()):
        weights["class_weights"] = [abs(weight) for weight in weights["class_weights"]]
    after = data.draw(st.sampled_from(["NONE", "LOGISTIC"]))
    model = one_node(
        "TreeEnsembleClassifier",
        {"x": rows},
        outputs=(INT64, FLOAT),
        domain=ML,
        classlabels_int64s=[3, 7],
        post_transform=after,
        **nodes.attributes,
        **weights,
        **base_values(*([0.25] if data.draw(st.booleans()) else [])),
    )
    assert_equal(model, {"x": rows}, steps=0 if after == "NONE" else 8)


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    nodes=random_nodes(),
    rows=ROWS,
    how=st.integers(0, 3),
    kind=st.sampled_from(["f4", "f8"]),
)
def test_the_new_way_of_writing_trees_is_the_same(
    data: st.DataObject, nodes: Nodes, rows: Array, how: int, kind: str
) -> None:
    model = ensemble(data.draw, nodes, how, kind)
    if model is not None:
        assert_equal(model, {"x": rows.astype(kind)}, steps=0 if how else 1)


def ensemble(draw: Draw, nodes: Nodes, how: int, kind: str) -> bytes | None:
    """TreeEnsemble of the same trees; None where a tree is one leaf, which it cannot say."""
    rows = [
        dict(zip(nodes.attributes, row, strict=True))
        for row in zip(*nodes.attributes.values(), strict=True)
    ]
    inner = [row for row in rows if row["nodes_modes"] != "LEAF"]
    place = {(r["nodes_treeids"], r["nodes_nodeids"]): at for at, r in enumerate(inner)}
    leaf = {key: at for at, key in enumerate(nodes.leaves)}
    roots = [place.get((tree, 0)) for tree in sorted({r["nodes_treeids"] for r in rows})]
    if any(root is None for root in roots):
        return None
    sides: dict[str, list[int]] = {"true": [], "false": []}
    is_leaf: dict[str, list[int]] = {"true": [], "false": []}
    for row in inner:
        for side in sides:
            key = (row["nodes_treeids"], row[f"nodes_{side}nodeids"])
            sides[side].append(leaf[key] if key in leaf else place[key])
            is_leaf[side].append(int(key in leaf))
    dtype = np.dtype(kind)
    return one_node(
        "TreeEnsemble",
        {"x": np.zeros((1, WIDTH), dtype)},
        outputs=(FLOAT if kind == "f4" else 11,),
        domain=ML,
        ml=5,
        n_targets=2,
        aggregate_function=how,
        tree_roots=roots,
        nodes_featureids=[row["nodes_featureids"] for row in inner],
        nodes_modes=numpy_helper.from_array(
            np.array([MODES.index(row["nodes_modes"]) for row in inner], np.uint8)
        ),
        nodes_splits=numpy_helper.from_array(
            np.array([row["nodes_values"] for row in inner], dtype)
        ),
        nodes_missing_value_tracks_true=[row["nodes_missing_value_tracks_true"] for row in inner],
        nodes_truenodeids=sides["true"],
        nodes_falsenodeids=sides["false"],
        nodes_trueleafs=is_leaf["true"],
        nodes_falseleafs=is_leaf["false"],
        leaf_targetids=[draw(st.integers(0, 1)) for _ in nodes.leaves],
        leaf_weights=numpy_helper.from_array(np.array([draw(WEIGHT) for _ in nodes.leaves], dtype)),
    )


STUMP: dict[str, Any] = {
    "nodes_treeids": [0, 0, 0],
    "nodes_nodeids": [0, 1, 2],
    "nodes_featureids": [0, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_values": [0.5, 0.0, 0.0],
    "nodes_truenodeids": [1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0],
    "target_treeids": [0, 0],
    "target_nodeids": [1, 2],
    "target_ids": [0, 0],
    "target_weights": [1.0, 2.0],
}
ROW = np.array([[0.5]], np.float32)


@pytest.mark.parametrize(
    "altered",
    [
        {"nodes_truenodeids": [0, 0, 0]},
        {"nodes_truenodeids": [9, 0, 0]},
        {"nodes_modes": ["BRANCH_SIDEWAYS", "LEAF", "LEAF"]},
        {"nodes_featureids": [-1, 0, 0]},
        {"nodes_values": [0.5]},
        {"nodes_nodeids": [0, 1, 1]},
        {"target_ids": [0, 4]},
        {"target_nodeids": [1, 7]},
        {"target_weights": [1.0]},
    ],
    ids=lambda altered: next(iter(altered)),
)
def test_trees_that_cannot_be_walked_are_refused(altered: dict[str, Any]) -> None:
    model = one_node(
        "TreeEnsembleRegressor", {"x": ROW}, domain=ML, n_targets=1, **{**STUMP, **altered}
    )
    with pytest.raises(ModelRejected, match="TreeEnsembleRegressor"):
        both(model, {"x": ROW})


def test_a_row_that_is_too_short_is_bad_input() -> None:
    model = one_node(
        "TreeEnsembleRegressor",
        {"x": ROW},
        domain=ML,
        n_targets=1,
        **{**STUMP, "nodes_featureids": [4, 0, 0]},
    )
    with pytest.raises(BadInput, match="the trees look at 5"):
        both(model, {"x": ROW})


def test_many_rows_are_walked_in_parts() -> None:
    rows = np.linspace(-1, 1, 70_001, dtype=np.float32)[:, None]
    assert_equal(
        one_node("TreeEnsembleRegressor", {"x": rows}, domain=ML, n_targets=1, **STUMP), {"x": rows}
    )
