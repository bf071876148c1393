"""Ensembles of decision trees (domain ai.onnx.ml), in both of the ways that ONNX writes them.

Where the standard leaves open what a classifier of two classes with one score gives, it is what
ONNX Runtime gives.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from agent.runtimes.api import Array
from agent.runtimes.reference.forest import LEAF, MODES, Forest, check
from agent.runtimes.reference.node import Compute, Made, Operator
from agent.runtimes.reference.scores import of_one_score, transform_of

MAX_CELLS = 50_000_000  # of leaves times targets
_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def _regressor(made: Made) -> Compute:
    targets = made.integer("n_targets", 1)
    forest = _forest(made, "target", targets)
    base = _numbers(made, "base_values")
    how = made.text("aggregate_function", "SUM")
    if how not in _AGGREGATES:
        raise made.refuse(f"its aggregate_function is {how[:40]!r}")
    transform = transform_of(made, made.text("post_transform", "NONE"))
    if base is not None and base.size != targets:
        raise made.refuse(f"it has {base.size} base values for {targets} targets")

    def run(x: Array) -> Array:
        scores, _ = forest.aggregate(forest.leaves(x), how)
        if base is not None:
            scores = scores + base.astype(scores.dtype)
        return transform(scores.astype(np.float64)).astype(np.float32)

    return run


def _classifier(made: Made) -> Compute:
    labels = made.labels("classlabels_int64s", "classlabels_strings")
    forest = _forest(made, "class", labels.size)
    base = _numbers(made, "base_values")
    after = made.text("post_transform", "NONE")
    transform = transform_of(made, after)
    ids = np.unique(_integers(made, "class_ids")).tolist()
    if labels.size == 2 and len(ids) == 1:
        if ids != [0] or after not in ("NONE", "LOGISTIC"):
            raise made.refuse(
                f"its leaves speak of class {ids[0]} of two only, and it ends in {after}"
            )
        return _of_one_score(made, forest, labels, base, after)
    if base is not None and base.size != labels.size:
        raise made.refuse(f"it has {base.size} base values for {labels.size} classes")

    def run(x: Array) -> tuple[Array, Array]:
        scores, there = forest.aggregate(forest.leaves(x), "SUM")
        if base is not None:
            scores, there = scores + base.astype(scores.dtype), np.ones(there.shape, bool)
        # A class of which no tree has spoken is not chosen, though others may be below zero.
        chosen = np.where(there, scores, -np.inf).argmax(1)
        return labels[chosen], transform(scores.astype(np.float64)).astype(np.float32)

    return run


def _of_one_score(
    made: Made, forest: Forest, labels: Array, base: Array | None, after: str
) -> Compute:
    """Two classes and one score, which the file gives to the first and means for the second."""
    is_share = bool(np.all(forest.weights[forest.has_weight] >= 0))
    if base is not None and base.size != 1:
        raise made.refuse(f"it has {base.size} base values for one score")

    def run(x: Array) -> tuple[Array, Array]:
        score = forest.aggregate(forest.leaves(x), "SUM")[0][:, 0]
        if base is not None:
            score = score + base.astype(score.dtype)[0]
        chosen = (score > (0.5 if is_share else 0.0)).astype(np.int64)
        both = of_one_score(score, after, is_share=is_share)
        return labels[chosen], both.astype(np.float32)

    return run


def _forest(made: Made, prefix: str, targets: int) -> Forest:
    """Read the nodes of TreeEnsembleClassifier and TreeEnsembleRegressor."""
    trees, ids = _integers(made, "nodes_treeids"), _integers(made, "nodes_nodeids")
    count = ids.size
    thresholds = _numbers(made, "nodes_values")
    missing = made.integers("nodes_missing_value_tracks_true")
    modes = np.array([_mode(made, text) for text in made.texts("nodes_modes")], np.int64)
    columns = [
        _integers(made, f"nodes_{name}") for name in ("featureids", "truenodeids", "falsenodeids")
    ]
    lists = [trees, modes, *columns, *([missing] if missing is not None and missing.size else [])]
    if not count or thresholds is None or any(len(c) != count for c in (*lists, thresholds)):
        raise made.refuse("the lists of its nodes are not of one length")
    places = {
        key: place for place, key in enumerate(zip(trees.tolist(), ids.tolist(), strict=True))
    }
    if len(places) < count:
        raise made.refuse("two nodes of a tree have the same number")
    follow = [
        np.array(
            [places.get(key, -1) for key in zip(trees.tolist(), column.tolist(), strict=True)],
            np.int64,
        )
        for column in columns[1:]
    ]
    _, firsts = np.unique(trees, return_index=True)
    weights, has_weight = _weights(made, prefix, places, count, targets)
    return check(
        made,
        Forest(
            feature=columns[0],
            threshold=thresholds,
            mode=modes,
            missing=np.zeros(count, bool) if len(lists) < 6 else lists[5].astype(bool),
            yes=follow[0],
            no=follow[1],
            roots=np.sort(firsts),
            weights=weights,
            has_weight=has_weight,
        ),
    )


def _weights(
    made: Made, prefix: str, places: Mapping[tuple[int, int], int], count: int, targets: int
) -> tuple[Array, Array]:
    trees, nodes = (_integers(made, f"{prefix}_{name}") for name in ("treeids", "nodeids"))
    ids, values = _integers(made, f"{prefix}_ids"), _numbers(made, f"{prefix}_weights")
    if values is None or not len(trees) == len(nodes) == len(ids) == len(values):
        raise made.refuse("the lists of its leaves are not of one length")
    if targets < 1 or count * targets > MAX_CELLS:
        raise made.refuse(f"it has {count} nodes and {targets} targets")
    if np.any((ids < 0) | (ids >= targets)):
        raise made.refuse("a leaf speaks of a target that there is not")
    weights = np.zeros((count, targets), values.dtype)
    has_weight = np.zeros((count, targets), bool)
    keys = zip(trees.tolist(), nodes.tolist(), strict=True)
    for key, target, value in zip(keys, ids.tolist(), values, strict=True):
        place = places.get(key)
        if place is None:
            raise made.refuse("a weight belongs to no node")
        weights[place, target] += value
        has_weight[place, target] = True
    return weights, has_weight


def _mode(made: Made, text: str) -> int:
    if text == "LEAF":
        return LEAF
    if text not in MODES:
        raise made.refuse(f"a node's mode is {text[:40]!r}")
    return MODES.index(text)


def _integers(made: Made, name: str) -> Array:
    found = made.integers(name)
    return found if found is not None else np.zeros(0, np.int64)


def _numbers(made: Made, name: str) -> Array | None:
    """Floats, or the tensor of FP64 that version 3 may have instead."""
    found = made.numbers(name)
    return found if found is not None and found.size else made.tensor(f"{name}_as_tensor")


def _ensemble(made: Made) -> Compute:
    """TreeEnsemble, version 5: leaves have a numbering of their own."""
    forest = _numbered_forest(made)
    how = made.integer("aggregate_function", 1)
    after = made.integer("post_transform", 0)
    if not (0 <= how < len(_AGGREGATES) and 0 <= after < len(_TRANSFORMS)):
        raise made.refuse(f"its aggregate_function is {how}, its post_transform {after}")
    transform = transform_of(made, _TRANSFORMS[after])

    def run(x: Array) -> Array:
        scores, _ = forest.aggregate(forest.leaves(x), _AGGREGATES[how])
        return transform(scores.astype(np.float64)).astype(forest.threshold.dtype)

    return run


def _numbered_forest(made: Made) -> Forest:
    features, modes = _integers(made, "nodes_featureids"), made.tensor("nodes_modes")
    splits, weights = made.tensor("nodes_splits"), made.tensor("leaf_weights")
    yes, no = _integers(made, "nodes_truenodeids"), _integers(made, "nodes_falsenodeids")
    yes_leaf, no_leaf = _integers(made, "nodes_trueleafs"), _integers(made, "nodes_falseleafs")
    targets, roots = _integers(made, "leaf_targetids"), _integers(made, "tree_roots")
    missing = made.integers("nodes_missing_value_tracks_true")
    if modes is None or splits is None or weights is None:
        raise made.refuse("it has no modes, splits or weights")
    count, leaf_count, wide = features.size, weights.size, made.integer("n_targets", 1)
    lists = (modes, splits, yes, no, yes_leaf, no_leaf, *(() if missing is None else (missing,)))
    if any(len(column) != count for column in lists) or targets.size != leaf_count:
        raise made.refuse("the lists of its nodes or leaves are not of one length")
    if np.any(modes >= len(MODES)):
        raise made.refuse("a node asks whether a number is one of a set")
    if (
        wide < 1
        or (count + leaf_count) * wide > MAX_CELLS
        or np.any((targets < 0) | (targets >= wide))
    ):
        raise made.refuse("a leaf speaks of a target that there is not")
    leaves = np.zeros(leaf_count, np.int64)
    table = np.zeros((count + leaf_count, wide), weights.dtype)
    has_weight = np.zeros(table.shape, bool)
    table[count + np.arange(leaf_count), targets] = weights
    has_weight[count + np.arange(leaf_count), targets] = True
    for side, is_leaf in ((yes, yes_leaf), (no, no_leaf)):
        limit = np.where(is_leaf != 0, leaf_count, count)
        if np.any((side < 0) | (side >= limit)):
            raise made.refuse("a node of a tree leads to none")
    return check(
        made,
        Forest(
            feature=np.concatenate((features, leaves)),
            threshold=np.concatenate((splits, np.zeros(leaf_count, splits.dtype))),
            mode=np.concatenate((modes.astype(np.int64), leaves + LEAF)),
            missing=np.concatenate(
                (np.zeros(count, bool) if missing is None else missing != 0, leaves != 0)
            ),
            yes=np.concatenate((np.where(yes_leaf != 0, yes + count, yes), leaves)),
            no=np.concatenate((np.where(no_leaf != 0, no + count, no), leaves)),
            roots=roots,
            weights=table,
            has_weight=has_weight,
        ),
    )


OPERATORS: Mapping[str, Operator] = {
    "TreeEnsemble": Operator(_ensemble),
    "TreeEnsembleClassifier": Operator(_classifier),
    "TreeEnsembleRegressor": Operator(_regressor),
}
