"""What the demo's own client sent and received: the only source of the numbers it shows."""

from __future__ import annotations

import statistics
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

RECENT = 40
MAX_ROUND_TRIPS = 5000


@dataclass
class Sent:
    """One message, and what a right answer to it would be."""

    slot: str
    truth: str
    at: float
    # False where it only fills a window.
    expects_answer: bool


@dataclass
class SlotLedger:
    """One slot's answers."""

    answered: int = 0
    right: int = 0
    # Packs in the order in which they first answered; a pack that comes back counts again.
    packs: list[str] = field(default_factory=list)
    by_pack: Counter[str] = field(default_factory=Counter)
    right_by_pack: Counter[str] = field(default_factory=Counter)
    version_of: dict[str, str] = field(default_factory=dict)
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    round_trips_ms: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_ROUND_TRIPS))
    runtime: str = ""
    provider: str = ""

    @property
    def switches(self) -> int:
        return max(0, len(self.packs) - 1)

    def accuracy_of(self, pack: str) -> float | None:
        count = self.by_pack[pack]
        return self.right_by_pack[pack] / count if count else None

    @property
    def recent_accuracy(self) -> float | None:
        return sum(self.recent) / len(self.recent) if self.recent else None

    @property
    def p50_ms(self) -> float | None:
        trips = list(self.round_trips_ms)
        return round(statistics.median(trips), 3) if trips else None


class Ledger:
    """Matches answers with messages by id."""

    def __init__(self) -> None:
        self.sent: dict[str, Sent] = {}
        self.slots: dict[str, SlotLedger] = {}
        self.answered: set[str] = set()
        self.duplicates = 0
        self.errors = 0

    def note_sent(self, message_id: str, sent: Sent) -> None:
        self.sent[message_id] = sent

    def note_answer(self, answer: dict[str, Any], label: str, at: float) -> None:
        """Take one prediction.

        Args:
            answer: The V2 response.
            label: The class that it names.
            at: When it came, in the clock of `Sent.at`.
        """
        message_id = str(answer.get("id"))
        sent = self.sent.get(message_id)
        if sent is None or "outputs" not in answer:
            self.errors += 1
            return
        if message_id in self.answered:
            self.duplicates += 1
            return
        self.answered.add(message_id)
        slot = self.slots.setdefault(sent.slot, SlotLedger())
        said = answer.get("parameters", {})
        pack = str(said.get("pack", ""))
        if not slot.packs or slot.packs[-1] != pack:
            slot.packs.append(pack)
        right = label == sent.truth
        slot.answered += 1
        slot.right += right
        slot.by_pack[pack] += 1
        slot.right_by_pack[pack] += right
        slot.version_of[pack] = str(answer.get("model_version", ""))
        slot.recent.append(right)
        slot.round_trips_ms.append((at - sent.at) * 1000)
        slot.runtime, slot.provider = str(said.get("runtime", "")), str(said.get("provider", ""))

    @property
    def predictions(self) -> int:
        return len(self.answered)

    @property
    def lost(self) -> int:
        """Messages that expect an answer and have none (yet)."""
        expected = sum(sent.expects_answer for sent in self.sent.values())
        wanted = sum(self.sent[message_id].expects_answer for message_id in self.answered)
        return expected - wanted

    @property
    def switches(self) -> int:
        return sum(slot.switches for slot in self.slots.values())
