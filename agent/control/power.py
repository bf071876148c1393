"""Whether a machine that restarted lost its power: told apart from a pack that keeps dying."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

# Without a reset for so long, the last one was a single event.
CALM_S = 3600.0

Verdict = Literal["", "power_lost", "power_supply"]


class PowerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What must be known after a machine went off without a word. It is saved when it changes: once
    or twice from one start of the machine to the next, since memory cards wear.

    Attributes:
        boot: The kernel's random id of this start of the machine.
        serving: Slots are served, and nobody has asked the agent to end.
        undervoltage: The supply's voltage was too low since the machine started.
        resets: Restarts without a word, with less than an hour of service between them.
        hot_c: From this temperature on the device is hot, as its profile said last.
    """

    boot: str = ""
    serving: bool = False
    undervoltage: bool = False
    resets: int = 0
    hot_c: float | None = None


def started(record: PowerRecord, boot: str) -> tuple[PowerRecord, Verdict]:
    """Judge a start of the agent.

    Args:
        record: What was saved last.
        boot: Of the machine as it is now; nothing where that cannot be read.

    Returns:
        The record of this start, and what happened: nothing of note; `power_lost`: the machine
        restarted while it served; `power_supply`: and its supply is the likely reason, since its
        voltage had been too low or it is not the first time within an hour.
    """
    if not boot or not record.boot or boot == record.boot:
        # The agent alone was restarted, which says nothing about power.
        return replace(record, boot=boot or record.boot), ""
    fresh = PowerRecord(boot=boot, hot_c=record.hot_c)
    if not record.serving:
        return fresh, ""
    resets = record.resets + 1
    verdict: Verdict = "power_supply" if record.undervoltage or resets > 1 else "power_lost"
    return replace(fresh, resets=resets), verdict


def in_words(verdict: Verdict, before: PowerRecord, now: PowerRecord) -> tuple[str, str]:
    """What a person is told: a sentence, and what to do."""
    what = "the machine restarted without being shut down, while slots were served"
    if before.undervoltage:
        what += "; before that its supply's voltage was too low"
    if now.resets > 1:
        what += f"; {now.resets} times with less than an hour between"
    if verdict == "power_supply":
        return what, (
            "power supply: take a stronger one, a shorter or thicker cable, less at the USB ports; "
            "it is not held against any pack"
        )
    return what, (
        "if nobody pulled the plug, look at the power supply first; it is not held against any pack"
    )
