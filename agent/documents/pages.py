"""Pages of the documentation of which parts are written from the code.

<!-- generated: NAME -->
…
<!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Blocks = Mapping[str, Callable[[], str]]

_BLOCK = re.compile(r"<!-- generated: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def rendered(blocks: Blocks, page: str) -> str:
    """Return a page with its generated blocks written anew."""

    def block(name: str) -> str:
        return f"<!-- generated: {name} -->\n\n{blocks[name]()}\n\n<!-- end -->"

    return _BLOCK.sub(lambda found: block(found[1]), page)


def write(blocks: Blocks, files: Iterable[str]) -> None:
    """Write the generated blocks of these files anew."""
    for path in map(Path, files):
        path.write_text(rendered(blocks, path.read_text()))
