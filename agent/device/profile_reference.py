"""The generated blocks of `docs/profiles.md`, made from the packaged profiles and from their type.

`python -m agent.device.profile_reference docs/profiles.md` writes them anew; a test holds page and
profiles together.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from agent.device.profiles import load
from agent.documents import pages
from agent.documents.device import Device
from agent.documents.docstrings import about, own_fields, structs_in
from agent.documents.profile import Condition, Match, Preference, Profile
from agent.documents.reference import type_in_words

LINE_CHARACTERS = 140
_ORDER = {"board": 0, "addon": 1}


def _profiles() -> list[Profile]:
    """The packaged ones: boards, then add-ons; the general ones of each last."""
    return sorted(
        load(None).every,
        key=lambda one: (_ORDER[one.kind], one.name.startswith("generic"), one.name),
    )


def kinds() -> str:
    """Return the table of all kinds of device."""
    rows = [
        f"| `{one.name}` | {one.title} | {_match(one.match)} | {_prefer(one.prefer)} "
        f"| {one.limits.measure_s:g} s |"
        for one in _profiles()
    ]
    head = "| profile | device | recognised by | worth measuring, the likeliest first | within |"
    return "\n".join((head, "|---|---|---|---|---|", *rows))


def _match(match: Match) -> str:
    given = {field: getattr(match, field) for field in match.__struct_fields__}
    said = [f"{key} {_words(words)}" for key, words in given.items() if words]
    return "; ".join(said)


def _words(words: tuple[str, ...]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _prefer(prefer: tuple[Preference, ...]) -> str:
    said = [f"`{one.runtime}`" + (f" on {one.provider}" if one.provider else "") for one in prefer]
    return ", ".join(said) or "nothing of its own"


def faults() -> str:
    """Return what is known to go wrong, for each kind of device."""
    return "\n\n".join(_faults(one) for one in _profiles() if one.faults or one.notes)


def _faults(profile: Profile) -> str:
    lines = [f"### {profile.title}", ""]
    lines += [_wrapped(profile.notes), ""] if profile.notes else []
    for fault in profile.faults:
        said = f"- **{fault.says}** {fault.do} [More]({fault.link}). {_when(fault.when)}"
        lines.append(_wrapped(said, "  "))
    return "\n".join(lines).rstrip()


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        LINE_CHARACTERS,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _when(when: Condition) -> str:
    given = msgspec.to_builtins(when)
    if not given:
        return "Told always."
    said = [f"`{key}` {_value(value)}" for key, value in given.items()]
    return f"Told where {' and '.join(said)}."


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " or ".join(f"`{one}`" for one in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def typical() -> str:
    """Return what `edgeward plan --profile` takes each kind of device for."""
    rows = [
        f"| `{one.name}` | {_system(one.typical)} | {_runtimes(one.typical)} |"
        for one in _profiles()
        if one.typical is not None
    ]
    return "\n".join(("| profile | system | runtimes |", "|---|---|---|", *rows))


def _system(device: Device) -> str:
    system, memory = device.system, device.memory.total_bytes
    facts = (
        system.architecture,
        system.os,
        f"Python {system.python}" if system.python else "",
        f"{memory / 2**30:g} GiB" if memory else "",
        f"JetPack {device.jetson.jetpack}" if device.jetson else "",
        f"in a container ({system.container})" if system.container else "",
    )
    return ", ".join(fact for fact in facts if fact) or "as its board"


def _runtimes(device: Device) -> str:
    return (
        ", ".join(f"{one.package or one.name} {one.version}" for one in device.runtimes) or "none"
    )


def keys() -> str:
    """Return every key of a profile; those under `typical` are a device's facts."""
    facts = structs_in(Device)
    parts = []
    for struct, paths in structs_in(Profile).items():
        if struct in facts:
            continue
        words = about(struct)
        listed = ", ".join(f"`{path}`" for path in paths if path)
        rows = [
            _wrapped(
                f"- `{field.encode_name}` ({type_in_words(field.type)}{_default(field)}): "
                f"{words.fields[field.encode_name]}",
                "  ",
            )
            for field in own_fields(struct)
        ]
        head = f"**{listed}**: {words.summary}" if listed else words.summary
        parts.append("\n".join((head, "", *rows)))
    return "\n\n".join(parts)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "; required"
    value = field.default
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return f"; default `{value}`" if plain and value != "" else ""


BLOCKS: Mapping[str, Callable[[], str]] = {
    "kinds": kinds,
    "faults": faults,
    "typical": typical,
    "keys": keys,
}


rendered = partial(pages.rendered, BLOCKS)


if __name__ == "__main__":
    pages.write(BLOCKS, sys.argv[1:])
