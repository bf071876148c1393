"""The documentation holds: commands run, names exist, documents are valid, links lead somewhere.

How a page marks its blocks is in CONTRIBUTING.md, "Documentation".
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.documents.codec import decode
from agent.documents.schemas import DOCUMENTS
from agent.documents.settings import settings_from
from agent.links import registry
from tests.brokers import LocalBroker
from tests.repository import sandbox
from tests.repository.commands import REPOSITORY, command_lines, complaint
from tests.repository.markdown import Block, Page, read

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# One page's commands, all together.
PAGE_DEADLINE_S = 55.0


def _pages() -> list[Page]:
    """The pages that a person reads to use the agent; decisions stay as they were written."""
    docs = sorted((REPOSITORY / "docs").rglob("*.md"))
    paths = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *docs]
    names = [path.relative_to(REPOSITORY) for path in paths]
    return [read(REPOSITORY / n, str(n)) for n in names if "adr" not in n.parts]


PAGES = _pages()
BLOCKS = [block for page in PAGES for block in page.blocks]


def _every(blocks: list[Block]) -> list[object]:
    return [pytest.param(block, id=block.where) for block in blocks]


def _settings(text: str) -> None:
    settings_from(tomllib.loads(text), {}, name="agent.toml", kinds=registry.settings_of)


def _document(kind: type[msgspec.Struct], name: str) -> Callable[[str], None]:
    """What checks that a block is one of our documents, with no field that nobody reads."""

    def check(text: str) -> None:
        decoded = decode(text.encode(), kind, name=name, max_bytes=64 * 1024)
        assert decoded.unknown_fields == 0, f"{name} has fields that no device reads"

    return check


# Language of a block → what it must be.
LANGUAGES: dict[str, Callable[[str], object]] = {
    "": str,
    "text": str,
    "mermaid": str,
    "json": json.loads,
    "toml": tomllib.loads,
    "python": ast.parse,
    "sh": lambda script: subprocess.run(["bash", "-n", "-c", script], check=True),
}
# File name that a block gives itself → the document that it must then be.
NAMED: dict[str, Callable[[str], object]] = {
    "agent.toml": _settings,
    **{f"{name}.json": _document(kind, name) for name, kind in DOCUMENTS.items()},
}


@pytest.mark.parametrize("block", _every(BLOCKS))
def test_a_block_is_what_it_says_it_is(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block.where}: use one of {', '.join(LANGUAGES)}"
    LANGUAGES[block.language](block.text)
    NAMED.get(block.file_name, str)(block.text)


@pytest.mark.parametrize("block", _every([b for b in BLOCKS if b.language == "sh"]))
def test_a_command_line_names_what_exists(block: Block) -> None:
    assert block.words[1:] in ((), ("checked",)), f"{block.where}: `sh` or `sh checked`"
    wrong = [said for words in command_lines(block.text) if (said := complaint(words))]
    assert not wrong, f"{block.where}: {'; '.join(wrong)}"


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_a_command_named_in_a_sentence_exists(page: Page) -> None:
    ours = [(where, code) for where, code in page.inline if code.startswith(("edgeward ", "make "))]
    wrong = [
        f"{where}: {said}"
        for where, code in ours
        for words in command_lines(code)
        if (said := complaint(words))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.name) for page in PAGES if any(map(sandbox.is_run, page.blocks))],
)
def test_the_commands_of_a_page_run_as_they_stand(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    (tmp_path / "page").mkdir()
    broker = LocalBroker(tmp_path / "broker").start()
    try:
        script = sandbox.script_of(page.blocks, broker.port)
        done = sandbox.run(script, tmp_path / "page", PAGE_DEADLINE_S)
    finally:
        broker.stop()
    assert done.returncode == 0, f"status {done.returncode}, the last lines:\n{done.stdout[-4000:]}"


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_a_link_leads_somewhere(page: Page) -> None:
    wrong = [f"{where}: {link}" for where, link in page.links if not _leads(page, link)]
    assert not wrong, "\n".join(wrong)


def _leads(page: Page, link: str) -> bool:
    if "://" in link or link.startswith("mailto:"):
        return True
    path, _, heading = link.partition("#")
    target = (REPOSITORY / page.name).parent / path if path else REPOSITORY / page.name
    if not target.exists():
        return False
    return not heading or heading in read(target, path or page.name).anchors
