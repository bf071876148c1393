"""Which profiles fit a device: one for the board, and one for each add-on, with the reasons."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from agent.control.versions import at_least, older
from agent.documents.device import Accelerator, Device
from agent.documents.profile import Condition, Fault, Match, Preference, Profile, ProfileLimits

_MOST_ENTRIES = 1000
_MOST_SHOWN = 3


class Considered(msgspec.Struct, frozen=True):
    """A profile that does not count here, and why."""

    name: str
    why_not: str


class Recognised(msgspec.Struct, frozen=True):
    """What a device is.

    Args:
        board: The most specific profile of its kind that fits; None: none does.
        addons: Every add-on that fits, by name.
        why: What each of these was recognised by, by its name.
        considered: All other profiles, by name.
        faults: Of the board and the add-ons, those that concern this device.
    """

    board: Profile | None = None
    addons: tuple[Profile, ...] = ()
    why: Mapping[str, str] = msgspec.field(default_factory=dict)
    considered: tuple[Considered, ...] = ()
    faults: tuple[Fault, ...] = ()

    @property
    def matched(self) -> tuple[Profile, ...]:
        """The board's profile, then the add-ons'."""
        return (*((self.board,) if self.board else ()), *self.addons)

    @property
    def name(self) -> str:
        """As reports call it: `raspberry-pi-5+coral-usb`; nothing where nothing fits."""
        return "+".join(profile.name for profile in self.matched)

    @property
    def prefer(self) -> tuple[Preference, ...]:
        """What is worth measuring: what an add-on brings comes before what the board has."""
        board = self.board.prefer if self.board else ()
        return tuple(_once((*(one for addon in self.addons for one in addon.prefer), *board)))

    @property
    def limits(self) -> ProfileLimits:
        """What the board can stand."""
        return self.board.limits if self.board else ProfileLimits()


class _Fit(msgspec.Struct, frozen=True):
    """How a profile fits: how precisely and by what, or why it does not."""

    precision: tuple[int, ...] = ()
    why: str = ""
    why_not: str = ""


def recognise(profiles: Sequence[Profile], device: Device, own: Collection[str] = ()) -> Recognised:
    """Find out what a device is.

    Args:
        profiles: All that are known, each name once, in any order.
        device: Its facts.
        own: Names of profiles that the user wrote; of two that fit alike, one of these counts.
    """
    ordered = sorted(profiles, key=lambda profile: profile.name)
    fits = {profile.name: _fit(profile.match, device) for profile in ordered}
    fitting = [profile for profile in ordered if not fits[profile.name].why_not]

    def rank(profile: Profile) -> tuple[tuple[int, ...], bool]:
        return fits[profile.name].precision, profile.name in own

    board = max((one for one in fitting if one.kind == "board"), key=rank, default=None)
    addons = tuple(one for one in fitting if one.kind == "addon")
    matched = [*([board] if board else []), *addons]
    outdone = f"it fits too, but {board.name} says more precisely what this is" if board else ""
    return Recognised(
        board,
        addons,
        why={profile.name: fits[profile.name].why for profile in matched},
        considered=tuple(
            Considered(profile.name, fits[profile.name].why_not or outdone)
            for profile in ordered
            if profile not in matched
        ),
        faults=concerning(matched, device),
    )


def concerning(profiles: Iterable[Profile], device: Device) -> tuple[Fault, ...]:
    """Return the known faults that concern a device, each once."""
    faults = (fault for profile in profiles for fault in profile.faults)
    return tuple({fault.id: fault for fault in faults if holds(fault.when, device)}.values())


def typical_of(board: Profile, addons: Iterable[Profile] = ()) -> Device | None:
    """Return a device as it usually comes, with add-ons; None: the board's profile knows none."""
    if board.typical is None:
        return None
    parts = [board.typical, *(one.typical for one in addons if one.typical)]
    runtimes = {found.name: found for part in reversed(parts) for found in part.runtimes}
    return replace(
        board.typical,
        accelerators=tuple(found for part in parts for found in part.accelerators),
        runtimes=tuple(runtimes.values()),
    )


# How a match is decided.

# For each key of a match: what the device has of that kind, and whether one of those is a word.
_Has = Callable[[Device], Sequence[str]]
_Is = Callable[[str, str], bool]


def _same(word: str, found: str) -> bool:
    return word == found


def _begins(word: str, found: str) -> bool:
    return found.startswith(word)


def _contains(word: str, found: str) -> bool:
    return word.casefold() in found.casefold()


def _present(*values: str) -> tuple[str, ...]:
    return tuple(value for value in values if value)


