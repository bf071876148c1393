"""docs/documents.md says what the types say, and its examples show every field."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from agent.documents.docstrings import about, structs_in
from agent.documents.manifest import Window
from agent.documents.names import Key
from agent.documents.reference import BLOCKS, LINE_CHARACTERS, rendered, type_in_words
from agent.documents.schemas import DOCUMENTS, schema_of
from agent.documents.settings import Settings, settings_from
from tests.repository.markdown import read

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PATH = Path(__file__).resolve().parents[2] / "docs" / "documents.md"
PAGE = read(PATH, "docs/documents.md")
EXAMPLES = {block.file_name: block.text for block in PAGE.blocks if block.file_name}
# A window is counted or timed; one example cannot show both.
NOT_SHOWN = {"span_ms", "time_field"}


def test_the_fields_on_the_page_are_those_of_the_types() -> None:
    text = PATH.read_text()
    assert rendered(text) == text, "run `make schemas`"
    missing = [name for name in BLOCKS if f"<!-- generated: {name} -->" not in text]
    assert not missing


@pytest.mark.parametrize("kind", DOCUMENTS.values())
def test_every_field_of_a_document_is_described(kind: type[msgspec.Struct]) -> None:
    for struct in structs_in(kind):
        summary, words = about(struct)
        assert summary
        described = {name for name, text in words.items() if text}
        assert described == {field.encode_name for field in msgspec.structs.fields(struct)}, struct


@pytest.mark.parametrize("name", DOCUMENTS)
def test_an_example_shows_every_field_of_its_document(name: str) -> None:
    example: Any
    if name == "settings":
        example = tomllib.loads(EXAMPLES["agent.toml"])
    else:
        example = json.loads(EXAMPLES[f"{name}.json"])
    fields = {
        field.encode_name
        for struct in structs_in(DOCUMENTS[name])
        for field in msgspec.structs.fields(struct)
    }
    if name == "status":
        # What it shares with the report is shown there.
        fields -= fields_of("report")
    assert fields - keys_in(example) <= NOT_SHOWN


def fields_of(name: str) -> set[str]:
    structs = structs_in(DOCUMENTS[name])
    return {field.encode_name for struct in structs for field in msgspec.structs.fields(struct)}


def keys_in(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_in, value.values()))
    return set().union(*map(keys_in, value)) if isinstance(value, list) else set()


def test_every_variable_on_the_page_sets_the_key_that_it_stands_beside() -> None:
    example = tomllib.loads(EXAMPLES["agent.toml"])
    example["bus"] = example["link"]
    values = {
        f"EDGEWARD_{section}_{key}".upper().replace("__", "_"): (section, key, value)
        for section, keys in {"": example, **sections(example)}.items()
        for key, value in keys.items()
        if not holds_tables(value)
    }
    page = PATH.read_text()
    for variable, (section, key, value) in values.items():
        assert section == "bus" or f"`{variable}`" in page
        text = ":".join(value) if isinstance(value, list) else str(value)
        settings = msgspec.to_builtins(settings_from({}, {variable: text}, name="it"))
        wanted = msgspec.to_builtins(settings_from(example, {}, name="it"))
        found = settings[section] if section else settings
        assert found.get(key) == (wanted[section] if section else wanted).get(key), variable


def holds_tables(value: object) -> bool:
    """Whether a value can stand in the file only."""
    return isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict))


def sections(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: inner for name, inner in table.items() if isinstance(inner, dict)}


def test_the_page_is_readable_without_scrolling_sideways() -> None:
    long = [n for n, line in enumerate(PATH.read_text().splitlines(), 1) if len(line) > 140]
    assert not long
    assert LINE_CHARACTERS == 140


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (str, "text"),
        (int | None, "whole number"),
        (Key, "key"),
        (Annotated[int, msgspec.Meta(ge=1, le=1024)], "whole number, 1 to 1,024"),
        (Annotated[float, msgspec.Meta(gt=0, le=5)], "number, more than 0, at most 5"),
        (Annotated[str, msgspec.Meta(max_length=9)], "text, at most 9 characters"),
        (Annotated[str, msgspec.Meta(min_length=1, max_length=1)], "text, exactly 1 character"),
        (tuple[str, ...], "list of texts"),
        (float | tuple[float, ...], "number or list of numbers"),
        (tuple[int, bool], "[whole number, `true` or `false`]"),
        (Literal["a", "b"], "`a` or `b`"),
        (dict[Key, Window], "object, key → object"),
    ],
)
def test_types_are_said_in_words(kind: Any, words: str) -> None:
    assert type_in_words(kind) == words


def test_a_word_for_a_field_that_does_not_exist_is_an_error() -> None:
    class Wrong(msgspec.Struct):
        """It has one field.

        Attributes:
            colour: Of the thing.
        """

        color: str

    with pytest.raises(KeyError, match="colour"):
        about(Wrong)


def test_a_schema_has_the_words_of_its_type() -> None:
    definitions = schema_of(Settings)["$defs"]
    limits = definitions["LimitSettings"]
    assert limits["description"] == "How much of the device the agent may take."
    assert limits["properties"]["store_mb"]["description"].startswith("Most that packs")
