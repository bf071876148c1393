"""A pack over MQTT in numbered blocks: the device asks, whoever offers the pack answers.

Below the device's prefix:

    blocks/request   JSON `BlockRequest`, from the device
    blocks/data      one block, to the device: a 36-byte header, then the bytes
    blocks/refused   JSON `BlockRefused`: asking for this file again will not help

The header, little-endian: magic `EWB1` · the first 16 bytes of the file's SHA-256 · u32 index ·
u32 block size · u64 size of the whole file. `manifest.json` is asked for by the pack's id, which is
its digest; `model.sig`, whose digest nobody knows before, by one made of that id
(`signature_digest`). The size of both is learnt from the first block. The device sets the pace, so
a slow one is never flooded, and after any loss it asks again for exactly what is missing.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from agent.documents import codec
from agent.documents.blocks import MAX_BLOCK_BYTES as MAX_BLOCK_BYTES
from agent.documents.blocks import MAX_WINDOW as MAX_WINDOW
from agent.documents.blocks import BlockRefused as BlockRefused
from agent.documents.blocks import BlockRequest as BlockRequest
from agent.documents.manifest import PackFile
from agent.documents.pack_names import SIGNATURE
from agent.errors import DigestMismatch, DocumentError, PackError

REQUEST, DATA, REFUSED = "blocks/request", "blocks/data", "blocks/refused"
MANIFEST_FILE = "manifest.json"

# AWS IoT Core carries 128 KiB a message, Azure IoT Hub 256 KiB; half of the smaller leaves room
# for topic, properties and a base64 bridge.
BLOCK_BYTES = 64 * 1024
MAX_REQUEST_BYTES = 4096
_MAX_INDEX = 2**32 - 1

_HEADER = struct.Struct("<4s16sIIQ")
_MAGIC = b"EWB1"
HEADER_BYTES = _HEADER.size

# How many blocks may be on their way: a few at first, more with each one that comes.
WINDOW_FIRST, WINDOW_LAST = 2, 8
# How long to wait for news before asking again.
PATIENCE_FIRST_S, PATIENCE_LAST_S = 5.0, 60.0


class Block(NamedTuple):
    """One block. `key` is the beginning of the file's digest; `total` the size of the file."""

    key: bytes
    number: int
    block_size: int
    total: int
    data: bytes | memoryview


def key_of(digest: str) -> bytes:
    """The 16 bytes that stand for a digest (`sha256:` and 64 hex digits) in a block's header."""
    return bytes.fromhex(digest.removeprefix("sha256:")[:32])


def signature_digest(pack: str) -> str:
    """What `model.sig` of a pack is asked for by; it is no digest of its bytes."""
    return f"sha256:{hashlib.sha256(f'{SIGNATURE} of {pack}'.encode()).hexdigest()}"


