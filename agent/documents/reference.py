"""The generated blocks of `docs/documents.md`, made from the types and their docstrings.

`python -m agent.documents.reference docs/documents.md` writes them anew; a test holds page and
types together.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import groupby
from typing import Any, Literal, get_args, get_origin

import msgspec

from agent.documents import pages
from agent.documents.docstrings import Kind, about, is_struct, own_fields, structs_in
from agent.documents.schemas import DOCUMENTS
from agent.documents.settings import Settings
from agent.documents.telemetry import (
    CONDITIONS,
    DEVICE_METRICS,
    EVENTS,
    LATENCY_PARTS,
    SLOT_METRICS,
)

LINE_CHARACTERS = 140
OTHER_LINKS = "These are the keys of `mqtt`; [links.md](links.md) has those of the other kinds."
_CODE = re.compile(r"`[^`]*`")
_NO_BREAK = "\u00a0"

_WORDS: Mapping[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    bytes: "bytes in base64",
    type(None): "",
    Any: "anything",
}
_PLURALS: Mapping[str, str] = {
    word: f"{word}s" for word in ("text", "number", "whole number", "object", "file name")
}
_ONE: Mapping[str, str] = {" characters": " character", " entries": " entry"}
_UNITS: Mapping[str, str] = {"_kib_s": "KiB a second", "_mb": "MiB", "_s": "seconds"}


def type_in_words(kind: Any) -> str:
    """Return a type and its bounds as a person would say them."""
    if hasattr(kind, "__metadata__"):
        inner, *metas = get_args(kind)
        return _bounded(inner, metas)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"[{', '.join(map(type_in_words, arguments))}]"
    if origin is tuple:
        word = type_in_words(arguments[0])
        return f"list of {_PLURALS.get(word, word)}"
    if origin is dict:
        key, value = map(type_in_words, arguments)
        return f"object, {key} → {value}" if arguments[1] is not Any else "object"
    if arguments:
        options = [type_in_words(argument) for argument in arguments]
        return " or ".join(dict.fromkeys(option for option in options if option))
    return _WORDS.get(kind, "object")


def _bounded(inner: Any, metas: list[msgspec.Meta]) -> str:
    word = type_in_words(inner)
    for meta in metas:
        if meta.extra:
            return str(meta.extra["words"])
        word += f", more than {meta.gt:,}" if meta.gt is not None else ""
        word += _range(meta.ge, meta.le, "")
        length = " characters" if inner is str else " entries"
        word += _range(meta.min_length, meta.max_length, length)
    return word


def _range(low: float | None, high: float | None, what: str) -> str:
    if low is not None and low == high:
        return f", exactly {low:,}{_ONE.get(what, '') if low == 1 else what}"
    if low is not None and high is not None:
        return f", {low:,} to {high:,}{what}"
    if low is not None:
        return f", at least {low:,}{what}"
    return f", at most {high:,}{what}" if high is not None else ""


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default
    if value is msgspec.NODEFAULT or value in ("", (), None) or isinstance(value, msgspec.Struct):
        return ""
    shown = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
    if isinstance(value, tuple):
        shown = ", ".join(map(str, value))
    return f"default `{shown}`"


def _bullet(names: Iterable[str], facts: Iterable[str], text: str) -> str:
    """Return one entry of a list, for one field or for several that are alike."""
    named = ", ".join(f"`{name}`" for name in names)
    return _wrapped(f"- {named} ({'; '.join(fact for fact in facts if fact)}): {text}", indent="  ")


def _wrapped(line: str, indent: str = "") -> str:
    held = _CODE.sub(lambda code: code[0].replace(" ", _NO_BREAK), line)
    wrapped = textwrap.fill(
        held,
        LINE_CHARACTERS,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapped.replace(_NO_BREAK, " ")


def fields(kind: Kind) -> str:
    """Return the fields of a document and of the objects in it, one after the other.

    What a type has from its base is described with the base.
    """
    told = structs_in(kind.__base__) if is_struct(kind.__base__) else {}
    parts = {struct: paths for struct, paths in structs_in(kind).items() if struct not in told}
    return "\n\n".join(_object(struct, paths) for struct, paths in parts.items())


def _object(struct: Kind, paths: list[str]) -> str:
    summary, words = about(struct)
    listed = ", ".join(f"`{path}`" for path in paths if path)
    rows = [
        ((type_in_words(field.type), _default(field)), words[name], name)
        for field in own_fields(struct)
        for name in (field.encode_name,)
    ]
    bullets = [
        _bullet([name for *_, name in alike], *same)
        for same, alike in groupby(rows, key=lambda row: row[:2])
    ]
    head = _wrapped(f"**{listed}**: {summary}" if listed else summary)
    return "\n".join((head, "", *bullets))


def settings() -> str:
    """Return every key of the configuration, with default, unit and environment variable."""
    tops = {field.name: field for field in msgspec.structs.fields(Settings)}
    sections = {name: kind for name, field in tops.items() if (kind := _section(field.type))}
    sections["link"] = type(Settings().link)
    words = about(Settings).fields
    keys = [field for name, field in tops.items() if name not in sections]
    parts = [key_entries(Settings, keys, "")]
    for name, kind in sections.items():
        parts.append(f"**`[{name}]`**: {words[name]}")
        if name == "bus":
            parts.append("The same keys as `[link]`, in the environment as `EDGEWARD_BUS_…`.")
        else:
            parts.append(key_entries(kind, msgspec.structs.fields(kind), f"{name}_"))
        if name == "link":
            parts.append(OTHER_LINKS)
    return "\n\n".join(parts)


def _section(kind: Any) -> Kind | None:
    return next((one for one in (kind, *get_args(kind)) if is_struct(one)), None)


def key_entries(kind: Kind, keys: Any, prefix: str) -> str:
    """Return one entry for each of these keys of a section; its variables begin with `prefix`."""
    words = about(kind).fields
    return "\n".join(
        _bullet(
            [field.name],
            [
                type_in_words(field.type),
                _unit(field.name),
                _default(field),
                f"`EDGEWARD_{prefix}{field.name}`".upper(),
            ],
            words[field.name],
        )
        for field in keys
    )


def _unit(name: str) -> str:
    return next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")


def _metrics(table: Mapping[str, tuple[str, str]]) -> str:
    rows = [f"| `{name}` | `{unit}` | {text} |" for name, (unit, text) in table.items()]
    return "\n".join(("| name | unit | what |", "|---|---|---|", *rows))


def _names(table: Mapping[str, str], head: str) -> str:
    rows = [f"| `{name}` | {text} |" for name, text in table.items()]
    return "\n".join((f"| {head} | what |", "|---|---|", *rows))


BLOCKS: Mapping[str, Callable[[], str]] = {
    **{name: partial(fields, kind) for name, kind in DOCUMENTS.items()},
    "settings": settings,
    "slot-metrics": partial(_metrics, SLOT_METRICS),
    "device-metrics": partial(_metrics, DEVICE_METRICS),
    "latency": partial(_names, LATENCY_PARTS, "part"),
    "conditions": partial(_names, CONDITIONS, "`condition`"),
    "events": partial(_names, EVENTS, "`event`"),
}


rendered = partial(pages.rendered, BLOCKS)


if __name__ == "__main__":
    pages.write(BLOCKS, sys.argv[1:])
