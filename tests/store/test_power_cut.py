"""Every disk that a power cut may leave behind, recovered by the code that would recover it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.errors import StoreError
from agent.store.ballast import Ballast
from agent.store.files import Files, Operation, temporary_name
from agent.store.state import StateFile
from tests.store.recorder import Crash, DyingFiles, PowerCut, QuickFiles, RecordingFiles
from tests.store.samples import NEW, OLD, deliver, is_whole, receive, store_at

DOCUMENTS = (b"first" * 20, b"second" * 20, b"third" * 20)


def restored(recorder: RecordingFiles, root: Path, **options: int) -> Iterator[Crash]:
    """Each crash of a recording, with its disk laid out at `root`."""
    for crash in recorder.crashes(**options):
        crash.restore(root)
        yield crash


# Replacing a small file.


def record_replaces(
    files: Files, root: Path, replace: Callable[[Files, Path, bytes], None]
) -> None:
    assert isinstance(files, RecordingFiles)
    for document in DOCUMENTS:
        replace(files, root / "document", document)
        files.mark(document)


def bad_states(recorder: RecordingFiles, root: Path) -> tuple[int, int]:
    """How many crashes lose an acknowledged document or tear one, of how many."""
    bad = total = 0
    for crash in restored(recorder, root):
        total += 1
        found = QuickFiles().read(root / "document", 1000)
        allowed = [None, *DOCUMENTS][len(crash.marks) :]
        bad += found not in allowed
    return bad, total


def test_replace_survives_a_power_cut_at_any_point(tmp_path: Path) -> None:
    recorder = RecordingFiles(tmp_path / "live")
    record_replaces(recorder, tmp_path / "live", Files.replace)
    bad, total = bad_states(recorder, tmp_path / "crash")
    assert bad == 0
    assert total > 15


def replace_without_file_sync(files: Files, path: Path, data: bytes) -> None:
    temporary = temporary_name(path)
    file = files.create(temporary)
    files.write(file, data, 0)
    files.close(file)
    files.rename(temporary, path)
    files.sync_dir(path.parent)


def replace_without_folder_sync(files: Files, path: Path, data: bytes) -> None:
    temporary = temporary_name(path)
    files.write_new(temporary, data)
    files.rename(temporary, path)


def replace_with_early_unlink(files: Files, path: Path, data: bytes) -> None:
    files.unlink(path)
    files.sync_dir(path.parent)
    temporary = temporary_name(path)
    files.write_new(temporary, data)
    files.rename(temporary, path)
    files.sync_dir(path.parent)


@pytest.mark.parametrize(
    "wrong", [replace_without_file_sync, replace_without_folder_sync, replace_with_early_unlink]
)
def test_the_checker_finds_a_store_that_is_wrong(
    tmp_path: Path, wrong: Callable[[Files, Path, bytes], None]
) -> None:
    recorder = RecordingFiles(tmp_path / "live")
    record_replaces(recorder, tmp_path / "live", wrong)
    bad, _ = bad_states(recorder, tmp_path / "crash")
    assert bad > 0


def test_the_checker_follows_inodes_not_names(tmp_path: Path) -> None:
    """A temporary name that is used again must not mix two files."""
    recorder = RecordingFiles(tmp_path / "live")

    def replace_by_one_name(files: Files, path: Path, data: bytes) -> None:
        files.write_new(path.with_name("same.tmp"), data)
        files.rename(path.with_name("same.tmp"), path)
        files.sync_dir(path.parent)

    record_replaces(recorder, tmp_path / "live", replace_by_one_name)
    assert bad_states(recorder, tmp_path / "crash")[0] == 0


def test_what_was_appended_survives_a_power_cut(tmp_path: Path) -> None:
    recorder = RecordingFiles(tmp_path / "live")
    for document in DOCUMENTS:
        recorder.append(tmp_path / "live" / "log", document)
        recorder.mark(document)
    for crash in restored(recorder, tmp_path / "crash"):
        found = QuickFiles().read(tmp_path / "crash" / "log", 1000) or b""
        assert found.startswith(b"".join(DOCUMENTS[: len(crash.marks)]))


# State in two generations.


def test_state_survives_a_power_cut_and_is_never_corrupt(tmp_path: Path) -> None:
    recorder = RecordingFiles(tmp_path / "live")
    ballast = Ballast(recorder, tmp_path / "live" / "ballast", size=64)
    assert ballast.fill()
    state = StateFile(recorder, tmp_path / "live" / "state" / "control", ballast)
    for document in DOCUMENTS:
        state.save(document)
        recorder.mark(document)
    total = 0
    for crash in restored(recorder, tmp_path / "crash", combinations=300):
        total += 1
        path = tmp_path / "crash" / "state" / "control"
        loaded = StateFile(QuickFiles(), path).load()
        assert loaded.corrupt == ()
        assert loaded.document in [None, *DOCUMENTS][len(crash.marks) :]
        StateFile(QuickFiles(), path).save(b"next")
        assert StateFile(QuickFiles(), path).load().document == b"next"
    assert total > 20


# Packs.


def assert_sound(root: Path, files: Files | None = None) -> None:
    """What must hold of any disk: what is installed is whole, and a new delivery succeeds."""
    store = store_at(root, files)
    store.sweep()
    assert not list(root.rglob(".*.tmp"))
    assert all(path.with_suffix("").is_dir() for path in root.glob("packs/*.files"))
    for pack in (OLD, NEW):
        assert not store.has(pack.pack_id) or is_whole(store, pack)
    for pack in (OLD, NEW):
        deliver(store, pack)
        assert is_whole(store, pack)
    assert not list((root / "part").glob("*"))
    assert not list(root.rglob(".*.tmp"))
    assert len(list((root / "packs").glob("*"))) == 4


def test_a_delivery_survives_a_power_cut_at_any_point(tmp_path: Path) -> None:
    live = tmp_path / "live"
    deliver(store_at(live), OLD)
    recorder = RecordingFiles(live)
    store = store_at(live, recorder)
    deliver(store, NEW)
    recorder.mark(NEW.pack_id)
    total = 0
    for crash in restored(recorder, tmp_path / "crash", combinations=200):
        total += 1
        found = store_at(tmp_path / "crash")
        found.sweep()
        assert is_whole(found, OLD)
        if crash.marks:
            assert is_whole(found, NEW)
        assert_sound(tmp_path / "crash")
    assert total > 60


def test_blocks_that_were_flushed_survive_and_are_right(tmp_path: Path) -> None:
    data = bytes(range(256))
    recorder = RecordingFiles(tmp_path / "live")
    part = store_at(tmp_path / "live", recorder).begin_part(OLD.pack_id, 256, 32)
    for index in (0, 5, 3, 7, 1):
        part.write_block(index, data[index * 32 : index * 32 + 32])
        if index in (5, 7):
            part.flush()
            recorder.mark(index)
    part.close()
    for crash in restored(recorder, tmp_path / "crash", combinations=200):
        store = store_at(tmp_path / "crash")
        store.sweep()
        with store.begin_part(OLD.pack_id, 256, 32) as found:
            there = set(range(8)) - set(found.missing_blocks())
        assert there >= [set(), {0, 5}, {0, 5, 3, 7}][len(crash.marks)]
        bytes_there = (tmp_path / "crash" / "part" / OLD.pack_id[7:]).read_bytes()
        assert all(bytes_there[i * 32 : i * 32 + 32] == data[i * 32 : i * 32 + 32] for i in there)


def test_a_file_that_was_finished_is_not_fetched_again(tmp_path: Path) -> None:
    recorder = RecordingFiles(tmp_path / "live")
    store = store_at(tmp_path / "live", recorder)
    store.add_manifest(OLD.pack_id, OLD.manifest)
    recorder.mark("manifest")
    receive(store, OLD.contents["model.onnx"])
    recorder.mark("file")
    for crash in restored(recorder, tmp_path / "crash", combinations=200):
        found = store_at(tmp_path / "crash")
        found.sweep()
        assert not crash.marks or found.manifest(OLD.pack_id) == OLD.manifest
        assert len(crash.marks) < 2 or found.missing(OLD.files) == ["data/labels.txt"]
        assert_sound(tmp_path / "crash")


def test_a_collection_cut_short_leaves_whole_packs_and_roots(tmp_path: Path) -> None:
    live = tmp_path / "live"
    for pack in (OLD, NEW):
        deliver(store_at(live), pack)
    receive(store_at(live), b"of no pack")
    recorder = RecordingFiles(live)
    store_at(live, recorder).collect([NEW.pack_id], needed_bytes=1 << 40)
    total = 0
    for _ in restored(recorder, tmp_path / "crash", combinations=60):
        total += 1
        store = store_at(tmp_path / "crash")
        assert is_whole(store, NEW)
        assert_sound(tmp_path / "crash")
    assert total > 50


def test_a_repair_cut_short_keeps_the_pack_and_can_be_repeated(tmp_path: Path) -> None:
    live = tmp_path / "live"
    folder = deliver(store_at(live), OLD)
    place = folder / "model.onnx"
    place.chmod(0o600)
    place.write_bytes(b"damaged")
    recorder = RecordingFiles(live)
    store = store_at(live, recorder)
    store.repair(OLD.pack_id)
    deliver(store, OLD)
    recorder.mark("repaired")
    for crash in restored(recorder, tmp_path / "crash", combinations=200):
        found = store_at(tmp_path / "crash")
        found.sweep()
        assert found.has(OLD.pack_id)
        assert all(bad.name == "model.onnx" for bad in found.verify(OLD.pack_id))
        if crash.marks:
            assert is_whole(found, OLD)
        found.repair(OLD.pack_id)
        deliver(found, OLD)
        assert is_whole(found, OLD)


def test_recovery_itself_may_lose_power(tmp_path: Path) -> None:
    live, crashed, again = (tmp_path / name for name in ("live", "crash", "again"))
    deliver(store_at(live), OLD)
    recorder = RecordingFiles(live)
    deliver(store_at(live, recorder), NEW)
    for number, _ in enumerate(restored(recorder, crashed, combinations=6)):
        if number % 12:
            continue
        recovering = RecordingFiles(crashed)
        assert_sound(crashed, recovering)
        for _ in restored(recovering, again, combinations=3):
            assert is_whole(store_at(again), OLD)
            assert_sound(again)


# Killed, not cut: everything written so far is there, and nothing after it.


def test_a_delivery_killed_at_any_change_goes_on_where_it_was(tmp_path: Path) -> None:
    at, died = 0, True
    while died:
        at += 1
        root = tmp_path / str(at)
        deliver(store_at(root), OLD)
        died = False
        try:
            deliver(store_at(root, DyingFiles(at)), NEW)
        except PowerCut:
            died = True
        assert is_whole(store_at(root), OLD)
        assert_sound(root)
    assert at > 30


def test_the_recorder_itself_lets_errors_through_unlogged(tmp_path: Path) -> None:
    recorder = RecordingFiles(tmp_path)
    with suppress(StoreError):
        recorder.perform(Operation("rename", tmp_path / "absent", target=tmp_path / "b"))
    assert recorder.steps == []
