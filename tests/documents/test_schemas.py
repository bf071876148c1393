"""The published schemas are those of the types."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from agent.documents.device import Device
from agent.documents.docstrings import structs_in
from agent.documents.profile import Profile
from agent.documents.schemas import rendered

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schemas"


def test_the_schemas_in_the_docs_are_generated_from_the_types() -> None:
    for name, text in rendered().items():
        assert (FOLDER / name).read_text() == text, f"{name}: run `make schemas`"
    assert {path.name for path in FOLDER.iterdir()} == set(rendered())


def test_the_schema_of_profiles_names_every_key_and_allows_no_other() -> None:
    """An editor that checks by it tells a slip of the pen as the agent does."""
    schema = json.loads((FOLDER / "profile.json").read_text())
    parts = structs_in(Profile)
    of_a_device = structs_in(Device)
    for struct in parts:
        described = schema["$defs"][struct.__name__]
        assert set(described["properties"]) == {
            field.encode_name for field in msgspec.structs.fields(struct)
        }
        assert struct in of_a_device or described["additionalProperties"] is False
        assert all(one.get("description") for one in described["properties"].values())
