"""What the pages of the documentation say in code: fenced blocks, inline code, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})\s*(.*?)\s*$")
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")


@dataclass(frozen=True)
class Block:
    """One fenced block: the words after its fence, its lines, and where it stands."""

    where: str
    section: str
    words: tuple[str, ...]
    text: str

    @property
    def language(self) -> str:
        return self.words[0] if self.words else ""

    @property
    def file_name(self) -> str:
        """The name that a second word with a dot gives to the block: `toml agent.toml`."""
        return next((word for word in self.words[1:] if "." in word), "")


@dataclass(frozen=True)
class Page:
    """A page, taken apart once."""

    name: str
    blocks: tuple[Block, ...]
    inline: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]
    anchors: frozenset[str]


def read(path: Path, name: str) -> Page:
    """Take a page apart; `where` of each part is `name:line`."""
    blocks: list[Block] = []
    prose: list[tuple[str, str]] = []
    headings = [""]
    lines = enumerate(path.read_text().splitlines(), start=1)
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence:
            blocks.append(_block(f"{name}:{number}", headings[-1], fence, lines))
            continue
        prose.append((f"{name}:{number}", line))
        if heading := _HEADING.match(line):
            headings.append(heading[1])
    return Page(
        name,
        tuple(blocks),
        tuple((where, code) for where, line in prose for code in _INLINE.findall(line)),
        tuple((where, link) for where, line in prose for link in _LINK.findall(line)),
        frozenset(map(anchor, headings[1:])),
    )


def anchor(heading: str) -> str:
    """The anchor that a renderer gives to a heading: lower case, no punctuation, hyphens."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def _block(
    where: str, section: str, fence: re.Match[str], lines: Iterator[tuple[int, str]]
) -> Block:
    body: list[str] = []
    for _, line in lines:
        if line.strip().startswith(fence[1]) and not line.strip().strip(fence[1][0]):
            return Block(where, section, tuple(fence[2].split()), "\n".join(body) + "\n")
        body.append(line)
    raise AssertionError(f"{where}: the block has no end")
