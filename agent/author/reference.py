"""The tables of codecs and steps in `docs/packs.md`, made from their registries.

`python -m agent.author.reference docs/packs.md` writes them anew; a test holds page and code
together.
"""

from __future__ import annotations

import inspect
import sys
from functools import partial
from typing import Any

import msgspec

from agent.documents import pages
from agent.documents.reference import type_in_words
from agent.pipeline.codecs.registry import CODECS
from agent.pipeline.steps.registry import STEPS


def options_of(kind: type[msgspec.Struct]) -> str:
    """Return the options of a codec or step, one after the other, with type and default."""
    options = [
        f"`{field.encode_name}`: {type_in_words(field.type)}{_default(field)}"
        for field in msgspec.structs.fields(kind)
    ]
    return "<br>".join(options) or "none"


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return ", required"
    default = field.default
    if default in ("", (), None) or default is msgspec.NODEFAULT:
        return ""
    if isinstance(default, bool):
        return f" ({str(default).lower()})"
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f" ({shown})"


def _about(kind: type[msgspec.Struct]) -> str:
    """Return what the module of a codec or step says of itself, and its options of themselves."""
    module = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")
    first = module.split("\n\n")[0].rstrip(":")
    # Of a longer text the last paragraph goes through the options.
    own = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[-1]
    about = f"{first} {own}" if msgspec.structs.fields(kind) else first
    return " ".join(about.split()).replace("|", "\\|")


def codecs() -> str:
    """Return the table of payload codecs."""
    rows = [
        f"| `{name}` | {_uses(codec)} | {_about(codec.options)} | {options_of(codec.options)} |"
        for name, codec in CODECS.items()
    ]
    return "\n".join(("| codec | for | what | options |", "|---|---|---|---|", *rows))


def _uses(codec: Any) -> str:
    uses = {"decode": codec.decoder, "encode": codec.encoder}
    return ", ".join(use for use, there in uses.items() if there)


def steps() -> str:
    """Return the table of steps."""
    rows = [
        f"| `{name}` | {_about(kind.options)} | {options_of(kind.options)} "
        f"| {', '.join(f'`{setting}`' for setting in sorted(kind.settings))} |"
        for name, kind in sorted(STEPS.items())
    ]
    head = ("| step | what | options | settings of a slot |", "|---|---|---|---|")
    return "\n".join((*head, *rows))


TABLES: pages.Blocks = {"codecs": codecs, "steps": steps}

rendered = partial(pages.rendered, TABLES)


if __name__ == "__main__":
    pages.write(TABLES, sys.argv[1:])
