"""The device's heat and power: looks at its sensors, tells when its condition changes, has slots do
what their policies say, and remembers what must be known after the power failed.

Nothing here is done for a message. A look takes a fraction of a millisecond, in a thread since a
sensor behind a slow or hung bus must not hold up messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from agent.control import power
from agent.control.heat import (
    HINTS,
    WORST_FIRST,
    Easing,
    Reading,
    Rules,
    Strain,
    easing,
    in_words,
    worst_of,
)
from agent.control.power import PowerRecord
from agent.device.tree import Folder, Source, Tree
from agent.documents.deployment import Slot
from agent.documents.telemetry import Number
from agent.errors import StoreError
from agent.store.files import Files

log = logging.getLogger(__name__)

# Changes that can wait are saved at most this often.
SAVE_EVERY_S = 300.0
MAX_RECORD_BYTES = 4096
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Outlook(msgspec.Struct, frozen=True):
    """Where the machine is looked at, and how often.

    Args:
        source: Its files; None: those of this machine.
        calm_s: Between two looks while all is well.
        strained_s: While a condition holds or is about to.
        rules: When a condition begins and ends; `hot_c` where no profile says another.
    """

    source: Source | None = None
    calm_s: float = 10.0
    strained_s: float = 2.0
    rules: Rules = msgspec.field(default_factory=Rules)


class Eased(Protocol):
    """A slot that serves; `agent.daemon.serving.SlotServer` is one."""

    def ease(self, easing: Easing | None) -> None: ...


# kind, message, hint
Tell = Callable[[str, str, str], None]


class Climate:
    """Heat and power of this device.

    Args:
        outlook: Where it is looked at.
        files: The layer that everything on disk goes through.
        path: Of the record that is kept.
        slots: What serves at the moment, by name: its specification and its server.
        serves: Whether anything is to be served.
        hot_c: From which temperature on this device is hot; None where nobody knows yet.
        tell: Tells an event.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        outlook: Outlook,
        files: Files,
        path: Path,
        *,
        slots: Callable[[], Mapping[str, tuple[Slot, Eased]]],
        serves: Callable[[], bool],
        hot_c: Callable[[], float | None],
        tell: Tell,
        clock: Callable[[], float],
    ) -> None:
        self._outlook = outlook
        self._source = outlook.source or Folder()
        self._files = files
        self._path = path
        self._slots = slots
        self._serves = serves
        self._hot_c = hot_c
        self._tell = tell
        self._clock = clock
        self._strain = Strain()
        self._worst_seen: set[str] = set()
        self._seen: Reading | None = None
        self._record = self._saved = PowerRecord()
        self._saved_at = self._started_at = clock()
        self._closed = False
        self._saving = asyncio.Lock()

    # -- what others ask --------------------------------------------------------------------------

    @property
    def condition(self) -> str:
        """The device's; nothing before the first look."""
        return self._strain.worst if self._seen is not None else ""

    def status(self) -> dict[str, Any]:
        """The condition of now for a person, by the names of the status document."""
        seen = self._seen
        if seen is None:
            return {"condition": ""}
        held = sorted(self._strain.conditions, key=WORST_FIRST.index)
        degrees = {} if seen.hottest_c is None else {"temperature_c": seen.hottest_c}
        return {"condition": self.condition, "conditions": held, **degrees}

    @property
    def power_mode(self) -> str:
        return self._seen.power_mode if self._seen is not None else ""

    def take_window(self) -> str:
        """The worst condition since the last call; nothing before the first look."""
        if self._seen is None:
            return ""
        worst = worst_of(self._worst_seen | self._strain.conditions)
        self._worst_seen.clear()
        return worst

    def metrics(self) -> dict[str, Number]:
        """The last look by the names of telemetry; what nothing tells of is left out."""
        seen = self._seen
        if seen is None:
            return {}
        share = None
        if seen.speed_hz is not None and seen.speed_limit_hz:
            share = round(seen.speed_hz / seen.speed_limit_hz, 3)
        told: dict[str, Number | None] = {
            "hw.temperature": seen.hottest_c,
            "hw.power": seen.power_w,
            "hw.cpu.speed": seen.speed_hz,
            "hw.cpu.speed.limit": seen.speed_limit_hz,
            "edgeward.cpu.speed_share": share,
            "edgeward.cpu.throttled": int(bool(seen.slowed)) if seen.tells_slowed else None,
            "edgeward.power.undervoltage": (
                int(seen.undervoltage) if seen.undervoltage is not None else None
            ),
            **{f"edgeward.{what}.pressure": share for what, share in seen.pressure.items()},
        }
        return {name: value for name, value in told.items() if value is not None}

    # -- looking ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look, for ever."""
        await self._begin()
        while True:
            self._take(await asyncio.to_thread(self._look))
            await self._save_when_due()
            outlook = self._outlook
            at_rest = self._strain.at_rest
            await asyncio.sleep(outlook.calm_s if at_rest else outlook.strained_s)

    def _look(self) -> Reading:
        # Imported here: a start has better things to do first.
        from agent.device.condition import look

        return look(self._outlook.source)

    def _rules(self) -> Rules:
        hot_c = self._hot_c() or self._record.hot_c
        rules = self._outlook.rules
        return rules if hot_c is None else replace(rules, hot_c=hot_c)

    def _take(self, seen: Reading) -> None:
        """Go on with what was read."""
        before = self._strain.worst
        rules = self._rules()
        self._seen = seen
        self._strain = self._strain.after(seen, self._clock(), rules)
        self._worst_seen |= self._strain.conditions
        now = self._strain.worst
        if now != before:
            says = in_words(now, seen, rules)
            log.log(logging.INFO if now in ("well", "warm") else logging.WARNING, "%s", says)
            self._tell(f"device_{now}", says, HINTS.get(now, ""))
        for spec, server in self._slots().values():
            server.ease(easing(spec.policy, self._strain.conditions))

    # -- what must be known after the power failed ------------------------------------------------

    async def _begin(self) -> None:
        """Judge how the machine came to start, and note that it serves."""
        before, boot = await asyncio.to_thread(self._found)
        self._record, verdict = power.started(before, boot)
        self._saved = before
        if verdict:
            message, hint = power.in_words(verdict, before, self._record)
            log.warning("%s; %s", message, hint)
            self._tell(verdict, message, hint)
        # At once: what it is for may happen in the next second.
        serving = self._serves() and not self._closed
        self._record = replace(self._record, serving=serving)
        await self._save()

    def _found(self) -> tuple[PowerRecord, str]:
        boot = Tree(self._source).line(_BOOT_ID)
        try:
            data = self._files.read(self._path, MAX_RECORD_BYTES)
            return msgspec.json.decode(data or b"{}", type=PowerRecord), boot
        except (StoreError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.info("%s is not readable: %s", self._path, error)
            return PowerRecord(), boot

    async def _save_when_due(self) -> None:
        now, seen, record = self._clock(), self._seen, self._record
        low = seen is not None and seen.undervoltage is True
        calm = now - self._started_at >= power.CALM_S
        self._record = replace(
            record,
            serving=self._serves() and not self._closed,
            undervoltage=record.undervoltage or low,
            resets=0 if calm else record.resets,
            hot_c=self._hot_c() or record.hot_c,
        )
        urgent = self._record.undervoltage and not self._saved.undervoltage
        begins = self._record.serving and not self._saved.serving
        if urgent or begins or now - self._saved_at >= SAVE_EVERY_S:
            await self._save()

    async def close(self) -> None:
        """Note that the agent ends in order, before anything else is done about that."""
        self._closed = True
        self._record = replace(self._record, serving=False)
        await self._save()

    async def _save(self) -> None:
        async with self._saving:
            record = self._record
            if record == self._saved:
                return
            self._saved_at = self._clock()
            try:
                data = msgspec.json.encode(record)
                await asyncio.to_thread(self._files.replace, self._path, data)
                self._saved = record
            except StoreError as error:
                log.info("%s was not saved: %s", self._path, error)
