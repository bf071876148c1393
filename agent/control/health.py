"""When a worker that dies is bad luck, and when its pack is to blame."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

# A message that kills a worker is tried twice, so one of them alone costs two deaths in a row.
IN_A_ROW = 5
IN_A_ROW_ON_PROBATION = 3
IN_THE_WINDOW = 10
WINDOW_S = 300.0
# Good answers after which a pack that kept dying counts as well again.
RECOVERED_AFTER = 20
RESTART_FIRST_S = 0.05
RESTART_LAST_S = 30.0


class Health(msgspec.Struct, frozen=True):
    """The deaths of one slot's workers since its pack began to serve."""

    in_a_row: int = 0
    recent: tuple[float, ...] = ()

    def died(self, now: float) -> Health:
        """Count a death. `now` is in monotonic seconds."""
        recent = tuple(at for at in self.recent if now - at < WINDOW_S)[-IN_THE_WINDOW:]
        return Health(self.in_a_row + 1, (*recent, now))

    def answered(self) -> Health:
        """A message was answered: the row of deaths is broken."""
        return replace(self, in_a_row=0) if self.in_a_row else self

    def crash_looping(self, *, on_probation: bool) -> bool:
        limit = IN_A_ROW_ON_PROBATION if on_probation else IN_A_ROW
        return self.in_a_row >= limit or len(self.recent) >= IN_THE_WINDOW

    def restart_after_s(self) -> float:
        """The first restart is immediate; then back off, so that a dying pack costs little."""
        if self.in_a_row <= 1:
            return 0.0
        return min(RESTART_LAST_S, RESTART_FIRST_S * 2.0 ** min(self.in_a_row - 2, 12))
