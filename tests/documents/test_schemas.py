"""The published schemas are those of the types."""

from __future__ import annotations

from pathlib import Path

from agent.documents.schemas import rendered

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schemas"


def test_the_schemas_in_the_docs_are_generated_from_the_types() -> None:
    for name, text in rendered().items():
        assert (FOLDER / name).read_text() == text, f"{name}: run `make schemas`"
    assert {path.name for path in FOLDER.iterdir()} == set(rendered())
