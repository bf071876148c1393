"""Looks up the codecs and steps that a manifest names and reads their options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from agent.documents.codec import convert, show
from agent.errors import DocumentError

Kind = TypeVar("Kind")


def look_up(
    raw: Mapping[str, Any], key: str, table: Mapping[str, Kind], group: str, *, path: str
) -> Kind:
    """Return the entry that `raw[key]` names.

    Args:
        raw: One object of the manifest's pipeline.
        key: `codec` or `step`.
        table: The built-in ones.
        group: The entry points through which an installed package adds its own.
        path: Where in the manifest the object stands.

    Raises:
        DocumentError: There is none of that name.
    """
    name = raw.get(key)
    if not isinstance(name, str):
        raise DocumentError(f"{path}.{key}", f"one of {', '.join(sorted(table))}", show(name))
    if name in table:
        return table[name]
    # Costs more to import than all of this room, and is hardly ever needed.
    from importlib.metadata import entry_points

    for point in entry_points(group=group, name=name):
        try:
            loaded: Kind = point.load()
        except Exception as error:
            # Importing somebody else's package can fail in any way.
            raise DocumentError(
                f"{path}.{key}", f"{name!r} to be importable", f"{type(error).__name__}: {error}"
            ) from error
        return loaded
    raise DocumentError(f"{path}.{key}", f"one of {', '.join(sorted(table))}", show(name))


def read_options(
    raw: Mapping[str, Any],
    kind: type[msgspec.Struct],
    key: str,
    *,
    path: str,
    overrides: Mapping[str, Any] | None = None,
) -> msgspec.Struct:
    """Check the options that stand beside `key`.

    Args:
        raw: One object of the manifest's pipeline.
        kind: The options of the codec or step.
        key: `codec` or `step`; no option itself.
        path: Where in the manifest the object stands.
        overrides: Values from the slot's settings that win.

    Raises:
        DocumentError: An option is unknown, missing or does not fit.
    """
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    for option in raw:
        if option != key and option not in known:
            expected = f"one of {', '.join(sorted(known))}" if known else "no option"
            raise DocumentError(f"{path}.{option}", expected, "an unknown option")
    given = {option: value for option, value in raw.items() if option != key}
    return convert({**given, **(overrides or {})}, kind, name=path).value
