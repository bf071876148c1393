"""Heat and power: what condition a device is in, and what its slots do about it.

A condition begins when a reading passes its threshold and ends only when the reading has stayed
clear of a lower one for a while, so that it does not flap. Times are monotonic seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from agent.documents.choice import Choice, Way
from agent.documents.deployment import Policy
from agent.documents.device import Sensor

WELL = "well"
# The worst first: it names the condition where several hold. Lack of voltage slows a board down
# and is the reason then; heat is what slowing down already answers.
WORST_FIRST = ("undervoltage", "throttled", "hot", "pressed", "warm")
# A way is lighter where a run takes so much less CPU time; less would be within the noise.
LIGHTER = 0.9
SINCE_BOOT = " since boot"


class Rules(msgspec.Struct, frozen=True):
    """When a condition begins and ends.

    Args:
        hot_c: From this temperature on the device is hot.
        warm_below_c: It is warm from so many degrees below that on.
        cooler_by_c: Hot and warm end so many degrees below where they begin.
        pressed_from: Share of time that tasks wait for memory at which the device is pressed.
        pressed_until: Below this it is no longer.
        enter_s: How long a temperature must last, since one reading may be wrong. Flags and
            pressure, which is a mean already, count at once.
        leave_s: How long a condition goes on after its cause was last seen.
    """

    hot_c: float = 80.0
    warm_below_c: float = 10.0
    cooler_by_c: float = 5.0
    pressed_from: float = 0.1
    pressed_until: float = 0.05
    enter_s: float = 1.5
    leave_s: float = 30.0


class Reading(msgspec.Struct, frozen=True):
    """What the sensors say at one moment; None where none tells.

    Attributes:
        hottest: Name of the hottest sensor.
        hottest_c: Its temperature.
        slowed: What says that the processor is slowed down.
        tells_slowed: Whether anything would say so.
        undervoltage: The supply's voltage is too low.
        pressure: Share of the last ten seconds in which some task waited, by resource.
        speed_hz: Of the fastest processor.
        speed_limit_hz: What it can do at most.
        power_w: Of the channel that shows most.
        power_mode: As the board calls it.
    """

    hottest: str = ""
    hottest_c: float | None = None
    slowed: frozenset[str] = frozenset()
    tells_slowed: bool = False
    undervoltage: bool | None = None
    pressure: Mapping[str, float] = msgspec.field(default_factory=dict)
    speed_hz: float | None = None
    speed_limit_hz: float | None = None
    power_w: float | None = None
    power_mode: str = ""


def reading(
    sensors: Iterable[Sensor], *, speed_limit_hz: float | None = None, power_mode: str = ""
) -> Reading:
    """Sum up what was read; flags that only say "since boot" are history and no condition."""
    told = [each for each in sensors if each.value is not None]
    now = [each for each in told if not each.name.endswith(SINCE_BOOT)]
    heat = max(_values(told, "temperature"), default=(None, ""))
    flags = [each for each in now if each.kind == "throttle"]
    volts = [bool(each.value) for each in now if each.kind == "undervoltage"]
    clocks = [value for value, name in _values(told, "clock") if name.startswith("cpu ")]
    return Reading(
        hottest=heat[1],
        hottest_c=heat[0],
        slowed=frozenset(each.name for each in flags if each.value),
        tells_slowed=bool(flags),
        undervoltage=any(volts) if volts else None,
        pressure={
            name.partition(" ")[0]: value
            for value, name in _values(told, "load")
            if name.endswith(" pressure")
        },
        speed_hz=max(clocks, default=None),
        speed_limit_hz=speed_limit_hz,
        power_w=max((value for value, _ in _values(told, "power")), default=None),
        power_mode=power_mode,
    )


class Caps(msgspec.Struct, frozen=True):
    """Caps on the clock that are settings, of a power mode or a governor, and no sign of heat.

    Args:
        settings: Those that have been there at every look since the first, or since the power mode
            became another; None before the first.
        power_mode: At the last look.
    """

    settings: frozenset[str] | None = None
    power_mode: str = ""

    def after(self, seen: Reading) -> Caps:
        """Go on with what was read. A cap that was off once comes from the kernel when it comes
        again."""
        caps = frozenset(name for name in seen.slowed if _is_cap(name))
        if self.settings is None or seen.power_mode != self.power_mode:
            return Caps(caps, seen.power_mode)
        return Caps(self.settings & caps, seen.power_mode)

    def slowing(self, seen: Reading) -> frozenset[str]:
        """What slows the processor down and is no setting: the one meaning of "throttled"."""
        return seen.slowed - (self.settings or frozenset())

    def impaired(self, seen: Reading) -> bool:
        """Whether the processor is slower than it could be, so that times taken now say little."""
        return bool(self.slowing(seen) or seen.undervoltage)


def _values(sensors: Iterable[Sensor], kind: str) -> list[tuple[float, str]]:
    return [(s.value, s.name) for s in sensors if s.kind == kind and s.value is not None]


class _Mark(msgspec.Struct, frozen=True):
    """One condition over time."""

    on: bool = False
    # Since when its cause has lasted; when the cause was last there.
    since: float | None = None
    last: float = -math.inf

    def after(self, push: int, now: float, enter_s: float, leave_s: float) -> _Mark:
        """Go on with one look: `push` is 1 above the threshold, 0 between the two, -1 below."""
        if self.on:
            if push >= 0:
                return replace(self, last=now)
            return self if now - self.last < leave_s else _Mark()
        if push <= 0:
            return self if self.since is None else _Mark()
        since = now if self.since is None else self.since
        return _Mark(now - since >= enter_s, since, now)


class Strain(msgspec.Struct, frozen=True):
    """The conditions of a device, from one look to the next."""

    marks: Mapping[str, _Mark] = msgspec.field(default_factory=dict)
    caps: Caps = msgspec.field(default_factory=Caps)

    def after(self, seen: Reading, now: float, rules: Rules) -> Strain:
        """Go on with what was read."""
        caps = self.caps.after(seen)
        warm_c = rules.hot_c - rules.warm_below_c
        pushes = {
            "warm": (_push(seen.hottest_c, warm_c, warm_c - rules.cooler_by_c), rules.enter_s),
            "hot": (
                _push(seen.hottest_c, rules.hot_c, rules.hot_c - rules.cooler_by_c),
                rules.enter_s,
            ),
            "throttled": (1 if caps.slowing(seen) else -1, 0.0),
            "undervoltage": (1 if seen.undervoltage else -1, 0.0),
            "pressed": (
                _push(seen.pressure.get("memory"), rules.pressed_from, rules.pressed_until),
                0.0,
            ),
        }
        marks = {
            name: self.marks.get(name, _Mark()).after(push, now, enter_s, rules.leave_s)
            for name, (push, enter_s) in pushes.items()
        }
        return Strain(marks, caps)

    @property
    def conditions(self) -> frozenset[str]:
        """All that hold."""
        return frozenset(name for name, mark in self.marks.items() if mark.on)

    @property
    def worst(self) -> str:
        """The condition that names them all; `well` where none holds."""
        return worst_of(self.conditions)

    @property
    def at_rest(self) -> bool:
        """Whether nothing holds and nothing is about to."""
        return not any(mark.on or mark.since is not None for mark in self.marks.values())


def worst_of(conditions: Iterable[str]) -> str:
    """The worst of some conditions; `well` where there is none."""
    return min(conditions, key=lambda name: _RANKS.get(name, len(_RANKS)), default=WELL)


def in_words(condition: str, seen: Reading, rules: Rules) -> str:
    """What a person is told of a condition."""
    degrees = f"{seen.hottest} has {seen.hottest_c:g} °C" if seen.hottest_c is not None else ""
    slowed = ", ".join(sorted(seen.slowed))
    sentences = {
        WELL: "the device is well again",
        "warm": f"the device is warm: {degrees}, hot is {rules.hot_c:g} °C",
        "hot": f"the device is hot: {degrees}, hot is {rules.hot_c:g} °C",
        "throttled": f"the processor is slowed down: {slowed or 'it was just now'}",
        "undervoltage": "the supply's voltage is too low",
        "pressed": (
            f"memory is short: tasks waited for it {seen.pressure.get('memory', 0.0):.0%} of the "
            "last ten seconds"
        ),
    }
    return sentences[condition]


HINTS: Mapping[str, str] = {
    "hot": "more air, a heat sink, less to do, or a policy for the slot",
    "throttled": "more air, a heat sink, less to do, or a policy for the slot",
    "undervoltage": "a stronger power supply, a shorter or thicker cable, less at the USB ports",
    "pressed": "fewer or smaller models, or less beside the agent",
}
_RANKS = {name: rank for rank, name in enumerate((*WORST_FIRST, WELL))}


def _is_cap(name: str) -> bool:
    """Whether a flag is about the highest allowed clock, which a person may have set."""
    return name.startswith("cpu ") and name.endswith(" capped")


def _push(value: float | None, begins: float, ends: float) -> int:
    if value is None or value < ends:
        return -1
    return 1 if value >= begins else 0


# What a slot does.


@dataclass(frozen=True)
class Easing:
    """What a slot does at present so that the device has less to do.

    Args:
        action: Of its policy.
        rate_per_s: For `reduce_rate`.
        one_in: For `skip`.
        because: The condition; not a difference between two of these.
    """

    action: str
    rate_per_s: float = 0.0
    one_in: int = 1
    because: str = field(default="", compare=False)

    def __str__(self) -> str:
        """What it does, for people."""
        says = {
            "reduce_rate": f"at most {self.rate_per_s:g} messages a second are run",
            "skip": f"one message in {self.one_in} is run, of each topic",
            "lighter_variant": "a way that takes less CPU time runs the pack",
        }
        return says[self.action]


def easing(policy: Policy, conditions: Iterable[str]) -> Easing | None:
    """What a slot's policy says in some conditions; None: serve as always."""
    reasons = set(conditions) & set(policy.on)
    if policy.action == "none" or not reasons:
        return None
    return Easing(
        policy.action,
        policy.rate_per_s if policy.action == "reduce_rate" else 0.0,
        policy.one_in if policy.action == "skip" else 1,
        worst_of(reasons),
    )


class Pace(msgspec.Struct):
    """Lets at most so many messages go in a second, evenly: a burst is what heats.

    Of any number of messages, the last goes no sooner after the first than the rate says.
    """

    per_s: float
    _next_at: float = -math.inf

    def wait_s(self, now: float) -> float:
        """How long the next message must wait; 0: it may go."""
        return max(0.0, self._next_at - now)

    def went(self, now: float) -> None:
        """A message goes now."""
        self._next_at = now + 1 / self.per_s

    @property
    def room(self) -> int:
        """How many may wait where nobody keeps them: what can go within a second."""
        return max(1, int(self.per_s))


def lighter(choice: Choice) -> Way | None:
    """The best way that passed and takes clearly less CPU time than the chosen one."""
    best = choice.best
    if best is None or best.cpu_ms is None:
        return None
    most_ms = LIGHTER * best.cpu_ms
    return next(
        (
            tried.way
            for tried in choice.tried
            if not tried.excluded
            and tried.way != choice.way
            and tried.cpu_ms is not None
            and tried.cpu_ms <= most_ms
        ),
        None,
    )
