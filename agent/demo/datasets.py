"""Labelled sensor data of machines drawn at random: to train the demo's models, to judge them."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.demo import physics

Floats: TypeAlias = NDArray[np.float32]
Classes: TypeAlias = NDArray[np.intp]
Labelled: TypeAlias = tuple[Floats, Classes]

THERMAL_WINDOW = 8
_WEAR_RANGES = (
    (0.0, physics.WORN_FROM),
    (physics.WORN_FROM, physics.FAULTY_FROM),
    (physics.FAULTY_FROM, 1.0),
)


def snapshots(machines: int, each: int, rng: np.random.Generator) -> Labelled:
    """Vibration of machines drawn at random, each condition equally often.

    Returns:
        (machines * each, 512) acceleration in g, and the number of each one's condition.
    """
    windows, truth = [], []
    for _ in range(machines):
        m = physics.machine("training", 1.0, rng)
        for number in range(each):
            label = number % len(_WEAR_RANGES)
            load = m.load + m.load_swing * rng.uniform(-1, 1)
            windows.append(physics.vibration(m, rng.uniform(*_WEAR_RANGES[label]), load, rng))
            truth.append(label)
    return np.array(windows), np.array(truth)


def thermal_windows(machines: int, rng: np.random.Generator) -> Labelled:
    """Sliding windows over three hours of slow readings of machines drawn at random.

    Returns:
        (n, 8, 3) readings in the order of `physics.THERMAL_CHANNELS`, and the number of the
        condition at each window's last reading.
    """
    windows, truth = [], []
    for _ in range(machines):
        m = physics.machine("training", rng.uniform(4_000, 20_000), rng)
        node = physics.SensorNode(m, seed=int(rng.integers(2**32)))
        run = [node.thermal(at_s) for at_s in np.arange(0, 10_800, physics.THERMAL_EVERY_S)]
        rows = np.array([(r.bearing_c, r.ambient_c, r.current_a) for r in run], np.float32)
        sliding = np.lib.stride_tricks.sliding_window_view(rows, THERMAL_WINDOW, axis=0)
        windows.append(sliding.transpose(0, 2, 1))
        truth += [physics.CONDITIONS.index(r.condition) for r in run[THERMAL_WINDOW - 1 :]]
    return np.concatenate(windows), np.array(truth)
