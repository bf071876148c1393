"""Two generations of one small document."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import NoSpace, StoreError
from agent.store.ballast import Ballast
from agent.store.files import Kind
from agent.store.sealed import Sealed, seal, unseal
from agent.store.state import STATE_BYTES_MAX, StateFile
from tests.store.recorder import FailingFiles, QuickFiles


@given(document=st.binary(max_size=200), generation=st.integers(0, 10**12), after=st.binary())
@settings(max_examples=200, deadline=None)
def test_sealing_round_trips_whatever_follows(
    document: bytes, generation: int, after: bytes
) -> None:
    assert unseal(seal(document, generation) + after) == Sealed(generation, document)


@given(document=st.binary(min_size=1, max_size=60), data=st.data())
@settings(max_examples=200, deadline=None)
def test_one_changed_byte_breaks_the_seal(document: bytes, data: st.DataObject) -> None:
    stored = bytearray(seal(document, 7))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    assert unseal(bytes(stored)) is None


@given(data=st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_as_damaged(data: bytes) -> None:
    assert unseal(data) is None
    assert unseal(b"edgeward-sealed 1 " + data) is None


def test_the_newest_document_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "state" / "control"
    assert StateFile(QuickFiles(), path).load().document is None
    state = StateFile(QuickFiles(), path)
    for document in (b"one", b"two", b"three"):
        state.save(document)
        loaded = StateFile(QuickFiles(), path).load()
        assert (loaded.document, loaded.corrupt) == (document, ())


def test_a_new_process_goes_on_with_the_generations(tmp_path: Path) -> None:
    for document in (b"one", b"two", b"three", b"four"):
        StateFile(QuickFiles(), tmp_path / "control").save(document)
        assert StateFile(QuickFiles(), tmp_path / "control").load().document == document


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\0" * 300])
def test_a_damaged_generation_falls_back_and_is_told(tmp_path: Path, damage: bytes) -> None:
    state = StateFile(QuickFiles(), tmp_path / "control")
    state.save(b"one")
    state.save(b"two")
    newest = tmp_path / "control.0"
    newest.write_bytes(damage)
    loaded = StateFile(QuickFiles(), tmp_path / "control").load()
    assert (loaded.document, loaded.corrupt) == (b"one", (newest,))
    again = StateFile(QuickFiles(), tmp_path / "control")
    again.save(b"three")
    assert StateFile(QuickFiles(), tmp_path / "control").load().document == b"three"
    assert StateFile(QuickFiles(), tmp_path / "control").load().corrupt == ()


def test_both_generations_damaged_is_not_a_new_device(tmp_path: Path) -> None:
    state = StateFile(QuickFiles(), tmp_path / "control")
    state.save(b"one")
    state.save(b"two")
    for name in ("control.0", "control.1"):
        (tmp_path / name).write_bytes(b"x" * 10)
    loaded = StateFile(QuickFiles(), tmp_path / "control").load()
    assert loaded.document is None
    assert len(loaded.corrupt) == 2


def test_a_document_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="4 MiB"):
        StateFile(QuickFiles(), tmp_path / "control").save(bytes(STATE_BYTES_MAX + 1))


class FullDisk(QuickFiles):
    """No block is free until something is removed."""

    def __init__(self) -> None:
        super().__init__()
        self.full = True

    def before(self, op: Kind, path: Path) -> None:
        if op == "write" and self.full:
            raise OSError(errno.ENOSPC, "no space")
        if op == "unlink" and not path.name.startswith("."):
            self.full = False


def test_on_a_full_disk_the_ballast_makes_room_for_state(tmp_path: Path) -> None:
    files = FullDisk()
    ballast = Ballast(files, tmp_path / "ballast", size=4096)
    state = StateFile(files, tmp_path / "control", ballast)
    with pytest.raises(NoSpace):
        state.save(b"one")
    files.full = False
    assert ballast.fill()
    files.full = True
    state.save(b"two")
    assert StateFile(QuickFiles(), tmp_path / "control").load().document == b"two"
    assert files.names(tmp_path) == ["control.1"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, 0])
def test_a_save_that_fails_at_any_call_leaves_old_or_new_and_the_next_succeeds(
    tmp_path: Path, code: int
) -> None:
    for at in range(1, 12):
        path = tmp_path / str(at) / "control"
        StateFile(QuickFiles(), path).save(b"older")
        StateFile(QuickFiles(), path).save(b"old")
        files = FailingFiles(at, code)
        state = StateFile(files, path)
        try:
            state.save(b"new")
        except StoreError:
            assert StateFile(QuickFiles(), path).load().document in (b"old", b"new")
        else:
            assert StateFile(QuickFiles(), path).load().document == b"new"
        assert StateFile(QuickFiles(), path).load().corrupt == ()
        files.recover()
        state.save(b"newer")
        assert StateFile(QuickFiles(), path).load().document == b"newer"