def block_count(size: int, block_size: int) -> int:
    return -(-size // block_size)


def encode_block(block: Block) -> bytes:
    """Return one message for `blocks/data`."""
    header = _HEADER.pack(_MAGIC, block.key, block.number, block.block_size, block.total)
    return b"".join((header, block.data))


def decode_block(payload: bytes | memoryview) -> Block:
    """Take one message of `blocks/data` apart; the data stays a view of it.

    Raises:
        DocumentError: It is no block, or its length is not what its header says.
    """
    if len(payload) < HEADER_BYTES:
        raise DocumentError("block", f"at least {HEADER_BYTES} bytes", f"{len(payload)}")
    magic, key, index, block_size, total = _HEADER.unpack_from(payload)
    if magic != _MAGIC:
        raise DocumentError("block.magic", repr(_MAGIC), repr(magic))
    if not 1 <= block_size <= MAX_BLOCK_BYTES:
        raise DocumentError("block.block_size", f"1 to {MAX_BLOCK_BYTES}", str(block_size))
    data = memoryview(payload)[HEADER_BYTES:]
    expected = min(block_size, total - index * block_size)
    if len(data) != expected or not data:
        wanted = f"{expected} bytes at index {index} of a file of {total}"
        raise DocumentError("block.data", wanted, f"{len(data)} bytes")
    return Block(key, index, block_size, total, data)


def encode_request(request: BlockRequest) -> bytes:
    return codec.encode(request)


def decode_request(payload: bytes) -> BlockRequest:
    """Read a request.

    Raises:
        DocumentError: It does not fit, or asks for more than a window at a time.
    """
    name = "block request"
    request = codec.decode(payload, BlockRequest, name=name, max_bytes=MAX_REQUEST_BYTES).value
    count = sum(count for _, count in request.blocks)
    if count > MAX_WINDOW:
        raise DocumentError(f"{name}.blocks", f"at most {MAX_WINDOW} blocks", str(count))
    return request


def encode_refusal(refused: BlockRefused) -> bytes:
    return codec.encode(refused)


def decode_refusal(payload: bytes) -> BlockRefused:
    """Read a refusal.

    Raises:
        DocumentError: It does not fit.
    """
    kind = BlockRefused
    return codec.decode(payload, kind, name="block refusal", max_bytes=MAX_REQUEST_BYTES).value


class Transfer:
    """One file on its way to the device: what is missing, what is asked for, when to ask again.

    It knows no clock and sends nothing: times come in (monotonic seconds), requests go out. It
    keeps numbers only; the caller stores the bytes.
    """

    def __init__(
        self,
        *,
        pack: str,
        file: str,
        digest: str,
        size: int | None,
        max_bytes: int,
        now: float,
        missing: Iterable[int] | None = None,
        block_size: int = BLOCK_BYTES,
    ) -> None:
        """
        Args:
            size: The file's size, or None where the first block has to tell.
            max_bytes: A larger file is refused as soon as its size is known.
            missing: Indices of the blocks still to come; default: all.
        """
        self.pack, self.file, self.digest = pack, file, digest
        self.key = key_of(digest)
        self.size = size
        self.block_size = block_size
        self._max_bytes = max_bytes
        if size is not None:
            self._check_size(size)
        blocks = range(block_count(size, block_size)) if size is not None else range(1)
        self._waiting = deque(blocks if missing is None else sorted(missing))
        self._missing = set(self._waiting)
        # Index of a block that was asked for → when it was asked for first.
        self._asked: dict[int, float] = {}
        self._window = WINDOW_FIRST
        self._patience_s = PATIENCE_FIRST_S
        self._heard = now
        self._asked_last = now

    @property
    def complete(self) -> bool:
        return not self._missing

    def wake_at(self) -> float:
        """When to call `next_request` again if nothing comes before."""
        return max(self._heard, self._asked_last) + self._patience_s

    def silent_s(self, now: float) -> float:
        """How long no new block has come."""
        return now - self._heard

    def next_request(self, now: float) -> BlockRequest | None:
        """What to ask for now, or None where enough is on its way."""
        if self._asked and now >= self.wake_at():
            self._ask_again()
        room = self._window - len(self._asked)
        # Half a window at a time: one request then brings several blocks.
        if self._asked and room < max(1, self._window // 2):
            return None
        indices: list[int] = []
        while self._waiting and len(indices) < room:
            index = self._waiting.popleft()
            if index in self._missing:
                indices.append(index)
        if not indices:
            return None
        self._asked.update((index, now) for index in indices)
        self._asked_last = now
        ranges = _ranges(sorted(indices))
        return BlockRequest(1, self.pack, self.file, self.digest, self.block_size, ranges)

    def received(self, block: Block, now: float) -> bool:
        """Count a block. True where it is new, and the caller must store its bytes.

        Raises:
            PackError: The file is larger than it may be.
            DigestMismatch: Its size is not the one that the manifest promises.
        """
        if block.key != self.key or block.block_size != self.block_size:
            return False
        if self.size is None:
            self._learn(block.total)
        elif block.total != self.size:
            raise DigestMismatch(
                f"{self.file} of pack {self.pack} has {block.total} bytes at its source; "
                f"the manifest promises {self.size}",
                hint="pack it again, and deploy that",
            )
        if block.number not in self._missing:
            return False
        self._missing.discard(block.number)
        asked = self._asked.pop(block.number, self._asked_last)
        # A slow line must not be asked for everything twice: wait as long as blocks really take.
        self._patience_s = min(PATIENCE_LAST_S, max(PATIENCE_FIRST_S, 2 * (now - asked)))
        self._window = min(WINDOW_LAST, self._window + 1)
        self._heard = now
        return True

    def reconnected(self, now: float) -> None:
        """What was on its way is lost, and the silence so far was not the source's."""
        self._ask_again()
        self._patience_s = PATIENCE_FIRST_S
        self._heard = now

    def _ask_again(self) -> None:
        self._waiting.extendleft(sorted(self._asked, reverse=True))
        self._asked.clear()
        self._window = WINDOW_FIRST
        self._patience_s = min(PATIENCE_LAST_S, 2 * self._patience_s)

    def _learn(self, total: int) -> None:
        self._check_size(total)
        self.size = total
        later = range(1, block_count(total, self.block_size))
        self._waiting.extend(later)
        self._missing.update(later)

    def _check_size(self, size: int) -> None:
        if size > min(self._max_bytes, _MAX_INDEX * self.block_size):
            raise PackError(
                f"{self.file} of pack {self.pack} has {size} bytes; at most {self._max_bytes} fit"
            )


def _ranges(indices: list[int]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and sum(found[-1]) == index:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((index, 1))
    return tuple(found)


class BlockServer:
    """Whoever offers one pack: answers requests, reading each block only when it is asked for."""

    def __init__(
        self, pack: str, files: Mapping[str, PackFile], read: Callable[[str, int, int], bytes]
    ) -> None:
        """
        Args:
            pack: The pack's id.
            files: Every file that may be asked for, `manifest.json` among them.
            read: Called with a file's name, an offset and a length; returns those bytes.
        """
        self.pack = pack
        self._files = files
        self._read = read

    def answer(self, request: BlockRequest) -> Iterator[Block] | BlockRefused | None:
        """The blocks asked for, or a refusal, or None: another pack, for somebody else to give."""
        if request.pack != self.pack:
            return None
        offered = self._files.get(request.file)
        if offered is None or offered.digest != request.digest:
            message = f"pack {self.pack} has no file {request.file!r} with digest {request.digest}"
            return BlockRefused(1, request.digest, "unknown_file", message)
        last = block_count(offered.size, request.block_size) - 1
        if any(first + count - 1 > last for first, count in request.blocks):
            message = f"{request.file} of pack {self.pack} has {last + 1} blocks"
            return BlockRefused(1, request.digest, "unknown_block", message)
        return self._blocks(request, offered)

    def _blocks(self, request: BlockRequest, offered: PackFile) -> Iterator[Block]:
        key, size = key_of(request.digest), request.block_size
        for first, count in request.blocks:
            for index in range(first, first + count):
                offset = index * size
                length = min(size, offered.size - offset)
                data = self._read(request.file, offset, length)
                if len(data) != length:
                    raise PackError(
                        f"{request.file} of pack {self.pack} has become shorter while it was sent"
                    )
                yield Block(key, index, size, offered.size, data)
