"""Packs from a folder of this machine: only where the settings allow it, and never by a link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.daemon import fetch_file
from agent.daemon.fetch_file import LocalFiles
from agent.errors import FetchError, SourceRefused

DATA = bytes(range(256)) * 100


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "usb" / "pack v1"
    (folder / "data").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(DATA)
    (folder / "data" / "labels").write_bytes(b"a\nb\n")
    return tmp_path / "usb"


def read(root: Path, name: str, start: int = 0, size: int | None = len(DATA)) -> bytes:
    files = LocalFiles(f"file://{root}/pack%20v1", [str(root)])
    return b"".join(data for _, data in files.pieces(name, start, size))


def test_a_file_is_read_from_where_the_last_attempt_ended(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_file, "READ_BYTES", 1000)
    assert read(root, "model.onnx") == DATA
    assert read(root, "model.onnx", start=777) == DATA[777:]
    assert read(root, "data/labels", size=None) == b"a\nb\n"


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc",
        "file://{root}-other/pack",
        "file://{root}/../pack",
        "file://{root}/%2e%2e/pack",
        "file://host{root}/pack",
        "file:relative/pack",
        "file:",
    ],
)
def test_what_lies_elsewhere_is_refused(root: Path, source: str) -> None:
    with pytest.raises(SourceRefused):
        LocalFiles(source.replace("{root}", str(root)), [str(root)])


def test_without_an_allowed_folder_it_says_what_to_configure(root: Path) -> None:
    with pytest.raises(SourceRefused, match=r"\(none\)") as caught:
        LocalFiles(f"file://{root}/pack%20v1", [])
    assert caught.value.hint == f'to allow it, set [fetch] roots = ["{root}"] on the device'


def test_no_symbolic_link_is_followed_not_even_a_folder(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    folder = root / "pack v1"
    (folder / "link").symlink_to(secret)
    (folder / "folder").symlink_to(folder / "data")
    (root / "alias").symlink_to(folder)
    for name in ("link", "folder/labels"):
        with pytest.raises(SourceRefused):
            read(root, name)
    with pytest.raises(SourceRefused):
        list(LocalFiles(f"file://{root}/alias", [str(root)]).pieces("model.onnx", 0, None))


def test_what_is_no_regular_file_is_refused_without_waiting(root: Path) -> None:
    os.mkfifo(root / "pack v1" / "pipe")
    for name in ("pipe", "data"):
        with pytest.raises(SourceRefused, match="not a regular file"):
            read(root, name)


def test_a_missing_file_may_still_come(root: Path) -> None:
    with pytest.raises(FetchError, match="No such file") as caught:
        read(root, "none")
    assert caught.value.retryable


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
def test_another_size_than_promised_is_named(root: Path, size: int) -> None:
    with pytest.raises(FetchError, match=f"has {len(DATA)} bytes; {size} are promised"):
        read(root, "model.onnx", size=size)


def test_a_manifest_is_bounded(root: Path) -> None:
    (root / "pack v1" / "manifest.json").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(FetchError, match="1048576 are promised"):
        read(root, "manifest.json", size=None)
