"""Many decision trees as a few arrays, walked for all rows and trees at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from agent.errors import BadInput
from agent.runtimes.api import Array
from agent.runtimes.reference.node import Made

# Rows that are walked together: their places, one a tree, are held at once.
_PLACES = 1_000_000
# By the number that TreeEnsemble (version 5) gives a mode.
MODES: tuple[str, ...] = (
    *("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"),
)
LEAF = -1
_COMPARE: tuple[Callable[[Array, Array], Array], ...] = (
    *(np.less_equal, np.less, np.greater_equal, np.greater, np.equal, np.not_equal),
)


class Forest(msgspec.Struct, frozen=True):
    """Trees over one numbering of all their nodes.

    Attributes:
        feature: Which number of a row a node looks at.
        threshold: What it compares it with; of the type in which it is compared.
        mode: Place in `MODES`; `LEAF` for a leaf.
        missing: Whether a NaN goes the way of `yes`.
        yes, no: The next node.
        roots: One a tree, in the order in which trees are added up.
        weights: (nodes, targets) What a leaf adds to each target.
        has_weight: The same shape: whether it adds to it at all.
    """

    feature: Array
    threshold: Array
    mode: Array
    missing: Array
    yes: Array
    no: Array
    roots: Array
    weights: Array
    has_weight: Array

    def leaves(self, x: Array) -> Array:
        """Return the leaf that each row reaches in each tree: (rows, trees).

        Raises:
            BadInput: A row has fewer numbers than the trees look at.
        """
        if x.ndim > 2 or x.ndim == 0 or x.dtype.kind not in "fiu":
            raise BadInput(f"trees take rows of numbers, not {x.ndim} dimensions of {x.dtype}")
        rows = x.reshape(-1, x.shape[-1])
        widest = int(self.feature.max(initial=-1)) + 1
        if rows.shape[1] < widest:
            raise BadInput(f"a row has {rows.shape[1]} numbers, the trees look at {widest}")
        rows = rows.astype(self.threshold.dtype, copy=False)
        step = max(1, _PLACES // max(1, self.roots.size))
        parts = [self._walk(rows[at : at + step]) for at in range(0, len(rows), step)]
        leaves: Array = np.concatenate([np.zeros((0, self.roots.size), np.int64), *parts])
        return leaves

    def _walk(self, rows: Array) -> Array:
        at: Array = np.broadcast_to(self.roots, (len(rows), self.roots.size)).copy()
        line = np.arange(len(rows))[:, None]
        modes = np.unique(self.mode[self.mode != LEAF]).tolist()
        while True:
            mode = self.mode[at]
            if np.all(mode == LEAF):
                return at
            value, threshold = rows[line, self.feature[at]], self.threshold[at]
            goes = np.zeros(at.shape, bool)
            for one in modes:
                goes |= (mode == one) & _COMPARE[one](value, threshold)
            goes |= self.missing[at] & np.isnan(value)
            at = np.where(mode == LEAF, at, np.where(goes, self.yes[at], self.no[at]))

    def aggregate(self, leaves: Array, how: str) -> tuple[Array, Array]:
        """Put the trees' answers together.

        Args:
            leaves: From `leaves`.
            how: `SUM`, `AVERAGE`, `MIN` or `MAX`.

        Returns:
            Scores (rows, targets) in the weights' type, and whether any tree gave one.
        """
        there = np.zeros((len(leaves), self.weights.shape[1]), bool)
        total = np.zeros(there.shape, self.weights.dtype)
        join = _JOIN[how]
        # Tree by tree: the sum of 32-bit numbers depends on the order.
        for tree in range(self.roots.size):
            adds, value = self.has_weight[leaves[:, tree]], self.weights[leaves[:, tree]]
            joined = np.where(there, join(total, value), value)
            total = np.where(adds, joined, total)
            there |= adds
        if how == "AVERAGE":
            total = (total / total.dtype.type(self.roots.size)).astype(total.dtype)
        return total, there


_JOIN: Mapping[str, Callable[[Array, Array], Array]] = {
    "SUM": np.add,
    "AVERAGE": np.add,
    "MIN": np.minimum,
    "MAX": np.maximum,
}


def check(made: Made, forest: Forest) -> Forest:
    """Return a forest that every walk leaves.

    Raises:
        ModelRejected: A node leads outside, or in a circle.
    """
    count = forest.mode.size
    inner = forest.mode != LEAF
    for side in (forest.yes, forest.no):
        if np.any((side[inner] < 0) | (side[inner] >= count)):
            raise made.refuse("a node of a tree leads to none")
    if np.any(forest.feature[inner] < 0):
        raise made.refuse("a node of a tree looks at no number")
    if np.any((forest.roots < 0) | (forest.roots >= count)):
        raise made.refuse("a tree has no root")
    _check_ends(made, forest)
    return forest


def _check_ends(made: Made, forest: Forest) -> None:
    """Go down all trees at once, level by level; a level may not hold more than all nodes."""
    level = np.unique(forest.roots)
    for _ in range(forest.mode.size + 1):
        level = level[forest.mode[level] != LEAF]
        if not level.size:
            return
        level = np.unique(np.concatenate((forest.yes[level], forest.no[level])))
    raise made.refuse("a tree leads in a circle")
