"""The generated blocks of `docs/links.md`, made from the kinds of link and their docstrings.

`python -m agent.links.reference docs/links.md` writes them anew; a test holds page and kinds
together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from agent.documents import pages, reference
from agent.links import registry
from agent.links.file_link import Presence


def _settings(kind: str) -> str:
    struct = registry.find(kind).settings
    own = [field for field in msgspec.structs.fields(struct) if field.name != "kind"]
    return reference.key_entries(struct, own, "link_")


# The keys of `mqtt` stand in docs/documents.md, since a bus has them as well.
BLOCKS: Mapping[str, Callable[[], str]] = {
    **{f"link-{kind}": partial(_settings, kind) for kind in registry.KINDS if kind != "mqtt"},
    "presence": partial(reference.fields, Presence),
}

rendered = partial(pages.rendered, BLOCKS)


if __name__ == "__main__":
    pages.write(BLOCKS, sys.argv[1:])
