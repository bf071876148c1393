"""Every file below a folder, and nothing that is no file."""

from __future__ import annotations

import os
import socket
import tracemalloc
from pathlib import Path

import pytest

from agent.author.tree import DEPTH_MAX, ENTRIES_MAX, read_file, read_tree
from agent.errors import PackError, UsageError
from tests.trust.signers import digest


def test_files_are_found_by_their_names_from_the_top_but_for_the_signature(tmp_path: Path) -> None:
    (tmp_path / "a" / "model.sig").parent.mkdir()
    (tmp_path / "a" / "model.sig").write_bytes(b"inner")
    (tmp_path / "a" / ".hidden").write_bytes(b"")
    (tmp_path / "model.sig").write_bytes(b"outer")
    (tmp_path / "empty").mkdir()
    found = read_tree(tmp_path)
    assert found.digests == {"a/model.sig": digest(b"inner"), "a/.hidden": digest(b"")}
    assert found.refused == []


def test_what_is_no_file_is_named_and_not_opened(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "link").symlink_to(outside)
    (pack / "dangling").symlink_to("nowhere")
    (pack / "folder").symlink_to(tmp_path)
    os.mkfifo(pack / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(pack / "socket"))
        found = read_tree(pack)
    assert found.digests == {}
    assert sorted(found.refused) == [
        "dangling: is a symbolic link, which no pack may hold",
        "folder: is a symbolic link, which no pack may hold",
        "link: is a symbolic link, which no pack may hold",
        "pipe: is a named pipe, which no pack may hold",
        "socket: is a socket, which no pack may hold",
    ]


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_a_signature_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "model.sig"
    if kind == "folder":
        place.mkdir()
        (place / "evil.so").write_bytes(b"")
    elif kind == "link":
        place.symlink_to("elsewhere")
    else:
        os.mkfifo(place)
    assert len(read_tree(tmp_path).refused) == 1
    with pytest.raises(UsageError, match=r"model\.sig"):
        read_file(place, 10)


def test_a_name_that_is_no_text_does_not_reach_a_terminal(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff\x1b[2J")).symlink_to("x")
    assert read_tree(tmp_path).refused[0].isprintable()


def test_a_folder_within_folders_without_end_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath(*"x" * (DEPTH_MAX + 2)).mkdir(parents=True)
    with pytest.raises(PackError, match="folders in one another"):
        read_tree(tmp_path)


def test_more_entries_than_any_pack_has_are_refused(tmp_path: Path) -> None:
    for number in range(ENTRIES_MAX + 1):
        (tmp_path / str(number)).touch()
    with pytest.raises(PackError, match="are no pack"):
        read_tree(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none: No such file"):
        read_tree(tmp_path / "none")


def test_a_large_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / "model.sig").open("wb") as file:
        file.truncate(50_000_000)
    tracemalloc.start()
    try:
        read = read_file(tmp_path / "model.sig", 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert read is not None
    assert len(read) == (1 << 20) + 1
