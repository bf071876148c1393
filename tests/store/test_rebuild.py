"""New files out of old ones: the right bytes or none, whatever is altered, cut or killed."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import DigestMismatch, FetchError, PackError, StoreCorrupt
from agent.store.files import Files
from agent.store.packs import PackStore
from agent.store.parts import Part
from agent.store.rebuild import Held, Patch, Rebuild
from agent.wire.chunks import Chunk, bytes_of, ranges_of
from agent.wire.delta import Shape, encode_block
from tests.store.recorder import DyingFiles, PowerCut, QuickFiles, RecordingFiles
from tests.store.samples import BLOCK_BYTES, digest_of, receive, store_at

RNG = random.Random(3)
CUTS = (100, 37, 250, 64, 129, 5, 300)
OLD = RNG.randbytes(sum(CUTS))
SHAPE = Shape(4, "zlib", 4096)


def cut(data: bytes, sizes: Sequence[int] = CUTS) -> list[Chunk]:
    chunks: list[Chunk] = []
    offset = 0
    while offset < len(data):
        size = min(sizes[len(chunks) % len(sizes)], len(data) - offset)
        piece = data[offset : offset + size]
        chunks.append(Chunk(offset, size, hashlib.sha256(piece).digest()))
        offset += size
    return chunks


def held_in(data: bytes, sizes: Sequence[int] = CUTS) -> dict[bytes, Held]:
    digest = digest_of(data)
    return {chunk.digest: Held(digest, chunk.offset) for chunk in cut(data, sizes)}


def changed(data: bytes, *numbers: int) -> bytes:
    """The same file with these of its chunks replaced."""
    made = bytearray(data)
    for number in numbers:
        chunk = cut(data)[number]
        made[chunk.offset : chunk.end] = RNG.randbytes(chunk.size)
    return bytes(made)


NEW = changed(OLD, 2, 5)


class Server:
    """Gives ranges of a file and remembers which; `bad` says what it gives instead."""

    def __init__(self, data: bytes, bad: Callable[[int, bytes], bytes] = lambda n, b: b) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []
        self._bad = bad

    def __call__(self, start: int, end: int) -> Iterator[bytes]:
        self.asked.append((start, end))
        answer = self._bad(len(self.asked), self.data[start:end])
        for at in range(0, len(answer), 50):
            yield answer[at : at + 50]


def begin(store: PackStore, data: bytes, block: int = BLOCK_BYTES) -> Part:
    return store.begin_part(digest_of(data), len(data), block)


def stored(store: PackStore, data: bytes) -> bool:
    return store.read_blob(digest_of(data), 0, len(data) + 1) == data


def encoded(new: bytes, old: bytes, shape: Shape = SHAPE) -> bytes:
    starts = range(0, len(new), shape.block)
    return b"".join(
        encode_block(new[at : at + shape.block], old[at : at + shape.block], shape) for at in starts
    )


def patch_of(old: bytes, delta: bytes, shape: Shape = SHAPE) -> Patch:
    return Patch(digest_of(old), digest_of(delta), len(delta), shape)


# By chunks.


def test_only_missing_chunks_are_fetched(tmp_path: Path) -> None:
    store, server = store_at(tmp_path), Server(NEW)
    receive(store, OLD)
    with begin(store, NEW) as part:
        rebuild = Rebuild(store, part)
        rebuild.from_chunks(cut(NEW), held_in(OLD), server)
        part.finish()
    assert stored(store, NEW)
    # Both lie near each other, so that one request brings them and what is between.
    first, last = cut(NEW)[2], cut(NEW)[5]
    assert server.asked == [(first.offset, last.end)]
    assert rebuild.fetched_bytes == last.end - first.offset
    assert rebuild.copied_bytes == len(NEW) - rebuild.fetched_bytes
    assert rebuild.altered == set()


@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.sets(st.integers(0, 60)),
    st.integers(16, 200),
    st.randoms(use_true_random=False),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_is_held_and_here_the_file_is_right(
    tmp_path: Path, kept: list[bool], here: set[int], block: int, rng: random.Random
) -> None:
    sizes = [rng.randint(1, 400) for _ in kept]
    pieces = [rng.randbytes(size) for size in sizes]
    new = b"".join(pieces)
    old = b"head" + b"".join(piece for piece, keep in zip(pieces, kept, strict=True) if keep)
    chunks, held, at = cut(new, sizes), {}, 4
    for chunk, keep in zip(chunks, kept, strict=True):
        if keep:
            held[chunk.digest] = Held(digest_of(old), at)
            at += chunk.size
    store, server = store_at(tmp_path / os.urandom(8).hex()), Server(new)
    receive(store, old)
    with begin(store, new, block) as part:
        for index in here & set(range(part.block_count)):
            part.write_block(index, new[index * block : (index + 1) * block])
        lacking = [c for c in chunks if part.lacks(c.offset, c.end) and c.digest not in held]
        rebuild = Rebuild(store, part)
        rebuild.from_chunks(chunks, held, server)
        assert rebuild.fetched_bytes == bytes_of(ranges_of(lacking))
        part.finish()
    assert stored(store, new)


def test_a_bad_chunk_is_fetched_again_alone(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    receive(store, OLD)
    server = Server(NEW, lambda count, answer: b"?" + answer[1:] if count < 4 else answer)
    with begin(store, NEW) as part:
        Rebuild(store, part).from_chunks(cut(NEW), held_in(OLD), server)
        part.finish()
    assert stored(store, NEW)
    assert len(server.asked) == 4


def test_a_chunk_that_stays_bad_is_given_up(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    receive(store, OLD)
    server = Server(NEW, lambda count, answer: b"?" + answer[1:])
    with begin(store, NEW) as part:
        with pytest.raises(DigestMismatch, match="4 times"):
            Rebuild(store, part).from_chunks(cut(NEW), held_in(OLD), server)
        # What precedes it is there and right: the whole file goes on from here.
        assert part.missing_blocks()[0] == cut(NEW)[2].offset // BLOCK_BYTES
    assert len(server.asked) == 4


def test_an_altered_old_file_costs_its_chunk_only(tmp_path: Path) -> None:
    store, server = store_at(tmp_path), Server(NEW)
    receive(store, OLD)
    damage(store, tmp_path, OLD, at=3)
    with begin(store, NEW) as part:
        rebuild = Rebuild(store, part)
        rebuild.from_chunks(cut(NEW), held_in(OLD), server)
        part.finish()
    assert stored(store, NEW)
    assert rebuild.altered == {digest_of(OLD)}
    first = cut(NEW)[0]
    assert server.asked[0] == (first.offset, first.end)


def test_a_source_that_stops_leaves_what_came(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    short = Server(NEW, lambda count, answer: answer[:-10])
    with begin(store, NEW) as part:
        with pytest.raises(FetchError, match="ended a range"):
            Rebuild(store, part).from_chunks(cut(NEW), {}, short)
        part.flush()
    server = Server(NEW)
    with begin(store, NEW) as part:
        Rebuild(store, part).from_chunks(cut(NEW), {}, server)
        part.finish()
    assert stored(store, NEW)
    # The bytes of the last whole chunks that fill no block of the part come once more.
    assert server.asked == [(cut(NEW)[4].offset, len(NEW))]


def test_a_source_that_says_too_much_is_not_listened_to(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    receive(store, OLD)
    server = Server(NEW, lambda count, answer: answer + b"and so on" * 1000)
    with begin(store, NEW) as part:
        Rebuild(store, part).from_chunks(cut(NEW), held_in(OLD), server)
        part.finish()
    assert stored(store, NEW)


def test_what_the_store_has_is_put_in_place_for_a_source_of_blocks(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    receive(store, OLD)
    with begin(store, NEW) as part:
        Rebuild(store, part).copy(cut(NEW), held_in(OLD))
        touched = {
            block
            for number in (2, 5)
            for chunk in [cut(NEW)[number]]
            for block in range(chunk.offset // BLOCK_BYTES, -(-chunk.end // BLOCK_BYTES))
        }
        assert set(part.missing_blocks()) == touched
        for index in touched:
            part.write_block(index, NEW[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
        part.finish()
    assert stored(store, NEW)


# By a delta.


@pytest.mark.parametrize("codec", ["zlib", "lzma"])
def test_a_delta_makes_the_new_file(tmp_path: Path, codec: str) -> None:
    store, shape = store_at(tmp_path), Shape(2, codec, 4096)
    old, new = OLD * 10, changed(OLD * 10, 3) + b"and more"
    delta = encoded(new, old, shape)
    receive(store, old)
    receive(store, delta)
    with begin(store, new) as part:
        Rebuild(store, part).from_delta(patch_of(old, delta, shape))
        part.finish()
    assert stored(store, new)
    store.drop_unused(digest_of(delta))
    assert not store.has_blob(digest_of(delta))


def test_a_delta_goes_on_where_it_was(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    old, new = OLD * 10, changed(OLD * 10, 3)
    delta = encoded(new, old)
    receive(store, old)
    receive(store, delta)
    with begin(store, new) as part:
        for index in range(65):  # one block of the delta, and one of the part
            part.write_block(index, new[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
        delta_of_the_rest = SpiedStore(tmp_path)
        Rebuild(delta_of_the_rest, part).from_delta(patch_of(old, delta))
        part.finish()
    assert stored(store, new)
    assert min(delta_of_the_rest.read[digest_of(old)]) == SHAPE.block


class SpiedStore(PackStore):
    """A store that remembers from where on its files were read."""

    def __init__(self, root: Path) -> None:
        super().__init__(QuickFiles(), root, 1 << 30)
        self.read: dict[str, list[int]] = {}

    def read_blob(self, digest: str, offset: int, size: int) -> bytes:
        self.read.setdefault(digest, []).append(offset)
        return super().read_blob(digest, offset, size)


def test_a_base_that_was_altered_is_not_used(tmp_path: Path) -> None:
    store, delta = store_at(tmp_path), encoded(NEW, OLD)
    receive(store, OLD)
    receive(store, delta)
    damage(store, tmp_path, OLD, at=3)
    with begin(store, NEW) as part:
        rebuild = Rebuild(store, part)
        with pytest.raises(StoreCorrupt, match=digest_of(OLD)):
            rebuild.from_delta(patch_of(OLD, delta))
        assert part.received_bytes == 0
        assert rebuild.altered == {digest_of(OLD)}


def test_a_base_that_is_gone_is_not_used(tmp_path: Path) -> None:
    store, delta = store_at(tmp_path), encoded(NEW, OLD)
    receive(store, delta)
    with begin(store, NEW) as part, pytest.raises(StoreCorrupt, match="missing"):
        Rebuild(store, part).from_delta(patch_of(OLD, delta))


def test_a_delta_of_another_base_never_becomes_the_file(tmp_path: Path) -> None:
    store, delta = store_at(tmp_path), encoded(NEW, OLD)
    other = changed(OLD, 1)
    receive(store, other)
    receive(store, delta)
    with begin(store, NEW) as part:
        Rebuild(store, part).from_delta(patch_of(other, delta))
        with pytest.raises(DigestMismatch):
            part.finish()
    assert not store.has_blob(digest_of(NEW))


@pytest.mark.parametrize("harm", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b""])
def test_a_delta_that_is_none_leaves_a_part_to_go_on_with(
    tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    store = store_at(tmp_path)
    old, new = OLD * 10, changed(OLD * 10, 3)
    delta = harm(encoded(new, old))
    receive(store, old)
    receive(store, delta)
    with begin(store, new) as part:
        with pytest.raises(PackError, match="delta"):
            Rebuild(store, part).from_delta(patch_of(old, delta))
        part.flush()
    receive(store, new)
    assert stored(store, new)


def test_a_file_that_a_pack_has_is_not_dropped(tmp_path: Path) -> None:
    from tests.store.samples import OLD as PACK
    from tests.store.samples import deliver

    store = store_at(tmp_path)
    deliver(store, PACK)
    digest, _ = PACK.files["model.onnx"]
    store.drop_unused(digest)
    assert store.has_blob(digest)


# Cut short.


def make_by_delta(store: PackStore, old: bytes, new: bytes) -> None:
    delta = encoded(new, old)
    receive(store, delta)
    if not store.has_blob(digest_of(new)):
        with begin(store, new) as part:
            Rebuild(store, part).from_delta(patch_of(old, delta))
            part.finish()
    store.drop_unused(digest_of(delta))


def make_by_chunks(store: PackStore, old: bytes, new: bytes) -> None:
    if not store.has_blob(digest_of(new)):
        with begin(store, new) as part:
            rebuild = Rebuild(store, part, tick=_every_other(part.flush))
            rebuild.from_chunks(cut(new), held_in(old), Server(new))
            part.finish()


def _every_other(call: Callable[[], object]) -> Callable[[], None]:
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count % 2:
            call()

    return tick


Make = Callable[[PackStore, bytes, bytes], None]
MAKES = [make_by_delta, make_by_chunks]


def base_store(root: Path, files: Files | None = None) -> PackStore:
    receive(store_at(root), OLD)
    return store_at(root, files)


@pytest.mark.parametrize("make", MAKES)
def test_a_power_cut_at_any_point_costs_neither_the_old_nor_the_new(
    tmp_path: Path, make: Make
) -> None:
    live = tmp_path / "live"
    base_store(live)
    recorder = RecordingFiles(live)
    make(store_at(live, recorder), OLD, NEW)
    recorder.mark("made")
    total = 0
    for crash in recorder.crashes(combinations=60):
        total += 1
        root = tmp_path / "crash"
        crash.restore(root)
        store = store_at(root)
        store.sweep()
        assert stored(store, OLD)
        assert not crash.marks or stored(store, NEW)
        make(store, OLD, NEW)
        assert stored(store, NEW)
        assert not list((root / "part").glob("*"))
    assert total > 50


@pytest.mark.parametrize("make", MAKES)
def test_a_kill_at_any_change_is_made_good_by_the_next_attempt(tmp_path: Path, make: Make) -> None:
    at, died = 0, True
    while died:
        at += 1
        root = tmp_path / str(at)
        store, died = base_store(root, DyingFiles(at)), False
        with suppress(PowerCut):
            try:
                make(store, OLD, NEW)
            except PowerCut:
                died = True
                raise
        store = store_at(root)
        store.sweep()
        make(store, OLD, NEW)
        assert stored(store, NEW)
        assert stored(store, OLD)
    assert at > 15


# In bounded memory.

_CHILD = """
import sys
from pathlib import Path
from agent.store.files import Files
from agent.store.packs import PackStore
from agent.store.rebuild import Patch, Rebuild
from agent.wire.delta import Shape

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

