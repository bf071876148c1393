"""What a document's type says of itself and of its fields, for schemas and for the reference."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard, get_args, get_origin

import msgspec

_ENTRY = re.compile(r"^(?=\S)", re.MULTILINE)
Kind = type[msgspec.Struct]


def is_struct(kind: Any) -> TypeGuard[Kind]:
    """Whether something is a type of documents, or of objects in them."""
    return (
        isinstance(kind, type) and kind is not msgspec.Struct and issubclass(kind, msgspec.Struct)
    )


class About(NamedTuple):
    """A type's own words, and those for its fields by the names they have in JSON."""

    summary: str
    fields: Mapping[str, str]


def about(kind: Kind) -> About:
    """Read the docstring of a document's type; an entry may speak of several fields at once.

    A subclass need not repeat what its base says.
    """
    summary, _, entries = inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:\n")
    names = {field.name: field.encode_name for field in msgspec.structs.fields(kind)}
    words = about(kind.__base__).fields if is_struct(kind.__base__) else {}
    own = {
        names[name]: text
        for entry in _ENTRY.split(inspect.cleandoc("\n" + entries))
        if entry
        for name, text in _named(entry)
    }
    return About(_one_line(summary), {**words, **own})


def _named(entry: str) -> Iterator[tuple[str, str]]:
    names, _, text = _one_line(entry).partition(": ")
    for name in names.split(", "):
        yield name, text


def own_fields(kind: Kind) -> list[msgspec.structs.FieldInfo]:
    """The fields that a type adds to those of its base, in order."""
    own = vars(kind).get("__annotations__", {})
    return [field for field in msgspec.structs.fields(kind) if field.name in own]


def structs_in(kind: Kind) -> dict[Kind, list[str]]:
    """Every type that a document is made of → where it stands: `slots.*.input`, `inputs[]`.

    The document's own type comes first, its parts level by level.
    """
    found: dict[Kind, list[str]] = {}
    level: list[tuple[Kind, str]] = [(kind, "")]
    while level:
        for struct, path in level:
            found.setdefault(struct, []).append(path)
        level = [
            part
            for struct, path in level
            for field in msgspec.structs.fields(struct)
            for part in _parts(field.type, f"{path}.{field.encode_name}".removeprefix("."))
        ]
    return found


def _parts(kind: Any, path: str) -> Iterator[tuple[Kind, str]]:
    if is_struct(kind):
        yield kind, path
    elif hasattr(kind, "__metadata__"):
        yield from _parts(get_args(kind)[0], path)
    elif get_origin(kind) is tuple:
        yield from _parts(get_args(kind)[0], f"{path}[]")
    elif get_origin(kind) is dict:
        yield from _parts(get_args(kind)[1], f"{path}.*")
    else:
        for option in get_args(kind):
            yield from _parts(option, path)


def _one_line(text: str) -> str:
    return " ".join(text.split())
