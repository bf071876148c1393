"""A pack in numbered blocks: whatever the broker loses, the whole file arrives, once."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.documents.manifest import PackFile
from agent.errors import DigestMismatch, DocumentError, PackError
from agent.wire import blocks
from agent.wire.blocks import Block, BlockRefused, BlockRequest, BlockServer, Transfer

PACK = "sha256:" + "ab" * 32


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def server_of(**files: bytes) -> BlockServer:
    offered = {name: PackFile(digest_of(data), len(data)) for name, data in files.items()}
    return BlockServer(PACK, offered, lambda name, at, size: files[name][at : at + size])


def transfer_of(
    data: bytes,
    *,
    block_size: int = 4,
    size: int | None = None,
    missing: list[int] | None = None,
    max_bytes: int = 10**6,
) -> Transfer:
    return Transfer(
        pack=PACK,
        file="f",
        digest=digest_of(data),
        size=size,
        max_bytes=max_bytes,
        missing=missing,
        block_size=block_size,
        now=0.0,
    )


def blocks_for(server: BlockServer, request: BlockRequest) -> list[Block]:
    answer = server.answer(blocks.decode_request(blocks.encode_request(request)))
    assert isinstance(answer, Iterator)
    return [blocks.decode_block(blocks.encode_block(block)) for block in answer]


@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(1, 300),
    block_size=st.integers(1, 40),
    known=st.booleans(),
    loss=st.floats(0, 0.7),
    repeat=st.floats(0, 0.5),
    seed=st.integers(0, 2**32),
)
def test_any_loss_repetition_and_reordering_ends_with_the_whole_file(
    size: int, block_size: int, known: bool, loss: float, repeat: float, seed: int
) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(size)
    server = server_of(f=data)
    transfer = transfer_of(data, block_size=block_size, size=size if known else None)
    stored: dict[int, bytes] = {}
    flying: list[Block] = []
    now = 0.0
    for _ in range(10_000):
        if transfer.complete:
            break
        request = transfer.next_request(now)
        if request is not None and chance.random() >= loss:
            flying += blocks_for(server, request)
        chance.shuffle(flying)
        if not flying:
            now = max(now, transfer.wake_at())
            continue
        now += 0.01
        block = flying.pop()
        if chance.random() < repeat:
            flying.append(block)
        if chance.random() >= loss and transfer.received(block, now):
            assert block.number not in stored
            stored[block.number] = bytes(block.data)
    assert b"".join(stored[number] for number in sorted(stored)) == data


def test_a_transfer_that_goes_on_asks_only_for_what_is_missing() -> None:
    data = bytes(range(100))
    transfer = transfer_of(data, size=100, missing=[24, 3, 4])
    asked: list[tuple[int, int]] = []
    while not transfer.complete:
        request = transfer.next_request(0.0)
        assert request is not None
        asked += request.blocks
        for block in blocks_for(server_of(f=data), request):
            transfer.received(block, 0.0)
    assert asked == [(3, 2), (24, 1)]


def test_the_window_bounds_what_is_on_its_way_and_opens_with_what_comes() -> None:
    data = bytes(1000)
    server, transfer = server_of(f=data), transfer_of(data, size=1000)
    flying: list[Block] = []
    most = 0
    first = transfer.next_request(0.0)
    assert first is not None
    assert first.blocks == ((0, blocks.WINDOW_FIRST),)
    flying += blocks_for(server, first)
    while flying:
        most = max(most, len(flying))
        transfer.received(flying.pop(0), 0.0)
        request = transfer.next_request(0.0)
        flying += blocks_for(server, request) if request is not None else []
    assert transfer.complete
    assert most == blocks.WINDOW_LAST


def test_silence_is_answered_by_asking_again_less_often_each_time() -> None:
    transfer = transfer_of(bytes(100), size=100)
    first = transfer.next_request(0.0)
    waits = []
    now = 0.0
    for _ in range(6):
        assert transfer.next_request(transfer.wake_at() - 0.001) is None
        waits.append(transfer.wake_at() - now)
        now = transfer.wake_at()
        assert transfer.next_request(now) == first
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    assert transfer.silent_s(now) == now


def test_a_slow_line_is_not_asked_twice_for_the_same_block() -> None:
    data = bytes(4 * 6)
    transfer, server = transfer_of(data, size=24), server_of(f=data)
    now = 0.0
    requests = []
    while not transfer.complete:
        request = transfer.next_request(now)
        if request is not None:
            requests.append(request)
            waiting = blocks_for(server, request)
        # Each block takes 20 s, longer than the first patience.
        for block in waiting:
            now += 20.0
            transfer.received(block, now)
        waiting = []
    asked = [first + i for r in requests for first, count in r.blocks for i in range(count)]
    assert asked == sorted(set(asked))


def test_after_a_reconnect_what_was_on_its_way_is_asked_for_at_once() -> None:
    transfer = transfer_of(bytes(100), size=100)
    first = transfer.next_request(0.0)
    transfer.reconnected(4.0)
    assert transfer.silent_s(4.0) == 0.0
    assert transfer.next_request(4.0) == first


def test_an_empty_file_is_complete_without_asking() -> None:
    transfer = transfer_of(b"", size=0)
    assert transfer.complete
    assert transfer.next_request(0.0) is None


def test_blocks_of_another_file_or_another_block_size_are_left_alone() -> None:
    data = bytes(8)
    transfer = transfer_of(data, size=8)
    transfer.next_request(0.0)
    key = blocks.key_of(digest_of(data))
    assert not transfer.received(Block(b"x" * 16, 0, 4, 8, b"abcd"), 1.0)
    assert not transfer.received(Block(key, 0, 8, 8, data), 1.0)
    assert transfer.received(Block(key, 0, 4, 8, b"abcd"), 1.0)
    assert not transfer.received(Block(key, 0, 4, 8, b"abcd"), 1.0)


def test_a_source_with_another_size_than_the_manifest_is_named() -> None:
    data = bytes(8)
    transfer = transfer_of(data, size=8)
    with pytest.raises(DigestMismatch, match="9 bytes at its source; the manifest promises 8"):
        transfer.received(Block(blocks.key_of(digest_of(data)), 0, 4, 9, b"abcd"), 0.0)


def test_a_file_of_unknown_size_is_refused_as_soon_as_its_size_is_known() -> None:
    transfer = transfer_of(bytes(100), max_bytes=50)
    with pytest.raises(PackError, match="100 bytes; at most 50"):
        transfer.received(Block(transfer.key, 0, 4, 100, b"abcd"), 0.0)


def test_a_request_for_another_pack_is_left_to_somebody_else() -> None:
    request = BlockRequest(1, "sha256:" + "cd" * 32, "f", digest_of(b"x"), 4, ((0, 1),))
    assert server_of(f=b"x").answer(request) is None


@pytest.mark.parametrize(
    ("file", "digest", "ranges", "code"),
    [
        ("g", digest_of(b"x" * 8), ((0, 1),), "unknown_file"),
        ("f", digest_of(b"y"), ((0, 1),), "unknown_file"),
        ("f", digest_of(b"x" * 8), ((1, 2),), "unknown_block"),
        ("f", digest_of(b"x" * 8), ((2**62, 1),), "unknown_block"),
    ],
)
def test_what_a_pack_does_not_hold_is_refused_with_a_code(
    file: str, digest: str, ranges: tuple[tuple[int, int], ...], code: str
) -> None:
    answer = server_of(f=b"x" * 8).answer(BlockRequest(1, PACK, file, digest, 4, ranges))
    assert isinstance(answer, BlockRefused)
    assert answer.code == code
    assert blocks.decode_refusal(blocks.encode_refusal(answer)) == answer


def test_a_file_that_shrinks_while_it_is_sent_is_noticed() -> None:
    offered = {"f": PackFile(digest_of(bytes(8)), 8)}
    server = BlockServer(PACK, offered, lambda name, at, size: b"abc")
    answer = server.answer(BlockRequest(1, PACK, "f", digest_of(bytes(8)), 4, ((0, 1),)))
    assert isinstance(answer, Iterator)
    with pytest.raises(PackError, match="shorter"):
        list(answer)


@pytest.mark.parametrize(
    "ranges", [((0, 65),), ((0, 40), (50, 40)), ((0, 0),), ((-1, 1),), (), ((1,),)]
)
def test_a_request_is_bounded(ranges: tuple[tuple[int, int], ...]) -> None:
    request = BlockRequest(1, PACK, "f", PACK, 4, ranges)
    with pytest.raises(DocumentError, match="block request"):
        blocks.decode_request(blocks.encode_request(request))


def test_a_block_message_fits_every_cloud() -> None:
    block = Block(b"k" * 16, 0, blocks.MAX_BLOCK_BYTES, 10**9, bytes(blocks.MAX_BLOCK_BYTES))
    assert len(blocks.encode_block(block)) < 128 * 1024


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: b"EWB1" + tail))
def test_no_bytes_make_the_block_decoder_fail_otherwise(payload: bytes) -> None:
    try:
        block = blocks.decode_block(payload)
    except DocumentError:
        return
    assert blocks.encode_block(block) == payload


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_no_bytes_make_the_request_decoder_fail_otherwise(payload: bytes) -> None:
    with pytest.raises(DocumentError):
        blocks.decode_request(payload)
