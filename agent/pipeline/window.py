"""Windows: how the readings of one source become one input, and when each may be forgotten.

A window holds its readings' sequence numbers. Whatever happens, each leaves it exactly once: with
the step after which no later window needs it, or when its source is evicted.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from agent.documents.manifest import Tensor, Window
from agent.errors import DocumentError
from agent.pipeline.tensors import DTYPES, Arrays, show_shape

# Of all windows of all sources together.
MAX_HELD_BYTES = 128 * 1024 * 1024
MAX_READINGS = 65536


class Pushed(NamedTuple):
    """What a reading caused."""

    # The readings of a complete window, oldest first, along a new leading axis.
    ready: Arrays | None
    released: tuple[int, ...]
    # Readings given up because a window by time held as many as it may.
    dropped: int = 0


class OpenWindow(Protocol):
    """The readings of one source."""

    def push(self, reading: Arrays, sequence: int, time_ms: float) -> Pushed:
        """Take one reading; its arrays are copied."""

    def held(self) -> tuple[int, ...]:
        """Return the sequence numbers of the readings that are still needed."""


class Rows:
    """Readings in one contiguous array per tensor: rows are added at the end and taken away at
    the front, and all of them are one slice."""

    def __init__(self, tensors: Sequence[Tensor], capacity: int) -> None:
        """Prepare an empty one.

        Args:
            tensors: What one reading consists of; no free dimensions.
            capacity: Rows to make room for at first.
        """
        self._arrays = {
            tensor.name: np.zeros((capacity, *tensor.shape), DTYPES[tensor.datatype])
            for tensor in tensors
        }
        self._capacity = capacity
        self._start = self._end = 0

    def __len__(self) -> int:
        return self._end - self._start

    def append(self, reading: Arrays) -> None:
        if self._end == self._capacity:
            self._make_room()
        for name, array in self._arrays.items():
            array[self._end] = reading[name]
        self._end += 1

    def drop(self, count: int) -> None:
        """Forget the oldest rows."""
        self._start += count
        if self._start == self._end:
            self._start = self._end = 0

    def copy(self) -> Arrays:
        """Return all rows, oldest first."""
        return {name: array[self._start : self._end].copy() for name, array in self._arrays.items()}

    def _make_room(self) -> None:
        rows = len(self)
        # Half empty: move to the front. Else: twice as much room.
        capacity = self._capacity if rows * 2 <= self._capacity else self._capacity * 2
        for name, array in self._arrays.items():
            moved = np.zeros_like(array, shape=(capacity, *array.shape[1:]))
            moved[:rows] = array[self._start : self._end]
            self._arrays[name] = moved
        self._capacity, self._start, self._end = capacity, 0, rows


class CountWindow:
    """The newest `size` readings; the next window starts `step` readings later.

    Where the window stands is told by its fullness alone, so replaying exactly the readings that
    were not released restores it.
    """

    def __init__(self, tensors: Sequence[Tensor], size: int, step: int) -> None:
        self._rows = Rows(tensors, 2 * size)
        self._sequences: deque[int] = deque()
        self._size = size
        self._step = step
        # Readings between two windows, where `step` is larger than `size`.
        self._skip = 0

    def push(self, reading: Arrays, sequence: int, time_ms: float) -> Pushed:
        if self._skip:
            self._skip -= 1
            return Pushed(None, (sequence,))
        self._rows.append(reading)
        self._sequences.append(sequence)
        if len(self._sequences) < self._size:
            return Pushed(None, ())
        ready = self._rows.copy()
        gone = min(self._step, self._size)
        self._skip = self._step - gone
        self._rows.drop(gone)
        return Pushed(ready, tuple(self._sequences.popleft() for _ in range(gone)))

    def held(self) -> tuple[int, ...]:
        return tuple(self._sequences)


class TimeWindow:
    """The readings of a span of time.

    Tumbling: the reading that comes `span_ms` after the window's first one closes it and starts the
    next. Sliding: every `step` readings, once a whole span has been seen. Time is the sum of
    the steps forward: a clock that is set back holds nothing up.
    """

    def __init__(
        self, tensors: Sequence[Tensor], span_ms: float, step: int, limit: int, *, tumbling: bool
    ) -> None:
        """Prepare an empty window.

        Args:
            tensors: What one reading consists of.
            span_ms: How long a window is.
            step: Sliding: readings from one window to the next.
            limit: Readings held at most; beyond it the oldest is given up.
            tumbling: Windows follow each other, else each reading moves the window on.
        """
        self._rows = Rows(tensors, 16)
        self._sequences: deque[int] = deque()
        self._times: deque[float] = deque()
        self._span_ms, self._step, self._limit = span_ms, step, limit
        self._tumbling = tumbling
        self._last_ms: float | None = None
        self._elapsed_ms = self._opened_ms = 0.0
        self._since = 0

    def push(self, reading: Arrays, sequence: int, time_ms: float) -> Pushed:
        forward = 0.0 if self._last_ms is None else max(0.0, time_ms - self._last_ms)
        self._last_ms = time_ms
        # More than a span is a gap; how long does not matter, and a sum of gaps stays finite.
        self._elapsed_ms += min(forward, 2 * self._span_ms)
        return self._tumble(reading, sequence) if self._tumbling else self._slide(reading, sequence)

    def held(self) -> tuple[int, ...]:
        return tuple(self._sequences)

    def _tumble(self, reading: Arrays, sequence: int) -> Pushed:
        ready: Arrays | None = None
        released: tuple[int, ...] = ()
        if self._elapsed_ms - self._opened_ms >= self._span_ms:
            ready, released = self._rows.copy(), self._release(len(self._times))
            self._opened_ms = self._elapsed_ms
        return self._add(reading, sequence, ready, released)

    def _slide(self, reading: Arrays, sequence: int) -> Pushed:
        oldest = self._elapsed_ms - self._span_ms
        gone = sum(1 for _ in itertools.takewhile(lambda time: time <= oldest, self._times))
        pushed = self._add(reading, sequence, None, self._release(gone))
        self._since += 1
        # The first reading stands at elapsed 0.
        if self._since < self._step or self._elapsed_ms < self._span_ms:
            return pushed
        self._since = 0
        return pushed._replace(ready=self._rows.copy())

    def _add(
        self, reading: Arrays, sequence: int, ready: Arrays | None, released: tuple[int, ...]
    ) -> Pushed:
        dropped = self._release(1) if len(self._times) == self._limit else ()
        self._rows.append(reading)
        self._sequences.append(sequence)
        self._times.append(self._elapsed_ms)
        return Pushed(ready, released + dropped, len(dropped))

    def _release(self, count: int) -> tuple[int, ...]:
        self._rows.drop(count)
        for _ in range(count):
            self._times.popleft()
        return tuple(self._sequences.popleft() for _ in range(count))


def compile_window(
    window: Window, tensors: Sequence[Tensor], max_sources: int, *, path: str
) -> tuple[Callable[[], OpenWindow], tuple[Tensor, ...]]:
    """Return what makes the window of a new source, and what a complete one holds.

    Args:
        window: As the manifest declares it.
        tensors: What one reading consists of.
        max_sources: How many windows there may be at a time.
        path: Where errors point.

    Raises:
        DocumentError: The window cannot be held, or its readings differ in shape.
    """
    if (window.size is None) == (window.span_ms is None):
        raise DocumentError(path, "either size or span_ms", "both" if window.size else "neither")
    for tensor in tensors:
        if -1 in tensor.shape:
            raise DocumentError(
                f"{path}: the shape of {tensor.name}", "no free dimension", show_shape(tensor.shape)
            )
    reading_bytes = sum(
        math.prod(tensor.shape) * DTYPES[tensor.datatype].itemsize for tensor in tensors
    )
    # An array of readings has up to twice (by count) or four times (by time) the rows it needs.
    spare = 2 if window.size else 4
    rows = MAX_HELD_BYTES // max(1, max_sources * reading_bytes * spare)
    if rows < (window.size or 2):
        raise DocumentError(
            f"{path}.size",
            f"at most {rows} readings of {reading_bytes} bytes for {max_sources} sources",
            str(window.size or "a span of time"),
            hint="lower limits.max_sources or the size of the window",
        )
    leading = -1 if window.size is None else window.size
    held = tuple(
        msgspec.structs.replace(tensor, shape=(leading, *tensor.shape)) for tensor in tensors
    )
    tumbling = window.kind == "tumbling"
    if window.size is not None:
        size, step = window.size, window.size if tumbling else window.step
        return (lambda: CountWindow(tensors, size, step)), held
    span_ms, limit = float(window.span_ms or 0), min(rows, MAX_READINGS)
    return (lambda: TimeWindow(tensors, span_ms, window.step, limit, tumbling=tumbling)), held
