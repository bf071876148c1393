"""The small trainer learns what it must and gives the same network for the same seed."""

from __future__ import annotations

import numpy as np

from agent.demo.datasets import Classes, Floats
from agent.demo.networks import softmax, train_classifier, train_regressor


def _square(count: int) -> tuple[Floats, Classes]:
    rows = np.random.default_rng(1).uniform(-1, 1, (count, 2)).astype(np.float32)
    return rows, (rows[:, 0] * rows[:, 1] > 0).astype(np.intp)


def test_a_hidden_layer_learns_a_boundary_that_no_line_draws() -> None:
    rows, labels = _square(800)
    deep = train_classifier(rows, labels, hidden=(16,), epochs=60, seed=1)
    flat = train_classifier(rows, labels, hidden=(), epochs=60, seed=1)
    assert np.mean(deep(rows).argmax(axis=1) == labels) > 0.95
    assert np.mean(flat(rows).argmax(axis=1) == labels) < 0.7


def test_scaling_is_part_of_the_network() -> None:
    rows, labels = _square(400)
    far = (rows * [1e-3, 1e3] + [5, -2e3]).astype(np.float32)
    network = train_classifier(far, labels, hidden=(16,), epochs=60, seed=1)
    assert np.mean(network(far).argmax(axis=1) == labels) > 0.9


def test_a_regressor_answers_in_the_unit_of_its_targets() -> None:
    rows = np.random.default_rng(2).uniform(-1, 1, (500, 3)).astype(np.float32)
    targets = (rows @ np.array([3, -2, 1]) + 40).astype(np.float32)
    network = train_regressor(rows, targets, hidden=(8,), epochs=60, seed=1)
    assert np.abs(network(rows)[:, 0] - targets).mean() < 0.3


def test_the_same_seed_trains_the_same_network() -> None:
    rows, labels = _square(200)
    first, second = (
        train_classifier(rows, labels, hidden=(4,), epochs=3, seed=9) for _ in range(2)
    )
    assert all(
        np.array_equal(a.weights, b.weights)
        for a, b in zip(first.layers, second.layers, strict=True)
    )


def test_softmax_rows_sum_to_one_even_for_huge_logits() -> None:
    rows = softmax(np.array([[1e4, 0, -1e4], [0, 0, 0]], np.float32))
    assert np.allclose(rows.sum(axis=1), 1)
    assert np.isfinite(rows).all()
