"""The store read again: what is damaged or left over is told, and dropped on demand only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.control.state import DeviceState, SlotState
from agent.store.check import Checker, Found, mend, needs_of
from tests.control.stories import slot
from tests.store.recorder import QuickFiles
from tests.store.samples import BLOCK_BYTES, NEW, OLD, SamplePack, deliver, digest_of, store_at

SERVES: dict[str, tuple[str, ...]] = {OLD.pack_id: ("serves slot vib",)}
AGAIN = "fetched again"


def check(root: Path, needs: dict[str, tuple[str, ...]] | None = None) -> Found:
    return Checker(QuickFiles(), root, store_at(root)).look(needs)


def repaired(root: Path, needs: dict[str, tuple[str, ...]] | None) -> Found:
    return mend(store_at(root), check(root, needs), needs, AGAIN)


def blob(root: Path, data: bytes) -> Path:
    digest = digest_of(data).removeprefix("sha256:")
    return root / "blobs" / "sha256" / digest[:2] / digest


def alter(path: Path) -> None:
    path.chmod(0o600)
    data = path.read_bytes()
    path.write_bytes(bytes((data[0] ^ 1,)) + data[1:])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = store_at(tmp_path)
    deliver(store, OLD)
    deliver(store, NEW)
    return tmp_path


def model(pack: SamplePack) -> bytes:
    return pack.contents["model.onnx"]


def test_a_whole_store_is_whole_and_each_byte_is_read_once(root: Path) -> None:
    found = check(root)
    assert found.whole
    assert (found.packs, found.blobs) == (2, 6)
    assert found.read_bytes == found.used_bytes
    assert found.quota_bytes > 0 < found.free_bytes
    assert (found.unused_bytes, found.parts, found.temporary, found.strays) == (0, {}, (), ())


def test_an_empty_folder_is_a_whole_store(tmp_path: Path) -> None:
    assert check(tmp_path).whole


def test_an_altered_file_is_told_with_its_pack_and_what_needs_it(root: Path) -> None:
    alter(blob(root, model(OLD)))
    found = check(root, SERVES)
    assert not found.whole
    (bad,) = found.bad_packs
    assert (bad.pack, bad.needed, bad.done) == (OLD.pack_id, ("serves slot vib",), "")
    assert [(f.name, f.reason) for f in bad.files] == [("model.onnx", "altered")]
    assert found.bad_blobs == ()
    assert check(root, SERVES) == found


def test_a_missing_file_of_a_pack_is_told(root: Path) -> None:
    (root / "packs" / OLD.pack_id.removeprefix("sha256:") / "data" / "labels.txt").unlink()
    (bad,) = check(root).bad_packs
    assert [(f.name, f.reason) for f in bad.files] == [("data/labels.txt", "missing")]


def test_a_pack_whose_list_is_damaged_is_told_and_its_files_are_looked_at(root: Path) -> None:
    (root / "packs" / f"{OLD.pack_id.removeprefix('sha256:')}.files").write_bytes(b"\0" * 50)
    alter(blob(root, model(OLD)))
    found = check(root)
    assert "missing or damaged" in found.bad_packs[0].why
    assert [bad.digest for bad in found.bad_blobs] == [digest_of(model(OLD))]


def test_repair_drops_what_is_altered_and_says_that_it_was_the_only_copy_that_serves(
    root: Path,
) -> None:
    alter(blob(root, model(OLD)))
    found = repaired(root, SERVES)
    assert found.whole
    assert found.bad_packs[0].done == (
        "dropped model.onnx (the only copy of what serves); fetched again"
    )
    store = store_at(root)
    assert store.missing(OLD.files) == ["model.onnx"]
    # The folder that a worker serves from stays as it is.
    assert (store.directory(OLD.pack_id) / "model.onnx").exists()
    deliver(store, OLD)
    assert check(root).whole


def test_repair_removes_a_damaged_pack_that_no_slot_needs_and_keeps_what_others_share(
    root: Path,
) -> None:
    alter(blob(root, model(NEW)))
    found = repaired(root, SERVES)
    assert found.bad_packs[0].done == "removed: no slot needs it"
    again = check(root, SERVES)
    assert again.whole
    assert (again.packs, again.blobs, again.unused_bytes) == (1, 4, 0)


def test_repair_removes_no_pack_where_nobody_knows_what_is_needed(root: Path) -> None:
    alter(blob(root, model(NEW)))
    assert needs_of(DeviceState(lost=True)) is None
    assert repaired(root, None).bad_packs[0].done == "dropped model.onnx; fetched again"
    assert store_at(root).has(NEW.pack_id)


def test_an_altered_file_that_no_pack_has_is_told_and_dropped(root: Path) -> None:
    store = store_at(root)
    store.add_manifest(digest_of(b"alone"), b"alone")
    alter(blob(root, b"alone"))
    assert [(b.digest, b.reason) for b in check(root).bad_blobs] == [
        (digest_of(b"alone"), "altered")
    ]
    assert repaired(root, {}).bad_blobs[0].done == "dropped: no pack has it"
    assert check(root).whole


def test_what_is_on_its_way_left_over_or_foreign_is_told_and_never_touched(root: Path) -> None:
    store = store_at(root)
    data = b"x" * 200
    part = store.begin_part(digest_of(data), len(data), BLOCK_BYTES)
    part.write_block(0, data[:BLOCK_BYTES])
    part.close()
    for name in ("packs/notes.txt", "blobs/README", "part/.abc.0123.tmp", "blobs/sha256/ab.bak"):
        (root / name).write_text("mine")
    os.mkfifo(root / "packs" / "pipe")
    found = repaired(root, {})
    assert found.whole
    assert set(found.parts) == {digest_of(data)}
    assert found.temporary == ("part/.abc.0123.tmp",)
    assert found.strays == ("blobs/README", "blobs/sha256/ab.bak", "packs/notes.txt", "packs/pipe")
    assert all((root / name).exists() for name in (*found.temporary, *found.strays))


def test_a_pipe_in_place_of_a_stored_file_is_not_waited_for(root: Path) -> None:
    path = blob(root, model(OLD))
    path.unlink()
    os.mkfifo(path)
    assert [bad.digest for bad in check(root).bad_blobs] == [digest_of(model(OLD))]


def test_needs_are_named_by_slot() -> None:
    entry = SlotState(slot(OLD.pack_id), previous=slot(NEW.pack_id))
    assert needs_of(DeviceState(slots={"a": entry, "b": SlotState(slot(OLD.pack_id))})) == {
        OLD.pack_id: ("serves slot a", "serves slot b"),
        NEW.pack_id: ("is the way back of slot a",),
    }
