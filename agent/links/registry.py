"""Finds a kind of link by its name in `[link] kind`, importing only the one that is asked for."""

from __future__ import annotations

import importlib
from typing import cast

from agent.documents.settings import LinkSettings
from agent.errors import DocumentError
from agent.links.api import Kind

KINDS = {
    "file": "agent.links.file",
    "mqtt": "agent.links.plain_mqtt",
}


def find(name: str) -> Kind:
    """Import one kind of link: the `KIND` of its file."""
    return cast(Kind, importlib.import_module(KINDS[name]).KIND)


def settings_of(name: object, where: str) -> type[LinkSettings]:
    """What stands in `[link]` for a kind.

    Raises:
        DocumentError: There is no such kind; `where` is the path of the value.
    """
    if not isinstance(name, str) or name not in KINDS:
        raise DocumentError(where, f"one of {', '.join(sorted(KINDS))}", repr(name)[:60])
    return find(name).settings
