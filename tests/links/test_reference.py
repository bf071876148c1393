"""docs/links.md says what the kinds of link say of themselves."""

from __future__ import annotations

from pathlib import Path

from agent.documents.docstrings import about
from agent.links import registry
from agent.links.reference import BLOCKS, rendered

PATH = Path(__file__).resolve().parents[2] / "docs" / "links.md"


def test_the_page_is_that_of_the_kinds() -> None:
    text = PATH.read_text()
    assert rendered(text) == text, "run `make schemas`"
    assert [name for name in BLOCKS if f"<!-- generated: {name} -->" not in text] == []


def test_every_kind_of_link_has_a_row_and_words_for_its_keys() -> None:
    text = PATH.read_text()
    for kind in registry.KINDS:
        assert f"| `{kind}` |" in text
        settings = registry.find(kind).settings
        assert settings().kind == kind
        assert set(about(settings).fields) == set(settings.__struct_fields__)
