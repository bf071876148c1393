"""Updates that come with less than all their bytes, and whole where that does not work."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.author.chunking import cut
from agent.documents.manifest import Delta, Manifest
from agent.store.files import Files
from agent.store.packs import PackStore
from agent.wire.blocks import BLOCK_BYTES
from agent.wire.chunks import encode_list
from agent.wire.delta import METHOD, Shape, encode_block
from tests.daemon.http_source import Answer, Asked, HttpSource, ranged
from tests.daemon.packs import Pack, assert_installed, digest_of
from tests.daemon.test_fetch import Line, fetcher_for, run
from tests.daemon.test_fetch_child import fetch, settings_for, store_of

SHAPE = Shape(4, "zlib")
MODEL = "model.onnx"
DELTA = "delta/old-new.xp"
OLD = np.random.default_rng(1).normal(0, 0.05, 400_000).astype(np.float32)
TUNED = (OLD * (1 + np.random.default_rng(2).normal(0, 4e-4, OLD.size))).astype(np.float32)
# The last layer retrained: the rest is as it was.
LAST = np.concatenate((OLD[:-1000], TUNED[:1000]))


class LeanPack(Pack):
    """A pack whose model is listed in chunks, with a delta from another file where one is given."""

    def __init__(
        self,
        model: bytes,
        version: str,
        *,
        base: bytes | None = None,
        listed: bool = True,
        delta: bytes | None = None,
    ) -> None:
        files = {MODEL: model, "labels.txt": b"a\nb\n"}
        if base is not None:
            files[DELTA] = delta_of(model, base) if delta is None else delta
        super().__init__(files, version)
        manifest = msgspec.json.decode(self.manifest, type=Manifest)
        file = manifest.files[MODEL]
        if listed:
            file = msgspec.structs.replace(file, chunks=encode_list(cut(model)))
        if base is not None:
            one = Delta(digest_of(base), METHOD, SHAPE.width, SHAPE.codec, SHAPE.block, DELTA)
            file = msgspec.structs.replace(file, deltas=(one,))
        manifest = msgspec.structs.replace(manifest, files={**manifest.files, MODEL: file})
        self.manifest = msgspec.json.encode(manifest)
        self.id = digest_of(self.manifest)

    @property
    def installed(self) -> Pack:
        """The pack as it must lie on the device: without its delta."""
        bare = Pack({name: data for name, data in self.files.items() if name != DELTA})
        bare.id = self.id
        return bare


def delta_of(new: bytes, old: bytes) -> bytes:
    starts = range(0, len(new), SHAPE.block)
    return b"".join(
        encode_block(new[at : at + SHAPE.block], old[at : at + SHAPE.block], SHAPE) for at in starts
    )


Alter = Callable[[Asked, Answer], Answer]


def serving(pack: Pack, alter: Alter = lambda asked, answer: answer) -> HttpSource:
    def play(asked: Asked) -> Answer:
        data = pack.content.get(asked.path.removeprefix("/"))
        return Answer(404) if data is None else alter(asked, ranged(data, asked, ETag='"v1"'))

    return HttpSource(play)


def updated(
    tmp_path: Path, old: LeanPack, new: LeanPack, alter: Alter = lambda asked, answer: answer
) -> tuple[PackStore, HttpSource]:
    """Bring both packs to a device; returns what the second one took."""
    settings = settings_for(tmp_path)
    with serving(old) as source:
        fetch(settings, old, source.url)
    with serving(new, alter) as source:
        seen = fetch(settings, new, source.url)
    store = store_of(settings)
    assert_installed(store, new.installed)
    assert not (store.directory(new.id) / DELTA).exists()
    if DELTA in new.files:
        assert not store.has_blob(digest_of(new.files[DELTA]))
    assert seen[-1][0] == seen[-1][1] == len(new.files[MODEL]) + 4
    return store, source


def paths(source: HttpSource) -> list[str]:
    return [asked.path.removeprefix("/") for asked in source.asked]


def test_a_retrained_last_layer_comes_as_its_chunks(tmp_path: Path) -> None:
    old, new = LeanPack(OLD.tobytes(), "1"), LeanPack(LAST.tobytes(), "2")
    _, source = updated(tmp_path, old, new)
    assert source.sent_bytes < 0.25 * len(new.files[MODEL])
    (asked,) = [asked for asked in source.asked if asked.path == f"/{MODEL}"]
    assert re.fullmatch(r"bytes=\d+-(\d+)?", asked.headers["Range"])


def test_a_fine_tuned_model_comes_as_a_delta(tmp_path: Path) -> None:
    old, new = LeanPack(OLD.tobytes(), "1"), LeanPack(TUNED.tobytes(), "2", base=OLD.tobytes())
    _, source = updated(tmp_path, old, new)
    assert paths(source) == ["manifest.json", DELTA]
    assert source.sent_bytes < 0.7 * len(new.files[MODEL])


def test_without_the_base_the_delta_is_left_alone(tmp_path: Path) -> None:
    new = LeanPack(TUNED.tobytes(), "2", base=OLD.tobytes())
    settings = settings_for(tmp_path)
    with serving(new) as source:
        fetch(settings, new, source.url)
    assert_installed(store_of(settings), new.installed)
    assert DELTA not in paths(source)


def test_an_old_pack_without_a_list_leaves_the_whole_file(tmp_path: Path) -> None:
    old, new = LeanPack(OLD.tobytes(), "1", listed=False), LeanPack(LAST.tobytes(), "2")
    _, source = updated(tmp_path, old, new)
    assert source.sent_bytes > len(new.files[MODEL])


def test_a_delta_that_is_not_served_costs_nothing(tmp_path: Path) -> None:
    old, new = LeanPack(OLD.tobytes(), "1"), LeanPack(TUNED.tobytes(), "2", base=OLD.tobytes())
    updated(tmp_path, old, new, lambda asked, a: Answer(403) if asked.path == f"/{DELTA}" else a)


@pytest.mark.parametrize(
    "delta",
    [
        delta_of(OLD.tobytes(), TUNED.tobytes())[:-100],
        delta_of(LAST.tobytes(), OLD.tobytes()),
        random.Random(1).randbytes(1000),
    ],
    ids=["truncated", "of another file", "none"],
)
def test_a_signed_delta_that_is_wrong_ends_in_the_whole_file(tmp_path: Path, delta: bytes) -> None:
    old = LeanPack(OLD.tobytes(), "1")
    new = LeanPack(TUNED.tobytes(), "2", base=OLD.tobytes(), delta=delta)
    _, source = updated(tmp_path, old, new)
    assert MODEL in paths(source)


def test_a_server_that_knows_no_ranges_sends_the_whole_file(tmp_path: Path) -> None:
    old, new = LeanPack(OLD.tobytes(), "1"), LeanPack(LAST.tobytes(), "2")

    def whole(asked: Asked, answer: Answer) -> Answer:
        return Answer(200, new.content[asked.path.removeprefix("/")])

    updated(tmp_path, old, new, whole)


def test_a_server_with_other_bytes_in_a_range_sends_the_whole_file(tmp_path: Path) -> None:
    old, new = LeanPack(OLD.tobytes(), "1"), LeanPack(LAST.tobytes(), "2")

    def lying(asked: Asked, answer: Answer) -> Answer:
        if answer.status == 206 and len(spoiled) < 4:
            spoiled.append(asked)
            answer.body = bytes(len(answer.body))
        return answer

    spoiled: list[Asked] = []
    updated(tmp_path, old, new, lying)
    assert len(spoiled) == 4


def test_an_altered_base_is_found_before_it_is_used(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    old, new = LeanPack(OLD.tobytes(), "1"), LeanPack(TUNED.tobytes(), "2", base=OLD.tobytes())
    with serving(old) as source:
        fetch(settings, old, source.url)
    place = store_of(settings).directory(old.id) / MODEL
    place.chmod(0o600)
    with place.open("r+b") as file:
        file.seek(1000)
        file.write(b"????")
    with serving(new) as source:
        fetch(settings, new, source.url)
    assert_installed(store_of(settings), new.installed)
    assert MODEL in paths(source)


def test_from_a_folder_the_file_itself_is_read(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, tmp_path / "usb")
    old, new = LeanPack(OLD.tobytes(), "1"), LeanPack(TUNED.tobytes(), "2", base=OLD.tobytes())
    for pack in (old, new):
        folder = pack.write(tmp_path / "usb" / pack.id[7:])
        if pack is new:
            (folder / DELTA).unlink()
        fetch(settings, pack, f"file://{folder}")
    assert_installed(store_of(settings), new.installed)


# Over the link, in blocks.


def over_the_link(tmp_path: Path, *packs: LeanPack) -> tuple[PackStore, Line]:
    """Bring packs to a device one after the other; returns the line of the last one."""
    store = PackStore(Files(), tmp_path, 1 << 30)
    for pack in packs:
        line = Line(pack)

        async def story(pack: LeanPack = pack, line: Line = line) -> None:
            await fetcher_for(store, line).fetch(pack.id, "mqtt:")

        run(story())
        assert_installed(store, pack.installed)
    return store, line


def test_over_the_link_only_the_blocks_of_missing_chunks_are_asked_for(tmp_path: Path) -> None:
    old, new = LeanPack(OLD.tobytes(), "1"), LeanPack(LAST.tobytes(), "2")
    _, line = over_the_link(tmp_path, old, new)
    asked = {number for file, number in line.asked_blocks if file == MODEL}
    changed = [one for one in cut(LAST.tobytes()) if one not in set(cut(OLD.tobytes()))]
    needed = {
        number
        for one in changed
        for number in range(one.offset // BLOCK_BYTES, -(-one.end // BLOCK_BYTES))
    }
    assert asked == needed
    assert len(needed) < 0.3 * len(new.files[MODEL]) / BLOCK_BYTES


def test_over_the_link_a_fine_tuned_model_comes_as_a_delta(tmp_path: Path) -> None:
    old, new = LeanPack(OLD.tobytes(), "1"), LeanPack(TUNED.tobytes(), "2", base=OLD.tobytes())
    store, line = over_the_link(tmp_path, old, new)
    assert {file for file, _ in line.asked_blocks} == {"manifest.json", DELTA}
    assert not store.has_blob(digest_of(new.files[DELTA]))


def test_over_the_link_a_wrong_delta_ends_in_the_whole_file(tmp_path: Path) -> None:
    old = LeanPack(OLD.tobytes(), "1")
    wrong = delta_of(LAST.tobytes(), OLD.tobytes())
    new = LeanPack(TUNED.tobytes(), "2", base=OLD.tobytes(), delta=wrong)
    _, line = over_the_link(tmp_path, old, new)
    blocks = {number for file, number in line.asked_blocks if file == MODEL}
    assert len(blocks) == -(-len(new.files[MODEL]) // BLOCK_BYTES)