# In the order of how much a key says: a board's own name says more than its chip, a chip more than
# an instruction set. One key outweighs all that stand behind it together.
_KEYS: Mapping[str, tuple[str, _Has, _Is]] = {
    "compatible": ("the device tree", lambda device: device.board.compatible, _same),
    "module": ("the module", lambda device: _present(device.board.module), _same),
    "model": ("the board's model", lambda device: _present(device.board.model), _begins),
    "model_contains": ("the board's model", lambda device: _present(device.board.model), _contains),
    "cpu_model": ("the processor", lambda device: _present(device.cpu.model), _contains),
    "soc": ("the chip", lambda device: _present(device.board.soc), _same),
    "family": (
        "the Jetson family",
        lambda device: _present(device.jetson.family if device.jetson else ""),
        _same,
    ),
    "accelerators": (
        "an accelerator",
        lambda device: [found.kind for found in device.accelerators],
        _same,
    ),
    "vendor": ("the vendor", lambda device: _present(device.board.vendor), _same),
    "features": ("the processor's features", lambda device: device.cpu.features, _same),
    "architecture": (
        "the architecture",
        lambda device: _present(device.system.architecture),
        _same,
    ),
}


def _fit(match: Match, device: Device) -> _Fit:
    precision: list[int] = []
    reasons: list[str] = []
    for key, (title, has, same) in _KEYS.items():
        words: Sequence[str] = getattr(match, key)
        if not words:
            precision.append(0)
            continue
        there = _accelerators(match, device) if key == "accelerators" else has(device)
        hits = [
            (place, word)
            for word in words
            for place, found in enumerate(there)
            if same(word, found)
        ]
        missing = set(words) - {word for _, word in hits} if key == "features" else set()
        if not hits or missing:
            return _Fit(why_not=_mismatch(title, words, there, match))
        place, word = min(hits, key=lambda hit: (hit[0], -len(hit[1]), hit[1]))
        precision.append(_weight(key, place, word, words))
        shown = ", ".join(words) if key == "features" else there[place]
        reasons.append(f"{title} says {shown}" if key != "accelerators" else _on_bus(shown, match))
    if not reasons:
        return _Fit(why_not="it says nothing of how it is recognised")
    return _Fit(tuple(precision), why="; ".join(reasons))


def _weight(key: str, place: int, word: str, words: Sequence[str]) -> int:
    if key == "compatible":
        # The most specific entry stands first.
        return _MOST_ENTRIES - place
    return {"model": len(word), "features": len(words)}.get(key, 1)


def _accelerators(match: Match, device: Device) -> list[str]:
    return [found.kind for found in device.accelerators if not match.bus or found.bus in match.bus]


def _on_bus(kind: str, match: Match) -> str:
    where = f" on {' or '.join(match.bus)}" if match.bus else ""
    return f"there is an accelerator of the kind {kind}{where}"


def _mismatch(title: str, words: Sequence[str], there: Sequence[str], match: Match) -> str:
    where = f" on {' or '.join(match.bus)}" if title == "an accelerator" and match.bus else ""
    return f"{title} would have to be {_some(words, ' or ')}{where}; here: {_some(there, ', ')}"


def _some(words: Sequence[str], between: str) -> str:
    more = f" … ({len(words)})" if len(words) > _MOST_SHOWN else ""
    return (between.join(words[:_MOST_SHOWN]) or "nothing") + more


# When a fault concerns a device.


def holds(when: Condition, device: Device) -> bool:
    """Whether a condition holds on a device; an empty one always does."""
    return all(test(when, device) for test in _TESTS)


def _accelerator_there(when: Condition, device: Device) -> bool:
    if not (when.accelerators or when.bus or when.not_ready):
        return True

    def meant(found: Accelerator) -> bool:
        return (
            (not when.accelerators or found.kind in when.accelerators)
            and (not when.bus or found.bus == when.bus)
            and not (when.not_ready and found.ready)
        )

    return any(map(meant, device.accelerators))


def _runtime_unusable(when: Condition, device: Device) -> bool:
    found = device.runtime(when.runtime) if when.runtime else None
    return not when.runtime or found is None or not found.usable


def _l4t(when: Condition, device: Device) -> bool:
    version = device.jetson.l4t if device.jetson else ""
    return not when.l4t or any(version.startswith(word) for word in when.l4t)


_TESTS: tuple[Callable[[Condition, Device], bool], ...] = (
    _accelerator_there,
    _runtime_unusable,
    _l4t,
    # Not known is not another one.
    lambda when, device: (
        when.page_bytes_not is None or device.system.page_bytes not in (0, when.page_bytes_not)
    ),
    lambda when, device: not when.architecture or device.system.architecture in when.architecture,
    lambda when, device: (
        not when.kernel_architecture
        or device.system.kernel_architecture in when.kernel_architecture
    ),
    lambda when, device: not when.kernel_from or at_least(device.system.kernel, when.kernel_from),
    lambda when, device: not when.python_from or at_least(device.system.python, when.python_from),
    lambda when, device: not when.python_below or older(device.system.python, when.python_below),
    lambda when, device: not when.storage or device.storage.kind in when.storage,
    lambda when, device: not (when.memory_not_limited and device.memory.can_be_limited),
)


def _once(preferences: Sequence[Preference]) -> Iterable[Preference]:
    return (one for place, one in enumerate(preferences) if one not in preferences[:place])
