"""What is kept of compiled models: whole, proven and bounded, or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import NoSpace, StoreError
from agent.store import compiled
from agent.store.compiled import CompiledStore
from agent.store.files import Files
from tests.store.recorder import DyingFiles, FailingFiles, PowerCut, QuickFiles, RecordingFiles

KEYS = [f"{number:064x}" for number in range(100)]
KEY, OTHER = KEYS[:2]
QUOTA = 1000


def store_at(root: Path, files: Files | None = None, quota: int = QUOTA) -> CompiledStore:
    return CompiledStore(files or QuickFiles(), root, quota)


def fill(folder: Path, size: int = 100, *names: str) -> None:
    """What a process does that compiles; it does not go through the layer."""
    for name in names or ("engine",):
        (folder / name).write_bytes(os.urandom(size))


def keep(store: CompiledStore, key: str, size: int = 100, roots: tuple[str, ...] = ()) -> Path:
    folder = store.begin(key)
    fill(folder, size)
    return store.keep(key, folder, store.close(folder), roots)


def left(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "compiled").iterdir())


def test_what_was_proven_is_found_whole_and_read_only(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    assert store.use(KEY) is None
    folder = keep(store, KEY)
    assert store.has(KEY)
    assert store.use(KEY) == folder == tmp_path / "compiled" / KEY
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o444]
    # While it was being filled nobody else could look.
    assert folder.stat().st_mode & 0o777 == 0o755
    assert store.used_bytes() == 100
    assert store_at(tmp_path).use(KEY) == folder


def test_what_is_not_proven_yet_is_not_found(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    folder = store.begin(KEY)
    fill(folder)
    store.close(folder)
    assert not store.has(KEY)
    assert store.use(KEY) is None
    assert store.keys() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "engine").write_bytes(bytes(100)),
        lambda folder: (folder / "engine").write_bytes(b""),
        lambda folder: (folder / "engine").unlink(),
        lambda folder: (folder / "more").write_bytes(b"x"),
        lambda folder: folder.with_name(f"{KEY}.sealed").write_bytes(b"junk"),
        lambda folder: folder.with_name(f"{KEY}.sealed").unlink(),
    ],
    ids=["altered", "cut short", "missing", "one too many", "seal altered", "seal missing"],
)
def test_a_damaged_one_is_dropped_as_if_it_had_never_been(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store = store_at(tmp_path)
    folder = keep(store, KEY)
    (folder / "engine").chmod(0o600)
    damage(folder)
    assert store.use(KEY) is None
    assert left(tmp_path) == []
    assert keep(store, KEY) == folder


@pytest.mark.parametrize(
    "odd",
    [
        lambda folder: (folder / "engine").symlink_to("/etc/passwd"),
        lambda folder: os.mkfifo(folder / "engine"),
        lambda folder: (folder / "engine").mkdir(),
        lambda folder: (folder / "engine").hardlink_to(folder.parent / "elsewhere"),
        lambda folder: fill(folder, 1, *(f"e{n}" for n in range(compiled.FILES_MAX + 1))),
        lambda folder: None,
        lambda folder: fill(folder, 1, "line\nbreak"),
    ],
    ids=["a link", "a pipe", "a folder", "a second name", "too many", "nothing", "a bad name"],
)
def test_only_a_few_plain_files_are_kept(tmp_path: Path, odd: Callable[[Path], object]) -> None:
    store = store_at(tmp_path)
    folder = store.begin(KEY)
    (folder.parent / "elsewhere").write_bytes(b"x")
    odd(folder)
    with pytest.raises(StoreError):
        store.close(folder)
    store.give_up(folder)
    assert left(tmp_path) == ["elsewhere"]


def test_what_changes_after_it_was_proven_is_not_kept(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    folder = store.begin(KEY)
    fill(folder)
    sealed = store.close(folder)
    (folder / "engine").chmod(0o600)
    fill(folder)
    with pytest.raises(StoreError, match="changed after it was proven"):
        store.keep(KEY, folder, sealed)
    assert left(tmp_path) == []


def test_what_was_no_good_is_remembered_with_its_reason(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    keep(store, KEY)
    store.refuse(KEY, "it answers 2, expected 4")
    store = store_at(tmp_path)
    store.sweep()
    assert store.refused(KEY) == "it answers 2, expected 4"
    assert store.use(KEY) is None
    assert store.refused(OTHER) == ""


def test_the_longest_unused_makes_room_but_never_one_in_use(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    first, second, third, fourth = KEYS[:4]
    for key in (first, second, third):
        keep(store, key, 300)
    assert store.use(first) is not None
    keep(store, fourth, 300, roots=(first,))
    assert store.keys() == [third, first, fourth]
    with pytest.raises(NoSpace, match="beside what is in use"):
        keep(store, second, 500, roots=(first, third, fourth))
    assert set(store.keys()) == {first, third, fourth}
    with pytest.raises(NoSpace, match=r"at most 1000 may be kept"):
        keep(store, second, 1001)
    assert store.room(roots=(first, third)) == 400


def test_there_are_never_more_than_so_many(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for key in KEYS[: compiled.ENTRIES_MAX + 5]:
        store.refuse(key, "no good") if int(key, 16) % 2 else keep(store, key, 1)
    assert len(store.keys()) <= compiled.ENTRIES_MAX
    assert store.keys()[-1] == KEYS[compiled.ENTRIES_MAX + 4]


def test_with_no_room_allowed_nothing_begins(tmp_path: Path) -> None:
    with pytest.raises(NoSpace, match="no room for what would be compiled"):
        store_at(tmp_path, quota=0).begin(KEY)


def test_what_fills_its_folder_with_oddities_counts_as_too_much(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    folder = store.begin(KEY)
    fill(folder, 10)
    assert store.size(folder) == 10
    (folder / "sub").mkdir()
    assert store.size(folder) > store.room()


def test_a_start_removes_what_was_being_compiled_when_the_last_one_ended(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    kept = keep(store, OTHER)
    fill(store.begin(KEY))
    store = store_at(tmp_path)
    store.sweep()
    assert left(tmp_path) == [OTHER, f"{OTHER}.sealed"]
    assert store.use(OTHER) == kept


def test_a_full_disk_keeps_what_there_was(tmp_path: Path) -> None:
    for at in range(60):
        root = tmp_path / str(at)
        keep(store_at(root), OTHER)
        files = FailingFiles(at, errno.ENOSPC)
        store = store_at(root, files)
        folder: Path | None = None
        with suppress(NoSpace):
            folder = store.begin(KEY)
            fill(folder)
            store.keep(KEY, folder, store.close(folder))
        files.recover()
        if folder is not None:
            store.give_up(folder)
        again = store_at(root)
        again.sweep()
        assert again.use(OTHER) is not None
        assert (again.use(KEY) is None) or again.has(KEY)
        assert not any(name.startswith(".") for name in left(root))


def test_an_end_at_any_point_leaves_all_or_nothing_of_it(tmp_path: Path) -> None:
    for at in range(60):
        root = tmp_path / str(at)
        keep(store_at(root), OTHER)
        with suppress(PowerCut):
            keep(store_at(root, DyingFiles(at)), KEY)
        again = store_at(root)
        again.sweep()
        assert again.use(OTHER) is not None
        found = again.use(KEY)
        assert found is None or len((found / "engine").read_bytes()) == 100
        assert not any(name.startswith(".") for name in left(root))


def crashes(tmp_path: Path) -> Iterator[Path]:
    live, root = tmp_path / "live", tmp_path / "crash"
    recorder = RecordingFiles(live)
    store = store_at(live, recorder)
    for key in (KEY, OTHER):
        folder = store.begin(key)
        # Through the layer, so that it is known which of it a power cut may take.
        recorder.write_new(folder / "engine", key.encode())
        store.keep(key, folder, store.close(folder))
    for crash in recorder.crashes(combinations=300):
        crash.restore(root)
        yield root


def test_whatever_a_power_cut_leaves_is_whole_or_not_used(tmp_path: Path) -> None:
    used = seen = 0
    for root in crashes(tmp_path):
        seen += 1
        store = store_at(root)
        store.sweep()
        for key in (KEY, OTHER):
            found = store.use(key)
            used += found is not None
            assert found is None or (found / "engine").read_bytes() == key.encode()
    assert used
    assert seen > 20


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["keep", "use", "refuse", "drop", "begin"]),
            st.sampled_from(KEYS[:5]),
            st.integers(1, 600),
        ),
        max_size=12,
    )
)
def test_they_never_take_more_than_they_may(steps: list[tuple[str, str, int]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        store = store_at(Path(place))
        for what, key, size in steps:
            with suppress(NoSpace):
                if what == "keep":
                    keep(store, key, size, roots=(KEYS[0],))
                elif what == "begin":
                    store.begin(key)
                elif what == "refuse":
                    store.refuse(key, "no")
                else:
                    getattr(store, what)(key)
            assert store.used_bytes() <= QUOTA
