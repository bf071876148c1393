"""Small dense networks, trained in NumPy within a second or two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
BATCH = 64
WEIGHT_DECAY = 1e-3


@dataclass(frozen=True)
class Layer:
    """`weights`: (inputs, outputs) float32; `bias`: (outputs,)."""

    weights: Floats
    bias: Floats


@dataclass(frozen=True)
class Network:
    """Dense layers with ReLU between them and nothing after the last."""

    layers: tuple[Layer, ...]

    def __call__(self, rows: Floats) -> Floats:
        """(n, inputs) to (n, outputs)."""
        for layer in self.layers[:-1]:
            rows = np.maximum(rows @ layer.weights + layer.bias, 0)
        return rows @ self.layers[-1].weights + self.layers[-1].bias


def softmax(logits: Floats) -> Floats:
    """Rows that sum to one."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def train_classifier(
    rows: Floats, labels: NDArray[np.intp], *, hidden: tuple[int, ...], epochs: int, seed: int
) -> Network:
    """Minimise cross-entropy.

    Args:
        rows: (n, features); scaling is learned from them and folded into the first layer.
        labels: (n,) class numbers from 0.
        hidden: Width of each hidden layer; empty for logistic regression.
        epochs: Passes over the rows.
        seed: Same seed, same network.
    """
    targets = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
    return _train(rows, targets, (*hidden, targets.shape[1]), epochs, seed, softmax)


def train_regressor(
    rows: Floats, targets: Floats, *, hidden: tuple[int, ...], epochs: int, seed: int
) -> Network:
    """Minimise the squared error of one output; arguments as for `train_classifier`."""
    centre, scale = targets.mean(), targets.std()
    scaled = ((targets - centre) / scale)[:, None].astype(np.float32)
    network = _train(rows, scaled, (*hidden, 1), epochs, seed, np.asarray)
    last = network.layers[-1]
    unscaled = Layer(last.weights * scale, last.bias * scale + centre)
    return Network((*network.layers[:-1], unscaled))


def _train(
    rows: Floats,
    targets: Floats,
    widths: tuple[int, ...],
    epochs: int,
    seed: int,
    link: Callable[[Floats], Floats],
) -> Network:
    """Adam on mini-batches; `link` is the one whose loss has the gradient link(out) - target."""
    rng = np.random.default_rng(seed)
    centre, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    rows = (rows - centre) / scale
    weights = _initial(rows.shape[1], widths, rng)
    adam = _Adam(weights)
    for epoch in range(epochs):
        rate = 0.01 * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        order = rng.permutation(len(rows))
        for start in range(0, len(rows), BATCH):
            chosen = order[start : start + BATCH]
            adam.step(_gradients(weights, rows[chosen], targets[chosen], link), rate)
    return _network(weights, centre, scale)


def _initial(inputs: int, widths: tuple[int, ...], rng: np.random.Generator) -> list[Floats]:
    """Weights and biases in turn (He et al., 2015)."""
    sizes = zip((inputs, *widths), widths, strict=False)
    pairs = [
        (rng.standard_normal((fan_in, out)) * np.sqrt(2 / fan_in), np.zeros(out))
        for fan_in, out in sizes
    ]
    return [array.astype(np.float32) for pair in pairs for array in pair]


def _gradients(
    weights: list[Floats], rows: Floats, targets: Floats, link: Callable[[Floats], Floats]
) -> list[Floats]:
    """Back-propagation, in the order of `weights`."""
    activations = [rows]
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        activations.append(np.maximum(activations[-1] @ weight + bias, 0))
    delta = (link(activations[-1] @ weights[-2] + weights[-1]) - targets) / len(rows)
    gradients: list[Floats] = []
    for weight, active in zip(weights[-2::-2], reversed(activations), strict=True):
        gradients[:0] = [active.T @ delta + WEIGHT_DECAY * weight, delta.sum(axis=0)]
        delta = (delta @ weight.T) * (active > 0)
    return gradients


class _Adam:
    """Kingma and Ba, "Adam", 2015, with its usual constants; changes the arrays in place."""

    def __init__(self, weights: list[Floats]) -> None:
        self._weights = weights
        self._first = [np.zeros_like(weight) for weight in weights]
        self._second = [np.zeros_like(weight) for weight in weights]
        self._steps = 0

    def step(self, gradients: list[Floats], rate: float) -> None:
        self._steps += 1
        rate *= np.sqrt(1 - 0.999**self._steps) / (1 - 0.9**self._steps)
        rows = zip(self._weights, gradients, self._first, self._second, strict=True)
        for weight, gradient, first, second in rows:
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient * gradient - second)
            weight -= np.float32(rate) * first / (np.sqrt(second) + np.float32(1e-8))


def _network(weights: list[Floats], centre: Floats, scale: Floats) -> Network:
    """Layers whose first one takes rows as they are: the scaling moves into its weights."""
    layers = [Layer(weights[i], weights[i + 1]) for i in range(0, len(weights), 2)]
    first = layers[0].weights / scale[:, None]
    layers[0] = Layer(first, layers[0].bias - centre @ first)
    return Network(tuple(layers))
