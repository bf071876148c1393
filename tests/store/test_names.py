"""Names of files in a pack, and digests."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import PackError
from agent.store.names import FILES_MAX, check_names, hex_of


def test_ordinary_names_are_accepted() -> None:
    check_names(
        ["model.onnx", "data/labels.txt", "data/weights 1.bin", "größe.bin", ".gitattributes"]
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "1 to 1024 bytes"),
        ("/etc/passwd", "relative"),
        ("..", "'..'"),
        ("a/../../b", "'..'"),
        ("./a", "'.'"),
        ("a//b", "empty part"),
        ("a/", "empty part"),
        ("a\\b", "by / alone"),
        ("C:\\a", "by / alone"),
        ("a\0b", "control character"),
        ("a\nb", "control character"),
        ("\x85", "control character"),
        ("a" * 256, "more than 255 bytes"),
        ("ä" * 128, "more than 255 bytes"),
        ("a/" * 600 + "a", "1 to 1024 bytes"),
        ("\ud800", "not valid Unicode"),
        ("manifest.json", "collides"),
        ("Model.SIG", "collides"),
        ("model.sig/a", "both a file and a folder"),
    ],
)
def test_a_name_that_could_do_harm_is_refused_with_the_reason(name: str, says: str) -> None:
    with pytest.raises(PackError, match=says):
        check_names(["model.onnx", name])


@pytest.mark.parametrize(
    "names",
    [
        ["a", "A"],
        ["a/x", "A/y"],
        ["straße", "STRASSE"],
        ["caf\u00e9", "cafe\u0301"],
        ["a", "a/b"],
        ["a/b", "A"],
        ["same", "same"],
    ],
)
def test_names_that_some_file_system_takes_for_one_are_refused(names: list[str]) -> None:
    for order in (names, names[::-1]):
        with pytest.raises(PackError):
            check_names(order)


def test_too_many_files_are_refused() -> None:
    check_names(str(number) for number in range(FILES_MAX))
    with pytest.raises(PackError, match="more than 1024 files"):
        check_names(str(number) for number in range(FILES_MAX + 1))


@given(names=st.lists(st.text(st.characters() | st.sampled_from("/.\\\0aA"), max_size=12)))
@settings(max_examples=300, deadline=None)
def test_what_is_accepted_stays_inside_and_apart(names: list[str]) -> None:
    try:
        check_names(names)
    except PackError:
        return
    paths = [PurePosixPath("/pack") / name for name in names]
    assert all(path.is_relative_to("/pack") and ".." not in path.parts for path in paths)
    assert len(set(paths)) == len(names)


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:", "a" * 64, "sha256:" + "A" * 64, "sha512:" + "a" * 64, "sha256:" + "a" * 65],
)
def test_a_digest_has_one_way_to_be_written(digest: str) -> None:
    with pytest.raises(PackError, match="64 lowercase hex digits"):
        hex_of(digest)


def test_a_digest_is_its_hex_digits() -> None:
    assert hex_of("sha256:" + "0a" * 32) == "0a" * 32
