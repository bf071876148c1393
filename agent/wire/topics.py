"""MQTT topic names and filters: what matches what, and the topics made from a match.

Source: MQTT 5.0, section 4.7 (the same rules hold for 3.1.1).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TypeVar

from agent.errors import DocumentError

T = TypeVar("T")

MAX_TOPIC_BYTES = 65535
# Longer topics are worked out for each message.
MAX_KEPT_TOPICS, MAX_KEPT_TOPIC_CHARS = 4096, 256
_FIELD = re.compile(r"\{([a-z]+|[0-9]+)\}")
_FORBIDDEN_IN_NAME = re.compile(r"[+#\x00]")
# Brokers close the connection of who publishes to more levels (EMQX 128, mosquitto 201), or to
# characters that MQTT advises against (MQTT 5.0, section 1.5.4); and again at each repeat.
MAX_LEVELS = 128
_NO_CHARACTERS = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_UNWISE_IN_NAME = re.compile(rf"[+#\x00-\x1f\x7f-\x9f\ufdd0-\ufdef{_NO_CHARACTERS}]")


def check_filter(topic_filter: str, *, name: str) -> None:
    """Refuse what is no topic filter.

    Raises:
        DocumentError: Says where, and which rule of section 4.7 it breaks.
    """
    levels = topic_filter.split("/")
    for position, level in enumerate(levels):
        if "#" in level and (level != "#" or position != len(levels) - 1):
            raise DocumentError(name, "'#' alone in the last level", repr(topic_filter))
        if "+" in level and level != "+":
            raise DocumentError(name, "'+' alone in its level", repr(topic_filter))
    if "\x00" in topic_filter or len(topic_filter.encode()) > MAX_TOPIC_BYTES:
        raise DocumentError(name, "a topic filter without NUL, at most 65535 bytes", "another")


def check_template(template: str, topic_filter: str, *, name: str) -> None:
    """Refuse an output topic that names a wildcard which its input filter does not have.

    Raises:
        DocumentError: Says which field, and what there is.
    """
    count = sum(1 for level in topic_filter.split("/") if level in ("+", "#"))
    known = {"slot", "device", *map(str, range(1, count + 1))}
    for field in _FIELD.findall(template):
        if field not in known:
            raise DocumentError(name, f"fields out of {sorted(known)}", f"{{{field}}}")
    if _FORBIDDEN_IN_NAME.search(_FIELD.sub("", template)):
        raise DocumentError(name, "a topic name, without wildcards", repr(template))


@lru_cache(maxsize=256)
def _pattern(topic_filter: str) -> re.Pattern[str]:
    shared = re.match(r"\$share/[^/]+/(.*)", topic_filter, re.DOTALL)
    levels = (shared.group(1) if shared else topic_filter).split("/")
    # A wildcard in the first level does not match topics that begin with $ (section 4.7.2).
    first = r"(?!\$)" if levels[0] in ("+", "#") else ""
    parts = [
        "([^/]*)" if level == "+" else "(.*)" if level == "#" else re.escape(level)
        for level in levels
    ]
    pattern = "/".join(parts)
    if len(levels) > 1 and levels[-1] == "#":
        # "sport/#" matches "sport" too.
        pattern = "/".join(parts[:-1]) + "(?:/(.*))?"
    return re.compile(first + pattern, re.DOTALL)


def match(topic_filter: str, topic: str) -> tuple[str, ...] | None:
    """Return what the wildcards of a filter stand for in a topic, or None where it does not match.

    >>> match("sensors/+/accel", "sensors/press-7/accel")
    ('press-7',)
    """
    found = _pattern(topic_filter).fullmatch(topic)
    return tuple(part or "" for part in found.groups()) if found else None


def overlap(one: str, other: str) -> bool:
    """Whether some topic matches both filters.

    >>> overlap("in/+", "in/a"), overlap("in/+", "out/#")
    (True, False)
    """
    return _overlap(one.split("/"), other.split("/"))


def _overlap(ours: list[str], theirs: list[str]) -> bool:
    for position in range(max(len(ours), len(theirs)) + 1):
        mine = ours[position] if position < len(ours) else None
        its = theirs[position] if position < len(theirs) else None
        if mine == "#" or its == "#":
            return True
        if mine is None or its is None:
            return mine is its
        if mine != its and "+" not in (mine, its):
            return False
    return True


def outputs_of(template: str, topic_filter: str, *, slot: str, device: str) -> str:
    """Return a filter for all topics that a template can become, whatever the wildcards hold.

    >>> outputs_of("out/{slot}/{1}", "in/+", slot="vib", device="d")
    'out/vib/+'
    """
    wildcards = [level for level in topic_filter.split("/") if level in ("+", "#")]
    levels: list[str] = []
    for level in template.split("/"):
        numbers = [int(f) for f in _FIELD.findall(level) if f.isdigit()]
        if any(wildcards[n - 1] == "#" for n in numbers):
            return "/".join([*levels, "#"])
        levels.append("+" if numbers else level.format(slot=slot, device=device))
    return "/".join(levels)


def fill(template: str, *, slot: str, device: str, wildcards: tuple[str, ...]) -> str:
    """Return the output topic for one input topic.

    >>> fill("predictions/{slot}/{1}", slot="vib", device="d", wildcards=("press-7",))
    'predictions/vib/press-7'
    """
    values = {"slot": slot, "device": device}
    values.update((str(i), part) for i, part in enumerate(wildcards, start=1))
    return _FIELD.sub(lambda found: values[found.group(1)], template)


def is_name(topic: str) -> bool:
    """Whether a string is a topic that one may publish to, and no broker resents."""
    return (
        0 < len(topic) <= 1024
        and topic.count("/") < MAX_LEVELS
        and not _UNWISE_IN_NAME.search(topic)
    )


def remember(known: dict[str, T], topic: str, value: T) -> None:
    """Keep what was worked out for a topic, as far as that stays bounded, in count and in bytes."""
    if len(topic) > MAX_KEPT_TOPIC_CHARS:
        return
    if len(known) >= MAX_KEPT_TOPICS:
        known.clear()
    known[topic] = value
