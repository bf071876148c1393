"""The layer itself: what its errors say, and the orders of calls that are built from it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from agent.errors import NoSpace, StoreError
from agent.store.ballast import Ballast, can_spare
from agent.store.files import Files, Kind
from tests.store.recorder import DyingFiles, FailingFiles, PowerCut
from tests.store.samples import SizedFiles


def test_replace_leaves_one_private_file_with_the_new_content(tmp_path: Path) -> None:
    files = Files()
    files.replace(tmp_path / "a", b"old")
    files.replace(tmp_path / "a", b"new")
    assert files.names(tmp_path) == ["a"]
    assert files.read(tmp_path / "a", 10) == b"new"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_append_makes_the_file_and_adds_to_it(tmp_path: Path) -> None:
    files = Files()
    files.append(tmp_path / "log", b"one\n")
    files.append(tmp_path / "log", b"two\n")
    assert files.read(tmp_path / "log", 100) == b"one\ntwo\n"


def test_a_short_write_is_continued(tmp_path: Path) -> None:
    files = FailingFiles(2, 0)
    files.replace(tmp_path / "a", b"0123456789")
    assert files.read(tmp_path / "a", 100) == b"0123456789"


def test_a_file_larger_than_its_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with pytest.raises(StoreError, match="larger than the 9 bytes"):
        Files().read(tmp_path / "a", 9)


def test_what_is_absent_is_none_or_empty_not_an_error(tmp_path: Path) -> None:
    files, absent = Files(), tmp_path / "absent"
    assert files.read(absent, 1) is None
    assert files.read_range(absent, 0, 1) is None
    assert files.size(absent) is None
    assert files.size(tmp_path / "absent" / "deeper") is None
    assert files.names(absent) == []
    assert list(files.chunks(absent)) == []
    files.unlink(absent)


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match="symbolic link"):
        Files().read(tmp_path / "link", 100)
    with pytest.raises(StoreError, match="symbolic link"):
        Files().open(tmp_path / "link")


def test_remove_tree_stays_inside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_bytes(b"")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "link").symlink_to(tmp_path / "outside")
    Files().remove_tree(tmp_path / "tree")
    assert Files().names(tmp_path) == ["outside"]
    assert Files().names(tmp_path / "outside") == ["kept"]


def test_sweep_removes_only_what_was_left_in_the_middle(tmp_path: Path) -> None:
    for at in (2, 3, 4):
        with pytest.raises(PowerCut):
            DyingFiles(at).replace(tmp_path / "a", b"new")
    (tmp_path / ".hidden").write_bytes(b"")
    (tmp_path / "b.tmp").write_bytes(b"")
    assert Files().sweep(tmp_path) == 3
    assert Files().names(tmp_path) == [".hidden", "b.tmp"]


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (errno.ENOSPC, NoSpace, r"the disk is full \(needed 3 bytes, free \d+ bytes\)"),
        (errno.EDQUOT, NoSpace, "disk quota is full"),
        (errno.EROFS, StoreError, "the file system is read-only .*dmesg"),
        (errno.EIO, StoreError, "input/output error"),
        (errno.EMFILE, StoreError, "too many files open"),
        (errno.EACCES, StoreError, "permission denied"),
    ],
)
def test_an_error_says_what_failed_on_what_and_why(
    tmp_path: Path, code: int, kind: type[StoreError], says: str
) -> None:
    with pytest.raises(StoreError, match=f"{tmp_path}/.*cannot write: .*{says}") as caught:
        FailingFiles(2, code).replace(tmp_path / "a", b"new")
    assert type(caught.value) is kind
    assert caught.value.retryable is (kind is NoSpace)


@pytest.mark.parametrize("done", [False, True], ids=["undone", "done"])
@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, 0], ids=lambda code: str(code)
)
def test_replace_that_fails_at_any_call_leaves_the_old_or_the_new(
    tmp_path: Path, code: int, done: bool
) -> None:
    path = tmp_path / "a"
    at, last = 1, False
    while not last:
        Files().replace(path, b"old")
        files = FailingFiles(at, code, done=done)
        try:
            files.replace(path, b"new")
        except StoreError:
            assert Files().read(path, 10) in (b"old", b"new")
            assert Files().names(tmp_path) == ["a"]
        else:
            assert Files().read(path, 10) == b"new"
        last = files.count < at
        Files().replace(path, b"new")
        at += 1
    assert at > 6


def test_the_hook_sees_each_change_before_it_happens(tmp_path: Path) -> None:
    seen: list[Kind] = []

    class Watching(Files):
        def before(self, op: Kind, path: Path) -> None:
            assert path == tmp_path or path.parent == tmp_path
            seen.append(op)

    Watching().replace(tmp_path / "a", b"new")
    assert seen == ["create", "write", "sync", "rename", "sync_dir"]


def test_folders_are_made_with_those_above_them(tmp_path: Path) -> None:
    files = Files()
    files.make_folder(tmp_path / "a" / "b" / "c", 0o700)
    files.make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert files.names(tmp_path / "a" / "b") == ["c"]


def test_a_folder_whose_flush_failed_is_flushed_again(tmp_path: Path) -> None:
    seen: list[tuple[Kind, Path]] = []

    class FailsFirstFlush(Files):
        def before(self, op: Kind, path: Path) -> None:
            if op == "sync_dir" and path == tmp_path:
                seen.append((op, path))
                if len(seen) == 1:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

    files = FailsFirstFlush()
    with pytest.raises(StoreError, match="input/output"):
        files.make_folder(tmp_path / "a")
    files.make_folder(tmp_path / "a")
    files.make_folder(tmp_path / "a")
    assert len(seen) == 2


def test_free_space_is_told_for_a_path_that_does_not_exist_yet(tmp_path: Path) -> None:
    space = Files().space(tmp_path / "not" / "yet")
    assert 0 < space.free_bytes <= space.total_bytes


def test_ballast_is_written_once_and_given_back_once(tmp_path: Path) -> None:
    ballast = Ballast(Files(), tmp_path / "state" / "ballast", size=4096)
    assert not ballast.release()
    assert ballast.fill()
    assert ballast.fill()
    assert (tmp_path / "state" / "ballast").stat().st_blocks * 512 >= 4096
    assert ballast.release()
    assert not ballast.release()


def test_ballast_is_not_written_to_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    files = SizedFiles()
    files.leave(3 * 4096)
    assert not Ballast(files, tmp_path / "ballast", size=4096).fill()
    assert files.names(tmp_path) == []


def test_filling_ballast_leaves_three_times_its_size_free() -> None:
    assert [can_spare(free, 4096) for free in (0, 4 * 4096 - 1, 4 * 4096)] == [False, False, True]


def test_ballast_that_cannot_be_written_is_no_error_and_leaves_nothing(tmp_path: Path) -> None:
    for at in range(1, 8):
        Ballast(FailingFiles(at, errno.ENOSPC), tmp_path / "ballast", size=4096).fill()
        assert set(Files().names(tmp_path)) <= {"ballast"}
        Files().unlink(tmp_path / "ballast")