root, new, size, base, delta, delta_size, codec = sys.argv[1:]
store = PackStore(Files(), Path(root), 1 << 30)
with store.begin_part(new, int(size), 65536) as part:
    before = peak()
    shape = Shape(4, codec)
    Rebuild(store, part).from_delta(Patch(base, delta, int(delta_size), shape))
    part.finish()
    print(peak() - before)
"""


@pytest.mark.parametrize(("codec", "window_bytes"), [("zlib", 32 << 10), ("lzma", 1 << 20)])
def test_a_delta_takes_two_blocks_and_a_window_of_memory(
    tmp_path: Path, codec: str, window_bytes: int
) -> None:
    shape = Shape(4, codec)
    old = random.Random(5).randbytes(shape.block) * 16
    tuned = bytearray(old)
    tuned[::4] = random.Random(6).randbytes(len(old) // 4)
    new = bytes(tuned)
    delta = encoded(new, old, shape)
    store = store_at(tmp_path, quota_bytes=1 << 30)
    for data in (old, delta):
        with store.begin_part(digest_of(data), len(data), 1 << 20) as part:
            for index in range(part.block_count):
                part.write_block(index, data[index << 20 : (index + 1) << 20])
            part.finish()
    arguments = [digest_of(new), len(new), digest_of(old), digest_of(delta), len(delta), codec]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert stored(store, new)
    # Hashing reads 1 MiB at a time, and the allocator rounds.
    print("peak over start", done.stdout)
    assert int(done.stdout) < 2 * shape.block + window_bytes + (3 << 19)


def damage(store: PackStore, root: Path, data: bytes, at: int) -> None:
    digest_hex = digest_of(data).removeprefix("sha256:")
    path = root / "blobs" / "sha256" / digest_hex[:2] / digest_hex
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))
    path.chmod(0o444)
