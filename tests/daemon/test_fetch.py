"""Fetching packs over the link: shared, resumable, bounded, and honest about why not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from agent.daemon.fetch import Fetcher
from agent.documents.manifest import PackFile
from agent.documents.settings import Settings, Trust
from agent.errors import (
    DigestMismatch,
    DocumentError,
    FetchError,
    KeyUnknown,
    NoSpace,
    PackError,
    SourceRefused,
    Unsigned,
)
from agent.store.files import Files
from agent.store.packs import PackStore
from agent.wire import blocks
from agent.wire.blocks import Block, BlockRefused, BlockServer
from tests.daemon.packs import Pack, assert_installed, digest_of
from tests.trust.signers import KEY, OTHER_KEY, pem_of

PREFIX = "edgeward/press-7/"
QUOTA_BYTES = 1 << 30


class Line:
    """A link with somebody at its other end, who may lose, repeat, alter or refuse."""

    def __init__(self, *packs: Pack) -> None:
        self.servers = [pack.server() for pack in packs]
        self.requests: list[blocks.BlockRequest] = []
        self.filters: list[str] = []
        self.fetcher: Fetcher | None = None
        self.up = True
        self.loses: Callable[[Block], bool] = lambda block: False
        self.alters: Callable[[Block], Block] = lambda block: block
        self.after: Callable[[int], object] = lambda count: None

    def publish(self, topic: str, payload: bytes) -> None:
        assert topic == PREFIX + blocks.REQUEST
        request = blocks.decode_request(payload)
        self.requests.append(request)
        if self.up:
            for server in self.servers:
                self._answer(server.answer(request))
        self.after(len(self.requests))

    def _answer(self, answer: Iterator[Block] | BlockRefused | None) -> None:
        if isinstance(answer, BlockRefused):
            self.deliver(blocks.REFUSED, blocks.encode_refusal(answer))
            return
        for block in answer or ():
            if not self.loses(block):
                self.deliver(blocks.DATA, blocks.encode_block(self.alters(block)))

    def deliver(self, topic: str, payload: bytes) -> None:
        assert self.fetcher is not None
        asyncio.get_running_loop().call_soon(self.fetcher.on_message, PREFIX + topic, payload)

    def subscribe(self, filters: Iterable[tuple[str, int]]) -> None:
        self.filters += [topic for topic, _ in filters]

    def unsubscribe(self, filters: Iterable[str]) -> None:
        for topic in filters:
            self.filters.remove(topic)

    @property
    def asked_blocks(self) -> list[tuple[str, int]]:
        return [
            (request.file, number)
            for request in self.requests
            for first, count in request.blocks
            for number in range(first, first + count)
        ]


def fetcher_for(
    store: PackStore,
    line: Line,
    *,
    roots: Sequence[str] = (),
    silence_s: float = 30.0,
    trust: Trust | None = None,
) -> Fetcher:
    line.fetcher = Fetcher(
        store,
        Settings(device_id="press-7", trust=trust or Trust()),
        blocks=line,
        roots=lambda: roots,
        silence_s=silence_s,
    )
    return line.fetcher


@pytest.fixture
def store(tmp_path: Path) -> PackStore:
    return PackStore(Files(), tmp_path, QUOTA_BYTES)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, timeout=20))


BIG = random.Random(7).randbytes(blocks.BLOCK_BYTES * 20 + 1234)


def test_a_pack_comes_over_the_link_and_is_installed(store: PackStore) -> None:
    pack = Pack({"model.onnx": BIG, "data/labels.txt": b"a\nb\n", "empty": b""})
    line = Line(pack)
    seen: list[tuple[int, int]] = []

    async def story() -> None:
        await fetcher_for(store, line).fetch(pack.id, "mqtt:", lambda *now: seen.append(now))

    run(story())
    assert_installed(store, pack)
    total = len(BIG) + 4
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert line.filters == []


def test_a_lost_block_is_asked_for_again(store: PackStore) -> None:
    pack = Pack({"model.onnx": BIG})
    line = Line(pack)
    lost: list[int] = []

    def lose_each_once(block: Block) -> bool:
        if block.number % 5 == 3 and block.number not in lost:
            lost.append(block.number)
            return True
        return False

    line.loses = lose_each_once

    async def story() -> None:
        fetcher = fetcher_for(store, line)
        fetching = asyncio.ensure_future(fetcher.fetch(pack.id, "mqtt:"))
        while not fetching.done():
            # Stands for the seconds until the transfer asks by itself.
            await asyncio.wait((fetching,), timeout=0.05)
            fetcher.on_link(True)
        await fetching

    run(story())
    assert_installed(store, pack)
    assert lost


def test_two_slots_that_want_the_same_pack_fetch_it_once(store: PackStore) -> None:
    pack = Pack({"model.onnx": BIG})
    line = Line(pack)
    seen: list[tuple[str, int]] = []

    async def story() -> None:
        fetcher = fetcher_for(store, line)
        await asyncio.gather(
            fetcher.fetch(pack.id, "mqtt:", lambda done, total: seen.append(("one", done))),
            fetcher.fetch(pack.id, "mqtt:", lambda done, total: seen.append(("two", done))),
        )

    run(story())
    assert_installed(store, pack)
    assert len(line.asked_blocks) == len(set(line.asked_blocks))
    assert {("one", len(BIG)), ("two", len(BIG))} <= set(seen)


def test_a_slot_that_gives_up_does_not_take_the_pack_from_the_other(store: PackStore) -> None:
    pack = Pack({"model.onnx": BIG})
    line = Line(pack)

    async def story() -> None:
        fetcher = fetcher_for(store, line)
        one = asyncio.ensure_future(fetcher.fetch(pack.id, "mqtt:"))
        two = asyncio.ensure_future(fetcher.fetch(pack.id, "mqtt:"))
        line.after = lambda count: one.cancel() if count == 3 else None
        await two
        assert one.cancelled()

    run(story())
    assert_installed(store, pack)
    assert len(line.asked_blocks) == len(set(line.asked_blocks))


def test_packs_that_share_a_file_fetch_it_once(store: PackStore) -> None:
    first = Pack({"model.onnx": BIG, "a": b"a"})
    second = Pack({"model.onnx": BIG, "b": b"b"}, version="2")
    line = Line(first, second)

    async def story() -> None:
        fetcher = fetcher_for(store, line)
        await asyncio.gather(fetcher.fetch(first.id, "mqtt:"), fetcher.fetch(second.id, "mqtt:"))

    run(story())
    assert_installed(store, first)
    assert_installed(store, second)
    big = [block for block in line.asked_blocks if block[0] == "model.onnx"]
    assert len(big) == len(set(big))


def test_after_a_restart_only_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    pack = Pack({"model.onnx": BIG})
    cut = Line(pack)

    async def first_life() -> None:
        fetcher = fetcher_for(PackStore(Files(), tmp_path, QUOTA_BYTES), cut)
        fetching = asyncio.ensure_future(fetcher.fetch(pack.id, "mqtt:"))
        cut.after = lambda count: fetching.cancel() if count == 4 else None
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await fetcher.close()

    run(first_life())
    again = Line(pack)
    store = PackStore(Files(), tmp_path, QUOTA_BYTES)
    store.sweep()

    async def second_life() -> None:
        await fetcher_for(store, again).fetch(pack.id, "mqtt:")

    run(second_life())
    assert_installed(store, pack)
    assert blocks.MANIFEST_FILE not in {name for name, _ in again.asked_blocks}
    assert 0 < len(again.asked_blocks) < blocks.block_count(len(BIG), blocks.BLOCK_BYTES)


def test_a_pack_that_is_here_needs_no_source(store: PackStore) -> None:
    pack = Pack({"model.onnx": b"m"})

    async def story() -> None:
        await fetcher_for(store, Line(pack)).fetch(pack.id, "mqtt:")
        silent = Line()
        await fetcher_for(store, silent).fetch(pack.id, "mqtt:")
        await fetcher_for(store, silent).fetch(pack.id, "")
        assert silent.requests == []

    run(story())


def test_an_altered_file_is_fetched_again_and_put_in_place(store: PackStore) -> None:
    pack = Pack({"model.onnx": BIG, "labels": b"a"})

    async def story() -> None:
        await fetcher_for(store, Line(pack)).fetch(pack.id, "mqtt:")
        installed = store.directory(pack.id) / "model.onnx"
        installed.chmod(0o644)
        installed.write_bytes(b"altered")
        assert [bad.name for bad in store.repair(pack.id)] == ["model.onnx"]
        line = Line(pack)
        await fetcher_for(store, line).fetch(pack.id, "mqtt:")
        assert {name for name, _ in line.asked_blocks} == {"model.onnx"}

    run(story())
    assert_installed(store, pack)


def test_silence_is_a_failure_worth_a_retry_that_says_what_to_look_at(store: PackStore) -> None:
    async def story() -> None:
        with pytest.raises(FetchError) as caught:
            await fetcher_for(store, Line(), silence_s=0.05).fetch("sha256:" + "0" * 64, "mqtt:")
        assert str(caught.value) == (
            "no answer on edgeward/press-7/blocks/data for 0.05 s "
            "(is `edgeward deploy` still running?)"
        )
        assert caught.value.retryable

    run(story())


def test_a_source_that_stops_in_the_middle_keeps_what_came(store: PackStore) -> None:
    pack = Pack({"model.onnx": BIG})
    line = Line(pack)

    async def story() -> None:
        line.after = lambda count: setattr(line, "up", count < 4)
        with pytest.raises(FetchError):
            await fetcher_for(store, line, silence_s=0.05).fetch(pack.id, "mqtt:")
        before = set(line.asked_blocks)
        again = Line(pack)
        await fetcher_for(store, again).fetch(pack.id, "mqtt:")
        assert len(again.asked_blocks) < len(before | set(again.asked_blocks))

    run(story())
    assert_installed(store, pack)


def test_while_the_link_is_away_nobody_is_blamed(store: PackStore) -> None:
    pack = Pack({"model.onnx": b"m"})
    line = Line(pack)

    async def story() -> None:
        fetcher = fetcher_for(store, line, silence_s=0.05)
        fetcher.on_link(False)
        fetching = asyncio.ensure_future(fetcher.fetch(pack.id, "mqtt:"))
        done, _ = await asyncio.wait((fetching,), timeout=0.2)
        assert not done
        assert line.requests == []
        fetcher.on_link(True)
        await fetching

    run(story())
    assert_installed(store, pack)


def test_a_refusal_ends_the_fetch_at_once(store: PackStore) -> None:
    pack = Pack({"model.onnx": b"m"})
    line = Line(pack)
    content = {blocks.MANIFEST_FILE: PackFile(pack.id, len(pack.manifest))}
    line.servers = [
        BlockServer(pack.id, content, lambda name, at, size: pack.manifest[at : at + size])
    ]

    async def story() -> None:
        with pytest.raises(SourceRefused, match=r"no file 'model\.onnx'") as caught:
            await fetcher_for(store, line).fetch(pack.id, "mqtt:")
        assert not caught.value.retryable

    run(story())
    assert line.filters == []


def test_another_manifest_than_the_one_wanted_is_refused(store: PackStore) -> None:
    pack, other = Pack({"model.onnx": b"m"}), Pack({"model.onnx": b"n"})
    line = Line(pack)
    line.alters = lambda block: block._replace(
        total=len(other.manifest), data=other.manifest[: blocks.BLOCK_BYTES]
    )

    async def story() -> None:
        with pytest.raises(DigestMismatch, match="manifest that came for pack"):
            await fetcher_for(store, line).fetch(pack.id, "mqtt:")

    run(story())
    assert store.manifest(pack.id) is None


def test_altered_bytes_never_reach_the_store(store: PackStore) -> None:
    pack = Pack({"model.onnx": BIG})
    line = Line(pack)
    evil = bytes(blocks.BLOCK_BYTES)
    line.alters = lambda block: block._replace(data=evil) if block.number == 3 else block

    async def story() -> None:
        with pytest.raises(DigestMismatch):
            await fetcher_for(store, line).fetch(pack.id, "mqtt:")

    run(story())
    assert not store.has(pack.id)
    assert not store.has_blob(digest_of(BIG))


def test_a_part_that_proves_altered_is_begun_again_once(store: PackStore) -> None:
    pack = Pack({"model.onnx": BIG})
    with store.begin_part(digest_of(BIG), len(BIG), blocks.BLOCK_BYTES) as part:
        part.write_block(2, bytes(blocks.BLOCK_BYTES))
        part.flush()

    async def story() -> None:
        await fetcher_for(store, Line(pack)).fetch(pack.id, "mqtt:")

    run(story())
    assert_installed(store, pack)


@pytest.mark.parametrize("name", ["a/../../b", "manifest.json", "model.sig", "a//b"])
def test_a_name_that_leaves_the_pack_is_refused_before_anything_is_fetched(
    store: PackStore, name: str
) -> None:
    pack = Pack({"model.onnx": b"m", name: b"x"})
    line = Line(pack)

    async def story() -> None:
        with pytest.raises(PackError, match="file name"):
            await fetcher_for(store, line).fetch(pack.id, "mqtt:")

    run(story())
    assert {asked for asked, _ in line.asked_blocks} == {blocks.MANIFEST_FILE}


def test_a_manifest_that_is_none_is_refused(store: PackStore) -> None:
    pack = Pack({"model.onnx": b"m"})
    pack.manifest = b'{"schema":1,"name":"UPPER"}'
    pack.id = digest_of(pack.manifest)

    async def story() -> None:
        with pytest.raises(DocumentError, match="manifest of pack sha256"):
            await fetcher_for(store, Line(pack)).fetch(pack.id, "mqtt:")

    run(story())


def test_a_pack_without_a_source_must_be_here(store: PackStore) -> None:
    async def story() -> None:
        with pytest.raises(SourceRefused, match="is not on this device"):
            await fetcher_for(store, Line()).fetch("sha256:" + "0" * 64, "")

    run(story())


@pytest.mark.parametrize("source", ["awsstream:x", "ftp://h/p", "nonsense"])
def test_an_unknown_source_is_refused_with_those_that_are_known(
    store: PackStore, source: str
) -> None:
    async def story() -> None:
        with pytest.raises(SourceRefused, match=r"cannot fetch from .* knows mqtt:"):
            await fetcher_for(store, Line()).fetch("sha256:" + "0" * 64, source)

    run(story())


def test_room_is_made_by_removing_what_nobody_needs(tmp_path: Path) -> None:
    size = len(BIG)
    store = PackStore(Files(), tmp_path, int(2.5 * size))
    packs = [Pack({"model.onnx": bytes([i]) + BIG[1:]}) for i in range(3)]

    async def story() -> None:
        line = Line(*packs)
        fetcher = fetcher_for(store, line, roots=[packs[1].id])
        for pack in packs:
            await fetcher.fetch(pack.id, "mqtt:")

    run(story())
    assert store.packs() == [packs[1].id, packs[2].id]


def test_a_pack_that_cannot_fit_is_refused_before_its_files_are_fetched(tmp_path: Path) -> None:
    store = PackStore(Files(), tmp_path, len(BIG) // 2)
    pack = Pack({"model.onnx": BIG})
    line = Line(pack)

    async def story() -> None:
        with pytest.raises(NoSpace):
            await fetcher_for(store, line).fetch(pack.id, "mqtt:")

    run(story())
    assert {name for name, _ in line.asked_blocks} == {blocks.MANIFEST_FILE}


def test_what_is_on_its_way_for_one_slot_is_no_room_for_another(tmp_path: Path) -> None:
    # Each fits, both do not.
    store = PackStore(Files(), tmp_path, int(1.5 * len(BIG)))
    first, second = Pack({"model.onnx": BIG}), Pack({"model.onnx": bytes([1]) + BIG[1:]})
    line = Line(first, second)

    async def story() -> None:
        fetcher = fetcher_for(store, line, roots=[first.id, second.id])
        halfway = asyncio.Event()

        def progress(done: int, total: int) -> None:
            if done:
                line.up = False
                halfway.set()

        one = asyncio.ensure_future(fetcher.fetch(first.id, "mqtt:", progress))
        await halfway.wait()
        line.up = True
        with pytest.raises(NoSpace, match="are on their way for others"):
            await fetcher.fetch(second.id, "mqtt:")
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        # What nobody waits for any longer lets go of its room a moment later.
        await fetcher.close()
        await fetcher.fetch(second.id, "mqtt:")

    run(story())
    assert store.packs() == [second.id]


def test_progress_after_a_restart_begins_with_what_is_here(store: PackStore) -> None:
    pack = Pack({"model.onnx": BIG, "labels": b"a\n"})
    with store.begin_part(digest_of(BIG), len(BIG), blocks.BLOCK_BYTES) as part:
        for number in range(10):
            at = number * blocks.BLOCK_BYTES
            part.write_block(number, BIG[at : at + blocks.BLOCK_BYTES])
        part.flush()
    seen: list[tuple[int, int]] = []

    async def story() -> None:
        line = Line(pack)
        await fetcher_for(store, line).fetch(pack.id, "mqtt:", lambda *now: seen.append(now))

    run(story())
    total = len(BIG) + 2
    assert seen[0] == (10 * blocks.BLOCK_BYTES, total)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_slot_that_joins_a_fetch_is_told_at_once_how_far_it_is(store: PackStore) -> None:
    pack = Pack({"model.onnx": BIG})
    line = Line(pack)
    joined: list[tuple[int, int]] = []

    async def story() -> None:
        fetcher = fetcher_for(store, line)
        begun = asyncio.Event()

        def progress(done: int, total: int) -> None:
            if done and not begun.is_set():
                line.up = False
                begun.set()

        one = asyncio.ensure_future(fetcher.fetch(pack.id, "mqtt:", progress))
        await begun.wait()
        two = asyncio.ensure_future(
            fetcher.fetch(pack.id, "mqtt:", lambda *now: joined.append(now))
        )
        await asyncio.sleep(0)
        assert joined
        assert joined[0][0] > 0
        one.cancel()
        two.cancel()
        await asyncio.gather(one, two, return_exceptions=True)
        await fetcher.close()

    run(story())


def test_messages_that_nobody_asked_for_are_dropped(store: PackStore) -> None:
    pack = Pack({"model.onnx": BIG})
    line = Line(pack)

    async def story() -> None:
        fetcher = fetcher_for(store, line)
        noise = [
            (blocks.DATA, b""),
            (blocks.DATA, b"nonsense" * 10),
            (blocks.DATA, blocks.encode_block(Block(b"k" * 16, 0, 4, 4, b"abcd"))),
            (blocks.REFUSED, b"{"),
            (blocks.REFUSED, blocks.encode_refusal(BlockRefused(1, digest_of(b""), "c", "m"))),
            ("blocks/other", b""),
        ]

        def make_noise(count: int) -> None:
            for topic, payload in noise:
                line.deliver(topic, payload)

        make_noise(0)
        line.after = make_noise
        await fetcher.fetch(pack.id, "mqtt:")

    run(story())
    assert_installed(store, pack)


def trusting(tmp_path: Path, unsigned: Literal["allow", "refuse"]) -> Trust:
    (tmp_path / "release.pub").write_bytes(pem_of(KEY))
    return Trust(keys=(str(tmp_path / "release.pub"),), unsigned=unsigned)


def test_a_signature_comes_over_the_link_and_is_kept_with_the_pack(
    store: PackStore, tmp_path: Path
) -> None:
    pack = Pack({"model.onnx": BIG})
    pack.sign(KEY)
    line = Line(pack)

    async def story() -> None:
        fetcher = fetcher_for(store, line, trust=trusting(tmp_path, "refuse"))
        await fetcher.fetch(pack.id, "mqtt:")

    run(story())
    assert_installed(store, pack)
    assert store.signature(pack.id) == pack.signature
    assert list(dict.fromkeys(request.file for request in line.requests)) == [
        "manifest.json",
        "model.sig",
        "model.onnx",
    ]


def test_a_sender_that_knows_no_signatures_sends_an_unsigned_pack(
    store: PackStore, tmp_path: Path
) -> None:
    pack = Pack({"model.onnx": b"weights"})

    async def story() -> None:
        with pytest.raises(Unsigned):
            refuses = fetcher_for(store, Line(pack), trust=trusting(tmp_path, "refuse"))
            await refuses.fetch(pack.id, "mqtt:")
        assert store.manifest(pack.id) is None
        allows = fetcher_for(store, Line(pack), trust=trusting(tmp_path, "allow"))
        await allows.fetch(pack.id, "mqtt:")

    run(story())
    assert_installed(store, pack)
    assert store.signature(pack.id) is None


def test_a_pack_with_a_bad_signature_is_refused_before_anything_of_it_is_kept(
    store: PackStore, tmp_path: Path
) -> None:
    pack = Pack({"model.onnx": b"weights"})
    pack.sign(OTHER_KEY)
    line = Line(pack)

    async def story() -> None:
        fetcher = fetcher_for(store, line, trust=trusting(tmp_path, "refuse"))
        with pytest.raises(KeyUnknown):
            await fetcher.fetch(pack.id, "mqtt:")

    run(story())
    assert store.manifest(pack.id) is None
    assert "model.onnx" not in {request.file for request in line.requests}
