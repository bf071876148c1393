"""What a chain remembers of each source, for a bounded number of sources."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from agent.pipeline.steps.api import Memory
from agent.pipeline.tensors import Arrays
from agent.pipeline.window import OpenWindow


class Source(msgspec.Struct):
    """One source: its open window, the state that the model gave back, what steps keep."""

    window: OpenWindow | None
    state: Arrays
    memory: Memory = msgspec.field(default_factory=dict)


class Sources:
    """The sources heard of last. A new one beyond the limit takes the place of the one that was
    silent for longest."""

    def __init__(
        self, limit: int, make_window: Callable[[], OpenWindow] | None, first_state: Arrays
    ) -> None:
        """Prepare for `limit` sources.

        Args:
            limit: How many are remembered.
            make_window: Makes the window of a new source, where the pack has one.
            first_state: What the state of a new source is.
        """
        self._limit = limit
        self._make_window = make_window
        self._first_state = first_state
        self._by_name: OrderedDict[str, Source] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> tuple[Source, tuple[int, ...]]:
        """Return a source, and the sequence numbers that its coming pushed out."""
        source = self._by_name.get(name)
        if source is not None:
            self._by_name.move_to_end(name)
            return source, ()
        released: tuple[int, ...] = ()
        if len(self._by_name) >= self._limit:
            _, oldest = self._by_name.popitem(last=False)
            self.evicted += 1
            released = oldest.window.held() if oldest.window else ()
        window = self._make_window() if self._make_window else None
        source = self._by_name[name] = Source(window, dict(self._first_state))
        return source, released

    def peek(self, name: str) -> Source | None:
        """Return a source without counting it as heard of."""
        return self._by_name.get(name)

    def held(self) -> tuple[int, ...]:
        """Return all sequence numbers that open windows still need."""
        windows = [source.window for source in self._by_name.values() if source.window]
        return tuple(sequence for window in windows for sequence in window.held())
