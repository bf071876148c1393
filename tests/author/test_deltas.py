"""Packs that are small on the wire: lists, and deltas that are worth it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from agent.author.deltas import Saving
from agent.author.folder import open_pack, verify
from agent.author.offer import open_pack as offer
from agent.author.pack import Packed, pack
from agent.documents import codec
from agent.documents.manifest import Manifest, delta_files
from agent.errors import DigestMismatch, UsageError
from agent.wire.chunks import decode_list
from agent.wire.delta import decoded, is_known, shape_of
from tests.author.models import FLOAT, model
from tests.author.test_commands import edgeward

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

SIZE = 700
FILE = "model.onnx"
Weights = npt.NDArray[np.float32]


def weights(seed: int = 1) -> Weights:
    return np.random.default_rng(seed).normal(0, 0.05, (SIZE, SIZE)).astype(np.float32)


def tuned() -> Weights:
    change = np.random.default_rng(2).normal(0, 4e-4, (SIZE, SIZE)).astype(np.float32)
    return weights() * (1 + change)


def written(folder: Path, values: Weights) -> Path:
    from onnx import numpy_helper

    folder.mkdir()
    shape: list[int | str] = ["batch", SIZE]
    weight = [numpy_helper.from_array(values, "w")]
    return model(
        folder / FILE,
        "MatMul",
        inputs={"x": (FLOAT, shape)},
        outputs={"y": (FLOAT, shape)},
        weights=weight,
    )


def unchecked(folder: Path, values: Weights, version: str, *bases: Path) -> Packed:
    """Pack without running the model, which says nothing about its size on the wire."""
    path = written(folder / "model", values)
    out = folder / "pack"
    return pack(path, out, name="pump", version=version, unchecked=True, delta_from=bases)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return unchecked(tmp_path_factory.mktemp("old"), weights(), "1")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory, old: Packed) -> Packed:
    return unchecked(tmp_path_factory.mktemp("new"), tuned(), "2", old.directory)


def test_a_large_model_is_listed_and_small_files_are_not(old: Packed) -> None:
    for name, file in old.manifest.files.items():
        assert (file.chunks is not None) == (name == FILE)
        assert sum(chunk.size for chunk in decode_list(file.chunks, file.size)) in (0, file.size)


def test_a_list_adds_little_to_a_pack(old: Packed) -> None:
    file = old.manifest.files[FILE]
    bare = msgspec.structs.replace(file, chunks=None)
    assert len(codec.encode(file)) - len(codec.encode(bare)) < 0.001 * file.size


def test_a_fine_tuned_model_gets_a_delta_that_makes_it(old: Packed, new: Packed) -> None:
    file, base = new.manifest.files[FILE], old.manifest.files[FILE]
    (delta,) = file.deltas
    assert delta.base == base.digest
    assert is_known(delta)
    packed = (new.directory / delta.file).read_bytes()
    before = (old.directory / FILE).read_bytes()
    blocks = decoded(
        lambda at, size: packed[at : at + size],
        len(packed),
        lambda at, size: before[at : at + size],
        file.size,
        shape_of(delta),
    )
    assert b"".join(block for _, block in blocks) == (new.directory / FILE).read_bytes()
    assert len(packed) < 0.8 * file.size


def test_the_delta_is_a_file_of_the_pack_that_nobody_installs(old: Packed, new: Packed) -> None:
    assert verify(open_pack(new.directory)) == []
    (name,) = delta_files(new.manifest)
    assert name in new.manifest.files
    opened = offer(new.directory)
    assert opened.total_bytes + new.manifest.files[name].size == sum(
        file.size for file in opened.files.values()
    )


def test_what_is_saved_is_said(new: Packed, old: Packed) -> None:
    (saving,) = new.savings
    assert (saving.file, saving.base, saving.version) == (FILE, old.pack, "1")
    assert saving.kept
    assert saving.wire_bytes == saving.delta_bytes < saving.whole_bytes
    # A fine-tune changes nearly every chunk.
    assert saving.chunks_bytes is not None
    assert saving.chunks_bytes > 0.9 * saving.whole_bytes


def test_a_delta_that_saves_little_is_left_out(tmp_path: Path, old: Packed) -> None:
    made = unchecked(tmp_path, weights(seed=9), "2", old.directory)
    assert delta_files(made.manifest) == frozenset()
    assert [saving.kept for saving in made.savings] == [False]
    assert not (tmp_path / "pack" / "delta").exists()


def test_chunks_that_do_as_well_leave_no_room_for_a_delta(tmp_path: Path, old: Packed) -> None:
    changed = weights()
    changed[-1] += 1
    made = unchecked(tmp_path, changed, "2", old.directory)
    (saving,) = made.savings
    assert not saving.kept
    assert saving.chunks_bytes is not None
    assert saving.wire_bytes == saving.chunks_bytes < 0.2 * saving.whole_bytes


def test_the_same_files_need_no_delta(tmp_path: Path, old: Packed) -> None:
    made = unchecked(tmp_path, weights(), "2", old.directory)
    assert made.savings == ()


def test_an_older_pack_without_lists_is_a_base_too(tmp_path: Path, old: Packed) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(old.directory, bare)
    files = {
        name: msgspec.structs.replace(file, chunks=None)
        for name, file in old.manifest.files.items()
    }
    manifest = msgspec.structs.replace(old.manifest, files=files)
    (bare / "manifest.json").write_bytes(codec.encode(manifest))
    made = unchecked(tmp_path, tuned(), "2", bare)
    assert [(one.kept, one.chunks_bytes) for one in made.savings] == [(True, None)]


def test_a_renamed_file_of_the_same_variant_is_a_base(tmp_path: Path, old: Packed) -> None:
    path = written(tmp_path / "model", tuned()).rename(tmp_path / "pump-2.onnx")
    made = pack(path, tmp_path / "pack", name="pump", delta_from=[old.directory])
    assert [(one.file, one.kept) for one in made.savings] == [("pump-2.onnx", True)]


def test_an_altered_older_pack_is_refused(tmp_path: Path, old: Packed) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(old.directory, altered)
    with (altered / FILE).open("r+b") as file:
        file.seek(1000)
        file.write(b"????")
    with pytest.raises(DigestMismatch, match=FILE):
        unchecked(tmp_path, tuned(), "2", altered)
    assert not (tmp_path / "pack").exists()


def test_the_same_packing_gives_the_same_pack(tmp_path: Path, old: Packed, new: Packed) -> None:
    again = unchecked(tmp_path, tuned(), "2", old.directory)
    assert again.pack == new.pack


def test_more_older_packs_than_allowed_are_refused(tmp_path: Path, old: Packed) -> None:
    with pytest.raises(UsageError, match="at most 8"):
        unchecked(tmp_path, tuned(), "2", *[old.directory] * 9)


def test_a_saving_counts_what_a_device_would_choose() -> None:
    mb = 1_000_000
    one = Saving("m", "p", "1", 9 * mb, None, 4 * mb, True)
    assert one.wire_bytes == 4 * mb
    assert msgspec.structs.replace(one, kept=False).wire_bytes == 9 * mb
    assert msgspec.structs.replace(one, chunks_bytes=mb).wire_bytes == mb


def test_pack_and_inspect_show_what_is_saved(tmp_path: Path, old: Packed) -> None:
    path = written(tmp_path / "model", tuned())
    done = edgeward("pack", path, "--out", tmp_path / "pack", "--delta-from", old.directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert "missing chunks" in done.stdout
    shown = edgeward("inspect", tmp_path / "pack")
    assert shown.returncode == 0
    assert f"delta: {FILE} from {old.manifest.files[FILE].digest[:19]}…" in shown.stdout
    found = json.loads(edgeward("inspect", tmp_path / "pack", "--json").stdout)
    manifest = msgspec.convert(found["manifest"], Manifest)
    assert len(manifest.files[FILE].deltas) == 1
