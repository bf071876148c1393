"""The store of packs on an ordinary day, with a damaged file, and when room runs out."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.errors import DigestMismatch, NoSpace, PackError, StoreCorrupt, StoreError
from agent.store import packs
from agent.store.parts import FLUSH_BYTES
from tests.store.recorder import FailingFiles, QuickFiles
from tests.store.samples import (
    BLOCK_BYTES,
    NEW,
    OLD,
    PLENTY,
    SHARED,
    SamplePack,
    SizedFiles,
    deliver,
    digest_of,
    is_whole,
    receive,
    store_at,
)

CONTENT = bytes(range(256)) * 3 + b"end"
DIGEST = digest_of(CONTENT)


def block(index: int) -> bytes:
    return CONTENT[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]


# Receiving.


def test_a_pack_is_one_folder_of_read_only_files(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    folder = deliver(store, OLD)
    assert folder == store.directory(OLD.pack_id)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
        "manifest.json",
        "model.sig",
        "model.onnx",
        "data/labels.txt",
    }
    assert is_whole(store, OLD)
    assert all(p.stat().st_mode & 0o777 == 0o444 for p in folder.rglob("*") if p.is_file())
    assert store.packs() == [OLD.pack_id]
    assert store.manifest(OLD.pack_id) == OLD.manifest


def test_installing_again_changes_nothing(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    folder = deliver(store, OLD)
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    deliver(store_at(tmp_path), OLD)
    assert before == {path: path.stat().st_ino for path in folder.rglob("*")}


def test_a_file_that_two_packs_share_is_kept_and_fetched_once(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    deliver(store, OLD)
    assert store.missing(NEW.files) == ["model.onnx"]
    deliver(store, NEW)
    paths = [store.directory(pack.pack_id) / "data/labels.txt" for pack in (OLD, NEW)]
    assert paths[0].stat().st_ino == paths[1].stat().st_ino


@given(order=st.permutations(range(13)), cuts=st.sets(st.integers(0, 12)))
@settings(max_examples=30, deadline=None)
def test_blocks_arrive_in_any_order_over_any_restarts(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cuts: set[int]
) -> None:
    root = tmp_path_factory.mktemp("store")
    store = store_at(root)
    part = store.begin_part(DIGEST, len(CONTENT), BLOCK_BYTES)
    done: set[int] = set()
    for step, index in enumerate(order):
        if step in cuts:
            part.flush()
            part.close()
            part = store_at(root).begin_part(DIGEST, len(CONTENT), BLOCK_BYTES)
            assert set(part.missing_blocks()) == set(range(13)) - done
        part.write_block(index, block(index))
        part.write_block(index, block(index))
        done.add(index)
    assert part.complete
    part.finish()
    assert store_at(root).has_blob(DIGEST)
    assert not list((root / "part").iterdir())


def test_blocks_that_were_not_flushed_are_asked_for_again(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    with store.begin_part(DIGEST, len(CONTENT), BLOCK_BYTES) as part:
        part.write_block(0, block(0))
        part.flush()
        part.write_block(1, block(1))
    with store.begin_part(DIGEST, len(CONTENT), BLOCK_BYTES) as part:
        assert part.missing_blocks(limit=3) == [1, 2, 3]
        assert part.missing_blocks(start=11) == [11, 12]
        assert part.received_bytes == BLOCK_BYTES


def test_received_blocks_are_flushed_every_8_mib(tmp_path: Path) -> None:
    half = bytes(FLUSH_BYTES // 2)
    store = store_at(tmp_path, quota_bytes=1 << 30)
    with store.begin_part(DIGEST, 4 * len(half), len(half)) as part:
        for index in range(3):
            part.write_block(index, half)
    with store.begin_part(DIGEST, 4 * len(half), len(half)) as part:
        assert part.missing_blocks() == [2, 3]


@pytest.mark.parametrize("change", ["block size", "size", "map", "no part", "no map"])
def test_a_part_that_does_not_fit_its_map_starts_afresh(tmp_path: Path, change: str) -> None:
    with store_at(tmp_path).begin_part(DIGEST, len(CONTENT), BLOCK_BYTES) as part:
        part.write_block(0, block(0))
        part.flush()
    path = tmp_path / "part" / DIGEST.removeprefix("sha256:")
    size, block_size = len(CONTENT), BLOCK_BYTES
    if change == "block size":
        block_size += 1
    elif change == "size":
        size += 1
    elif change == "map":
        path.with_name(f"{path.name}.map").write_bytes(b"garbage")
    elif change == "no part":
        path.unlink()
    else:
        path.with_name(f"{path.name}.map").unlink()
    with store_at(tmp_path).begin_part(DIGEST, size, block_size) as part:
        assert len(part.missing_blocks()) == part.block_count
        assert path.stat().st_size == 0


def test_an_empty_file_needs_no_block(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    receive(store, b"")
    assert store.has_blob(digest_of(b""))


def test_wrong_bytes_are_dropped_and_the_file_can_be_fetched_again(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    with store.begin_part(DIGEST, len(CONTENT), BLOCK_BYTES) as part:
        for index in part.missing_blocks():
            part.write_block(index, block(index)[:-1] + b"!")
        with pytest.raises(DigestMismatch, match="the bytes received are sha256:"):
            part.finish()
    assert not store.has_blob(DIGEST)
    assert not list((tmp_path / "part").iterdir())
    receive(store, CONTENT)


def test_blocks_out_of_place_are_refused(tmp_path: Path) -> None:
    with store_at(tmp_path).begin_part(DIGEST, len(CONTENT), BLOCK_BYTES) as part:
        for index, data in ((13, b""), (-1, block(0)), (0, b""), (12, block(0)), (0, block(0) * 2)):
            with pytest.raises(PackError, match="block"):
                part.write_block(index, data)
        with pytest.raises(RuntimeError, match="before all its blocks"):
            part.finish()


@pytest.mark.parametrize(("size", "block_size"), [(-1, 64), (10, 0), (1 << 40, 1)])
def test_sizes_that_make_no_sense_are_refused(tmp_path: Path, size: int, block_size: int) -> None:
    with pytest.raises(PackError, match="cannot be received"):
        store_at(tmp_path).begin_part(DIGEST, size, block_size)


def test_one_file_is_received_only_once_at_a_time(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    part = store.begin_part(DIGEST, len(CONTENT), BLOCK_BYTES)
    with pytest.raises(RuntimeError, match="being received already"):
        store.begin_part(DIGEST, len(CONTENT), BLOCK_BYTES)
    part.close()
    receive(store, CONTENT)
    with pytest.raises(RuntimeError, match="here or being received"):
        store.begin_part(DIGEST, len(CONTENT), BLOCK_BYTES)


def test_a_closed_part_is_not_written_to(tmp_path: Path) -> None:
    part = store_at(tmp_path).begin_part(DIGEST, len(CONTENT), BLOCK_BYTES)
    part.close()
    part.close()
    with pytest.raises(RuntimeError, match="after it was closed"):
        part.write_block(0, block(0))


# Installing.


def test_a_manifest_that_is_not_the_one_named_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch):
        store_at(tmp_path).add_manifest(OLD.pack_id, NEW.manifest)
    with pytest.raises(PackError, match="at most 1 MiB"):
        store_at(tmp_path).add_manifest(OLD.pack_id, bytes((1 << 20) + 1))


def test_a_manifest_is_kept_while_its_files_are_fetched(tmp_path: Path) -> None:
    store_at(tmp_path).add_manifest(OLD.pack_id, OLD.manifest)
    store = store_at(tmp_path)
    assert store.manifest(OLD.pack_id) == OLD.manifest
    assert store.manifest(NEW.pack_id) is None
    assert not store.has(OLD.pack_id)


def test_a_signature_is_kept_with_its_pack_until_another_takes_its_place(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    assert store.signature(OLD.pack_id) is None
    deliver(store, OLD)
    assert store.signature(OLD.pack_id) == b"signed"
    store.install(OLD.pack_id, OLD.manifest, OLD.files, signature=b"signed again")
    assert store.signature(OLD.pack_id) == b"signed again"
    assert store.verify(OLD.pack_id) == ()
    with pytest.raises(PackError, match="signature of 1048577 bytes"):
        store.install(OLD.pack_id, OLD.manifest, OLD.files, signature=bytes((1 << 20) + 1))
    assert store.signature(OLD.pack_id) == b"signed again"


def test_a_pack_with_a_missing_file_is_not_installed(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    receive(store, SHARED)
    with pytest.raises(StoreCorrupt, match=r"'model.onnx' .* is missing"):
        store.install(OLD.pack_id, OLD.manifest, OLD.files)
    assert not store.has(OLD.pack_id)
    with pytest.raises(StoreCorrupt, match="not in the store"):
        store.directory(OLD.pack_id)


def test_a_size_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    receive(store, SHARED)
    with pytest.raises(PackError, match="the manifest says 1 bytes, it has"):
        store.install(OLD.pack_id, OLD.manifest, {"a": (digest_of(SHARED), 1)})


def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    receive(store, SHARED)
    with pytest.raises(PackError, match=r"'\.\.'"):
        store.install(OLD.pack_id, OLD.manifest, {"../a": (digest_of(SHARED), len(SHARED))})


def test_a_blob_altered_before_the_install_is_dropped(tmp_path: Path) -> None:
    receive(store_at(tmp_path), SHARED)
    alter(blob_path(tmp_path, SHARED))
    store = store_at(tmp_path)
    with pytest.raises(StoreCorrupt, match="was altered"):
        store.install(OLD.pack_id, OLD.manifest, {"a": (digest_of(SHARED), len(SHARED))})
    assert not store.has_blob(digest_of(SHARED))
    assert is_whole(store, OLD) is False
    deliver(store, OLD)
    assert is_whole(store, OLD)


# Damage.


def blob_path(root: Path, data: bytes) -> Path:
    digits = digest_of(data).removeprefix("sha256:")
    return root / "blobs" / "sha256" / digits[:2] / digits


def alter(path: Path) -> None:
    path.chmod(0o600)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    path.chmod(0o444)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("altered blob", "altered"),
        ("altered in place of the pack", "altered"),
        ("removed from the pack", "missing"),
        ("removed blob and place", "missing"),
    ],
)
def test_damage_is_named_and_repaired(tmp_path: Path, damage: str, reason: str) -> None:
    deliver(store_at(tmp_path), NEW)
    folder = deliver(store_at(tmp_path), OLD)
    model = OLD.contents["model.onnx"]
    blob, place = blob_path(tmp_path, model), folder / "model.onnx"
    if damage == "altered blob":
        alter(blob)
    elif damage == "altered in place of the pack":
        place.unlink()
        place.write_bytes(model[:-1] + b"!")
    else:
        place.unlink()
        if damage == "removed blob and place":
            blob.unlink()
    store = store_at(tmp_path)
    (bad,) = store.verify(OLD.pack_id)
    assert (bad.name, bad.digest, bad.reason) == ("model.onnx", digest_of(model), reason)
    assert store.repair(OLD.pack_id) == (bad,)
    assert store.has(OLD.pack_id)
    deliver(store, OLD)
    assert is_whole(store, OLD)
    assert is_whole(store, NEW)


def test_a_file_the_disk_cannot_read_is_bad(tmp_path: Path) -> None:
    class Unreadable(QuickFiles):
        def chunks(self, path: Path) -> Iterator[bytes]:
            if path.name == "labels.txt":
                raise StoreError(f"{path}: input/output error")
            return super().chunks(path)

    deliver(store_at(tmp_path), OLD)
    (bad,) = store_at(tmp_path, Unreadable()).verify(OLD.pack_id)
    assert (bad.name, bad.reason) == ("data/labels.txt", "unreadable")


def test_a_damaged_manifest_is_repaired_too(tmp_path: Path) -> None:
    folder = deliver(store_at(tmp_path), OLD)
    alter(folder / "manifest.json")
    store = store_at(tmp_path)
    assert store.manifest(OLD.pack_id) is None
    assert [bad.name for bad in store.repair(OLD.pack_id)] == ["manifest.json"]
    deliver(store, OLD)
    assert is_whole(store, OLD)


def test_a_damaged_list_of_files_asks_for_a_new_install(tmp_path: Path) -> None:
    folder = deliver(store_at(tmp_path), OLD)
    folder.with_name(f"{folder.name}.files").write_bytes(b"garbage")
    store = store_at(tmp_path)
    with pytest.raises(StoreCorrupt, match="missing or damaged"):
        store.verify(OLD.pack_id)
    deliver(store, OLD)
    assert is_whole(store, OLD)


def test_a_store_on_a_read_only_disk_still_serves_what_it_has(tmp_path: Path) -> None:
    deliver(store_at(tmp_path), OLD)

    class ReadOnly(QuickFiles):
        def before(self, op: str, path: Path) -> None:
            raise OSError(errno.EROFS, "read-only")

    store = store_at(tmp_path, ReadOnly())
    assert is_whole(store, OLD)
    store.mark_used(OLD.pack_id)
    with pytest.raises(StoreError, match="read-only"):
        deliver(store, NEW)


# Room.


def test_a_fetch_beyond_the_quota_is_refused_with_numbers(tmp_path: Path) -> None:
    store = store_at(tmp_path, SizedFiles(), quota_bytes=1000)
    deliver(store, OLD)
    used = store.usage().used_bytes
    store.reserve(1000 - used)
    with pytest.raises(NoSpace, match=rf"^999 B are.* {used - 1} B more.* {used} B of 1000 B"):
        store.reserve(999)
    with pytest.raises(NoSpace):
        store.begin_part(DIGEST, 999, BLOCK_BYTES)


@pytest.mark.parametrize(("total", "kept"), [(1 << 30, 64 << 20), (10_000 << 20, 500 << 20)])
def test_the_disk_is_never_filled_to_the_last_byte(tmp_path: Path, total: int, kept: int) -> None:
    files = SizedFiles(replace(PLENTY, total_bytes=total, free_bytes=kept + 1000))
    store = store_at(tmp_path, files, quota_bytes=1 << 40)
    store.reserve(1000)
    with pytest.raises(NoSpace, match=f"and {kept / 1e6:.2f} MB must stay free"):
        store.reserve(1001)


def test_what_others_are_still_to_receive_counts_as_taken(tmp_path: Path) -> None:
    store = store_at(tmp_path, SizedFiles(), quota_bytes=len(CONTENT) + 100)
    with store.begin_part(DIGEST, len(CONTENT), BLOCK_BYTES):
        store.reserve(100)
        with pytest.raises(NoSpace):
            store.reserve(101)
    store.reserve(101)


def packs_with_one_file_each(count: int) -> list[SamplePack]:
    return [SamplePack(b"m%d" % n, {"model.onnx": b"%d" % n * 500}) for n in range(count)]


def test_the_collector_removes_the_longest_unused_and_only_as_much_as_needed(
    tmp_path: Path,
) -> None:
    store = store_at(tmp_path, SizedFiles(), quota_bytes=2200)
    samples = packs_with_one_file_each(4)
    for sample in samples:
        deliver(store, sample)
    store.mark_used(samples[0].pack_id)
    assert store.collect([]).packs == ()
    ids = [sample.pack_id for sample in samples]
    assert store.packs() == [ids[1], ids[2], ids[3], ids[0]]
    collected = store.collect([ids[1]], needed_bytes=500)
    assert collected.packs == (ids[2],)
    assert collected.freed_bytes >= 500
    assert len(list((tmp_path / "packs").iterdir())) == 2 * 3
    assert [is_whole(store, sample) for sample in samples] == [True, True, False, True]


def test_the_collector_never_takes_a_root_or_what_is_being_fetched(tmp_path: Path) -> None:
    store = store_at(tmp_path, SizedFiles())
    deliver(store, OLD)
    deliver(store, NEW)
    receive(store, CONTENT)
    receive(store, b"nobody's")
    store.add_manifest(digest_of(b"next"), b"next")
    with store.begin_part(digest_of(b"coming"), 6, BLOCK_BYTES):
        roots = [OLD.pack_id, digest_of(b"next")]
        collected = store.collect(roots, keep=[DIGEST], needed_bytes=1 << 30)
        assert collected.packs == (NEW.pack_id,)
        assert is_whole(store, OLD)
        assert store.has_blob(DIGEST)
        assert store.manifest(digest_of(b"next")) == b"next"
        assert not store.has_blob(digest_of(b"nobody's"))
        assert (tmp_path / "part" / digest_of(b"coming").removeprefix("sha256:")).exists()


def test_the_collector_removes_parts_that_nobody_went_on_with(tmp_path: Path) -> None:
    store = store_at(tmp_path, SizedFiles())
    with store.begin_part(DIGEST, len(CONTENT), BLOCK_BYTES) as part:
        part.write_block(0, block(0))
        part.flush()
    path = tmp_path / "part" / DIGEST.removeprefix("sha256:")
    changed = path.stat().st_mtime
    store.collect([], now_s=changed - 10**8)  # a clock in the past makes nothing old
    store.collect([], now_s=changed + 6 * 24 * 3600)
    assert path.exists()
    store.collect([], now_s=changed + 8 * 24 * 3600, keep=[DIGEST])
    assert path.exists()
    store.collect([], now_s=changed + 8 * 24 * 3600)
    assert not list((tmp_path / "part").iterdir())


def test_the_collector_takes_unfinished_parts_last(tmp_path: Path) -> None:
    store = store_at(tmp_path, SizedFiles())
    deliver(store, OLD)
    with store.begin_part(DIGEST, len(CONTENT), BLOCK_BYTES) as part:
        part.write_block(0, block(0))
    store.collect([OLD.pack_id], needed_bytes=1 << 30)
    assert not list((tmp_path / "part").iterdir())
    assert is_whole(store, OLD)


def test_usage_counts_each_file_once(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for pack in (OLD, NEW):
        deliver(store, pack)
    different = {data for pack in (OLD, NEW) for data in (pack.manifest, *pack.contents.values())}
    usage = store.usage()
    assert usage.used_bytes == sum(map(len, different)) + len(b"signed")
    assert usage.packs == 2
    assert usage.quota_bytes > 0


# Failing disks.


@pytest.mark.parametrize("done", [False, True], ids=["undone", "done"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, 0])
def test_a_delivery_that_fails_at_any_call_keeps_the_old_pack_and_succeeds_next_time(
    tmp_path: Path, code: int, done: bool
) -> None:
    at, reached = 0, True
    while reached:
        at += 1
        root = tmp_path / str(at)
        deliver(store_at(root), OLD)
        files = FailingFiles(at, code, done=done)
        store = store_at(root, files)
        with suppress(StoreError):
            deliver(store, NEW)
        reached = files.count >= at
        assert is_whole(store, OLD)
        assert not store.has(NEW.pack_id) or is_whole(store_at(root), NEW)
        files.recover()
        deliver(store, NEW)
        fresh = store_at(root)
        fresh.sweep()
        assert is_whole(fresh, OLD)
        assert is_whole(fresh, NEW)
        assert not list((root / "part").iterdir())
        assert not list(root.rglob(".*.tmp"))
    assert at > 30


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_a_collection_that_fails_at_any_call_never_leaves_half_a_pack(
    tmp_path: Path, code: int
) -> None:
    for at in range(1, 25):
        root = tmp_path / str(at)
        store = store_at(root)
        deliver(store, OLD)
        deliver(store, NEW)
        with suppress(StoreError):
            store_at(root, FailingFiles(at, code)).collect([NEW.pack_id], needed_bytes=1 << 40)
        fresh = store_at(root)
        fresh.sweep()
        assert is_whole(fresh, NEW)
        assert not fresh.has(OLD.pack_id) or is_whole(fresh, OLD)
        fresh.collect([NEW.pack_id], needed_bytes=1 << 40)
        assert fresh.packs() == [NEW.pack_id]


def test_constants_are_those_of_the_limits_documented() -> None:
    assert packs.RESERVE_BYTES_MIN == 64 * 1024 * 1024
    assert packs.RESERVE_SHARE == 0.05


def test_what_an_earlier_attempt_has_left_of_a_file_is_known_before_it_goes_on(
    tmp_path: Path,
) -> None:
    store = store_at(tmp_path)
    size, last = len(CONTENT), -(-len(CONTENT) // BLOCK_BYTES) - 1

    def left() -> int:
        return store_at(tmp_path).received_bytes(DIGEST, size, BLOCK_BYTES)

    assert left() == 0
    with store.begin_part(DIGEST, size, BLOCK_BYTES) as part:
        part.write_block(0, block(0))
        part.flush()
        assert left() == BLOCK_BYTES
        part.write_block(last, block(last))
        part.flush()
        assert left() == BLOCK_BYTES + len(block(last)) == part.received_bytes
    assert store_at(tmp_path).received_bytes(DIGEST, size, BLOCK_BYTES * 2) == 0
    needed = store.still_needed({DIGEST: size, digest_of(b"x"): 1})
    assert needed <= size + 1


def test_what_is_on_its_way_for_others_is_named_in_a_refusal(tmp_path: Path) -> None:
    store = store_at(tmp_path, quota_bytes=1000)
    store.reserve(400, promised_bytes=500)
    with pytest.raises(NoSpace, match=r"700 B are on their way for others"):
        store.reserve(400, promised_bytes=700)
