"""What the demo's two bearing models look at, in NumPy; `onnx_files` builds the same as a graph.

Training uses these functions and the device runs the graph, so the golden samples compare two
independent implementations.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.demo.physics import SAMPLE_RATE_HZ, WINDOW

Floats: TypeAlias = NDArray[np.float32]

BANDS = 8
TAPS = 48
ENVELOPE_STEP = 8
ENVELOPE_LENGTH = (WINDOW - TAPS + 1) // ENVELOPE_STEP
ENVELOPE_HZ = np.arange(20.0, 196.0, 6.0)
FLOOR = 1e-6


def overall_level(windows: Floats) -> Floats:
    """Log of the mean square: what a plain vibration-severity rule looks at.

    Args:
        windows: (n, 512) acceleration in g.

    Returns:
        (n, 1) float32.
    """
    centred = windows - windows.mean(axis=1, keepdims=True)
    return np.asarray(np.log(np.square(centred).mean(axis=1, keepdims=True) + FLOOR))


def band_filters() -> Floats:
    """(8, 48) FIR band-passes of equal width from 0 to 1,600 Hz: Hamming-windowed sinc."""
    edges = np.linspace(0.0, 0.5, BANDS + 1)
    tap = np.arange(TAPS) - (TAPS - 1) / 2
    low_pass = 2 * edges[:, None] * np.sinc(2 * edges[:, None] * tap)
    return (np.diff(low_pass, axis=0) * np.hamming(TAPS)).astype(np.float32)


def envelope_basis() -> tuple[Floats, Floats]:
    """Cosine and sine at the frequencies where a spall's impacts repeat, under a Hann window.

    Returns:
        Two (58, 30) matrices: envelope samples by frequency.
    """
    at_s = np.arange(ENVELOPE_LENGTH) * ENVELOPE_STEP / SAMPLE_RATE_HZ
    angle = 2 * np.pi * at_s[:, None] * ENVELOPE_HZ
    weight = (np.hanning(ENVELOPE_LENGTH) * 2 / ENVELOPE_LENGTH)[:, None]
    return (weight * np.cos(angle)).astype(np.float32), (weight * np.sin(angle)).astype(np.float32)


def envelope_spectrum(windows: Floats) -> Floats:
    """Log energy of eight bands, and the log spectrum of the envelope of the upper half.

    Envelope analysis as in Randall and Antoni, MSSP 25 (2011), section 4: impacts ring a
    resonance far above the rotation, and the rate at which they repeat stands in the envelope.

    Args:
        windows: (n, 512) acceleration in g.

    Returns:
        (n, 38) float32.
    """
    return np.concatenate([_envelope_spectrum(part) for part in _slices(windows)])


def _slices(windows: Floats, size: int = 256) -> list[Floats]:
    """Few enough windows at a time that the filtered signals fit a processor's cache."""
    return [windows[start : start + size] for start in range(0, len(windows), size)]


def _envelope_spectrum(windows: Floats) -> Floats:
    segments = np.lib.stride_tricks.sliding_window_view(windows, TAPS, axis=1)
    power = np.square(segments @ band_filters().T)
    bands = power.mean(axis=1) + FLOOR
    upper = power[:, : ENVELOPE_LENGTH * ENVELOPE_STEP, BANDS // 2 :].sum(axis=2)
    envelope = upper.reshape(len(windows), ENVELOPE_LENGTH, ENVELOPE_STEP).mean(axis=2)
    relative = envelope / (envelope.mean(axis=1, keepdims=True) + FLOOR) - 1
    cosine, sine = envelope_basis()
    spectrum = np.square(relative @ cosine) + np.square(relative @ sine) + FLOOR
    return np.concatenate([np.log(bands), np.log(spectrum)], axis=1)
