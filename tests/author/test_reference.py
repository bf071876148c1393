"""docs/packs.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from agent.author.reference import rendered
from agent.author.samples import READERS
from agent.author.spec import Spec, TensorSpec, VariantSpec
from agent.documents.manifest import Card, Limits, Pipeline, StatePair, Tolerance, Window

PAGE = Path(__file__).resolve().parents[2] / "docs" / "packs.md"


def test_the_tables_of_codecs_and_steps_are_those_of_the_registries() -> None:
    text = PAGE.read_text()
    assert rendered(text) == text, "run `python -m agent.author.reference docs/packs.md`"
    assert "| `argmax` |" in text
    assert "| `csv` |" in text


@pytest.mark.parametrize(
    "kind",
    [Spec, TensorSpec, VariantSpec, Card, Limits, Pipeline, StatePair, Tolerance, Window],
)
def test_every_key_of_a_specification_is_on_the_page(kind: type[msgspec.Struct]) -> None:
    text = re.sub(r"^```.*?^```", "", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"[a-z_][a-z0-9_]*", " ".join(re.findall(r"`([^`]+)`", text))))
    assert {field.encode_name for field in msgspec.structs.fields(kind)} <= named


def test_no_word_for_a_type_splits_the_cell_of_a_table() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in rows if "<br>" in line]
    assert set(widths) == {5}


def test_every_kind_of_sample_file_is_on_the_page() -> None:
    text = PAGE.read_text()
    assert all(f"| `{suffix}` |" in text for suffix in READERS)
