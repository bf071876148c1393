"""The author's words, and label files in the archive at a model's tail."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence

import flatbuffers
import pytest

from agent.errors import ModelRejected
from agent.formats.archive_tail import MAX_FILES, read_tail
from agent.formats.description import Normalisation
from agent.formats.labels import MAX_LABELS, parse_labels, parse_names
from agent.formats.tflite_metadata import read_words
from tests.formats.building import archive


def offsets(builder: flatbuffers.Builder, entries: Sequence[int]) -> int:
    builder.StartVector(4, len(entries), 4)
    for entry in reversed(entries):
        builder.PrependUOffsetTRelative(entry)
    return int(builder.EndVector())


def floats(builder: flatbuffers.Builder, values: Sequence[float]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return int(builder.EndVector())


def table(builder: flatbuffers.Builder, size: int, fields: dict[int, int]) -> int:
    builder.StartObject(size)
    for slot, offset in fields.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    return int(builder.EndObject())


def metadata(std: Sequence[float] = (3.0, 4.0)) -> bytes:
    """A ModelMetadata with one normalised input and one output labelled by `classes.txt`."""
    builder = flatbuffers.Builder(1024)
    normalisation = table(builder, 2, {0: floats(builder, [1.0, 2.0]), 1: floats(builder, std)})
    builder.StartObject(2)
    builder.PrependUint8Slot(0, 1, 0)
    builder.PrependUOffsetTRelativeSlot(1, normalisation, 0)
    unit = builder.EndObject()
    image = table(builder, 7, {1: builder.CreateString("a picture"), 4: offsets(builder, [unit])})
    file_name = builder.CreateString("classes.txt")
    builder.StartObject(5)
    builder.PrependUOffsetTRelativeSlot(0, file_name, 0)
    builder.PrependInt8Slot(2, 2, 0)
    file = builder.EndObject()
    scores = table(builder, 7, {6: offsets(builder, [file])})
    graph = table(builder, 7, {2: offsets(builder, [image]), 3: offsets(builder, [scores])})
    strings = [builder.CreateString(text) for text in ("net", "sees", "v2", "me", "MIT")]
    name, description, version, author, licence = strings
    root = table(
        builder,
        8,
        {0: name, 1: description, 2: version, 3: offsets(builder, [graph]), 4: author, 5: licence},
    )
    builder.Finish(root, b"M001")
    return bytes(builder.Output())


def test_words_normalisation_and_the_named_label_file_are_read() -> None:
    tail = archive({"readme.txt": b"x", "labels.txt": b"no", "classes.txt": b"cat\ndog"})
    words = read_words(memoryview(tail), memoryview(metadata()))
    assert (words.name, words.description, words.version) == ("net", "sees", "v2")
    assert words.metadata == {"author": "me", "license": "MIT"}
    assert words.inputs == [("a picture", Normalisation((1.0, 2.0), (3.0, 4.0)))]
    assert words.outputs == [("", None)]
    assert words.labels == ("cat", "dog")
    assert words.associated_files == ("readme.txt", "labels.txt", "classes.txt")
    assert words.notes == []


@pytest.mark.parametrize("std", [0.0, float("nan"), float("inf")])
def test_a_normalisation_that_cannot_be_computed_is_a_note(std: float) -> None:
    words = read_words(memoryview(b""), memoryview(metadata([std])))
    assert "standard deviation" in words.notes[0]
    assert words.name == "net"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["labels.txt", "vocab.txt"], "labels.txt"),
        (["classes.txt"], "classes.txt"),
        (["a.txt", "b.txt"], None),
        (["labels_en.txt", "labels_de.txt"], None),
        (["model.bin"], None),
    ],
)
def test_without_metadata_only_an_unmistakable_label_file_is_taken(
    names: list[str], chosen: str | None
) -> None:
    tail = archive({name: name.encode() for name in names})
    words = read_words(memoryview(tail), None)
    assert words.labels == ((chosen,) if chosen else None)


def first(names: Sequence[str]) -> str | None:
    return names[0] if names else None


def test_a_model_without_an_archive_has_no_files() -> None:
    assert read_tail(memoryview(b"just a model"), first) == ((), None)
    assert read_tail(memoryview(b"PK\x05\x06"), first) == ((), None)


def test_an_archive_written_relative_to_itself_is_read_behind_anything() -> None:
    tail = bytes(100_000) + archive({"labels.txt": b"a"})
    assert read_tail(memoryview(tail), first) == (("labels.txt",), b"a")


def bomb() -> bytes:
    return archive({"labels.txt": bytes(5_000_000)})


def encrypted() -> bytes:
    data = bytearray(archive({"labels.txt": b"a"}, zipfile.ZIP_STORED))
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bomb(), "has 5000000 bytes"),
        (encrypted(), "encrypted"),
        (archive({"labels.txt": b"a" * 99}, zipfile.ZIP_LZMA), "packed in an unusual way"),
        (archive({f"{i}.txt": b"" for i in range(MAX_FILES + 1)}), "65 files"),
        (archive({f"{i:0200}.txt": b"" for i in range(400)}), "its directory takes"),
        (archive({"a": b"x"})[10:], "broken"),
        (b"PK\x06\x07" + bytes(16) + b"PK\x05\x06" + bytes(18), "ZIP64"),
    ],
    ids=["bomb", "encrypted", "lzma", "many files", "long names", "cut", "zip64"],
)
def test_an_archive_that_is_not_small_and_plain_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ModelRejected, match=reason):
        read_tail(memoryview(data), first)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat\ndog\n", ("cat", "dog")),
        ("\ufeffcat\r\ndog\r\n", ("cat", "dog")),
        ("cat\n\ndog", ("cat", "", "dog")),
        ("0 cat\n1 dog", ("cat", "dog")),
        ("0: cat\n2: dog\n", ("cat", "", "dog")),
        ("0  person\n1  bicycle", ("person", "bicycle")),
        ("1 euro\n2 euro", ("1 euro", "2 euro")),
        ("0 cat\ndog", ("0 cat", "dog")),
        ("0\n1\n2", ("0", "1", "2")),
        ("0 cat\n0 dog", ("0 cat", "0 dog")),
        ("", ()),
        ("\n\n", ()),
    ],
)
def test_label_lines_become_classes(text: str, labels: tuple[str, ...]) -> None:
    assert parse_labels(text.encode()) == labels


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\xff", "not UTF-8"),
        (b"a\x1b[0m", "line 1 .* control character"),
        (b"ok\n" + b"x" * 257, "line 2 .* has 257 characters"),
        (b"a\n" * (MAX_LABELS + 1), "100001 lines"),
    ],
)
def test_a_label_file_that_is_not_one_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(ModelRejected, match=reason):
        parse_labels(raw)


@pytest.mark.parametrize(
    "text", ["", "names", "{1: 'a'}", "{0: 'a', 2: 'b'}", "['a', 'b']", "{0: a}", "{0: 'a\x1b'}"]
)
def test_names_that_do_not_count_from_zero_are_no_labels(text: str) -> None:
    assert parse_names(text.encode()) is None
