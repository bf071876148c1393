"""Packs in numbered blocks over the link: `mqtt:` sources."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import takewhile

from agent.daemon.fetch_source import OnBytes, Wanted, in_thread
from agent.daemon.fetch_ways import Known, Named, apply, kept, look
from agent.documents.manifest import MAX_MANIFEST_BYTES, Delta, PackFile
from agent.documents.pack_names import SIGNATURE
from agent.errors import (
    DigestMismatch,
    DocumentError,
    FetchError,
    PackError,
    SourceRefused,
    StoreError,
)
from agent.links.api import Blocks
from agent.store.packs import PackStore
from agent.store.parts import Part
from agent.store.rebuild import Rebuild
from agent.trust.bundle import MAX_BUNDLE_BYTES
from agent.wire import blocks
from agent.wire.blocks import Block, Transfer

log = logging.getLogger(__name__)

Keep = Callable[[list[Block]], Awaitable[None]]

# A slow line fills a flush unit of the store in hours; a power cut must not cost that much.
FLUSH_EVERY_S = 10.0
# Between two looks whether the fetch was cancelled: 4 MiB of a file or so.
COPIED_CHUNKS = 64


class _Inbox:
    """Blocks that came for one transfer and were not looked at yet."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.refused: SourceRefused | None = None
        # Bounded although nobody should send what was not asked for; what is lost is asked again.
        self._blocks: deque[Block] = deque(maxlen=2 * blocks.MAX_WINDOW)
        self._news = asyncio.Event()

    def put(self, block: Block) -> None:
        self._blocks.append(block)
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    async def take(self, timeout_s: float | None) -> list[Block]:
        # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes with news.
        loop = asyncio.get_running_loop()
        timer = loop.call_later(timeout_s, self._news.set) if timeout_s is not None else None
        try:
            await self._news.wait()
        finally:
            if timer is not None:
                timer.cancel()
        self._news.clear()
        taken = list(self._blocks)
        self._blocks.clear()
        return taken


class BlockExchange:
    """The link's side of all transfers: asks, listens, and hands each block to its transfer."""

    def __init__(
        self,
        prefix: str,
        link: Blocks,
        *,
        now: Callable[[], float],
        silence_s: float,
    ) -> None:
        """
        Args:
            prefix: The device's topics, ending in a slash.
            link: What carries them.
            now: Monotonic seconds.
            silence_s: How long a source may say nothing before it counts as gone.
        """
        self._topics = {
            prefix + blocks.DATA: self._on_data,
            prefix + blocks.REFUSED: self._on_refused,
        }
        self._request_topic = prefix + blocks.REQUEST
        self._data_topic = prefix + blocks.DATA
        self._link = link
        self.now = now
        self._silence_s = silence_s
        self._inboxes: dict[bytes, _Inbox] = {}
        self._users = 0
        self._link_up = True

    def open(self) -> None:
        """Listen for blocks, until as many `close` calls."""
        self._users += 1
        if self._users == 1:
            self._link.subscribe([(topic, 1) for topic in self._topics])

    def close(self) -> None:
        self._users -= 1
        if self._users == 0:
            self._link.unsubscribe(list(self._topics))

    def on_message(self, topic: str, payload: bytes | memoryview) -> None:
        """Take a message below `blocks/`; one that is malformed or not asked for is dropped."""
        handle = self._topics.get(topic)
        if handle is None:
            return
        try:
            handle(bytes(payload))
        except DocumentError as error:
            log.debug("dropped a message on %s: %s", topic, error)

    def on_link(self, up: bool) -> None:
        """While the link is away no source is to blame for its silence."""
        self._link_up = up
        for inbox in self._inboxes.values():
            if up:
                inbox.transfer.reconnected(self.now())
            inbox.wake()

    async def receive(self, transfer: Transfer, keep: Keep) -> None:
        """Ask for the blocks of one file until all have come.

        Args:
            transfer: What is missing. At most one transfer of a digest at a time.
            keep: Stores blocks; the next ones are asked for when it has returned.

        Raises:
            FetchError: The source has been silent for too long.
            SourceRefused: It said no.
        """
        inbox = self._inboxes[transfer.key] = _Inbox(transfer)
        try:
            while not transfer.complete:
                timeout_s = self._ask(transfer) if self._link_up else None
                come = await inbox.take(timeout_s)
                if inbox.refused is not None:
                    raise inbox.refused
                new = [block for block in come if transfer.received(block, self.now())]
                if new:
                    await keep(new)
        finally:
            del self._inboxes[transfer.key]

    def _ask(self, transfer: Transfer) -> float:
        """Ask for what may be asked for now; returns after how many seconds to look again."""
        now = self.now()
        left_s = self._silence_s - transfer.silent_s(now)
        if left_s <= 0:
            raise FetchError(
                f"no answer on {self._data_topic} for {self._silence_s:g} s",
                hint="is `edgeward deploy` still running?",
            )
        request = transfer.next_request(now)
        if request is not None:
            self._link.publish(self._request_topic, blocks.encode_request(request))
        return max(0.0, min(left_s, transfer.wake_at() - now))

    def _on_data(self, payload: bytes) -> None:
        block = blocks.decode_block(payload)
        inbox = self._inboxes.get(block.key)
        if inbox is not None:
            inbox.put(block)

    def _on_refused(self, payload: bytes) -> None:
        refused = blocks.decode_refusal(payload)
        inbox = self._inboxes.get(blocks.key_of(refused.digest))
        if inbox is not None and inbox.transfer.digest == refused.digest:
            inbox.refused = SourceRefused(f"{refused.message} ({refused.code})")
            inbox.wake()


class BlockSource:
    """One pack over the link. See `agent.daemon.fetch_source.Source`."""

    def __init__(self, pack: str, store: PackStore, exchange: BlockExchange) -> None:
        self._pack = pack
        self._store = store
        self._exchange = exchange
        exchange.open()

    async def manifest(self) -> bytes:
        return await self._small(blocks.MANIFEST_FILE, self._pack, MAX_MANIFEST_BYTES)

    async def signature(self) -> bytes | None:
        digest = blocks.signature_digest(self._pack)
        try:
            return await self._small(SIGNATURE, digest, MAX_BUNDLE_BYTES)
        except SourceRefused as refused:
            log.info("pack %s comes without a signature: %s", self._pack, refused.message)
            return None  # also of a sender of before there were signatures

    async def _small(self, name: str, digest: str, max_bytes: int) -> bytes:
        transfer = Transfer(
            pack=self._pack,
            file=name,
            digest=digest,
            size=None,
            max_bytes=max_bytes,
            now=self._exchange.now(),
        )
        received: dict[int, bytes] = {}

        async def keep(new: list[Block]) -> None:
            received.update((block.number, bytes(block.data)) for block in new)

        await self._exchange.receive(transfer, keep)
        return b"".join(received[number] for number in sorted(received))

    async def file(self, wanted: Wanted, on_bytes: OnBytes) -> None:
        known = await in_thread(look, self._store, wanted.pack, wanted.name)
        if known is None or not await self._by_delta(known, wanted, on_bytes):
            await self._blocks(wanted, on_bytes, known)

    async def _by_delta(self, known: Known, wanted: Wanted, on_bytes: OnBytes) -> bool:
        """Whether a delta brought the file; where not, its missing blocks are what is left."""
        for delta, (name, made) in await in_thread(self._worth, known):

            def on_delta(here_bytes: int, size: int = made.size) -> None:
                on_bytes(here_bytes * wanted.size // size)

            try:
                if not self._store.has_blob(made.digest):
                    await self._blocks(Wanted(wanted.pack, name, made.digest, made.size), on_delta)
                await in_thread(self._apply, known, delta, made)
            except (PackError, StoreError, SourceRefused) as error:
                log.warning("%s of %s by a delta: %s", wanted.name, wanted.pack, error)
                continue
            return True
        return False

    def _worth(self, known: Known) -> list[tuple[Delta, Named]]:
        """The deltas that send less than the file's missing blocks, the smallest first."""
        with kept(self._begin(known.file.digest, known.file.size)) as part:
            ways = known.ways(part, whole_blocks=True)
        return [known.deltas[way.index] for way in takewhile(lambda w: w.kind == "delta", ways)]

    def _apply(self, known: Known, delta: Delta, made: PackFile) -> None:
        with kept(self._begin(known.file.digest, known.file.size)) as part:
            apply(self._store, part, delta, made)

    async def _blocks(self, wanted: Wanted, on_bytes: OnBytes, known: Known | None = None) -> None:
        resumed = await self._receive(wanted, on_bytes, known)
        if resumed is not None:
            log.warning("%s of %s: the part kept was not its beginning", wanted.name, wanted.pack)
            mismatch = await self._receive(wanted, on_bytes, None)
            if mismatch is not None:
                raise mismatch

    def _begin(self, digest: str, size: int) -> Part:
        return self._store.begin_part(digest, size, blocks.BLOCK_BYTES)

    async def close(self) -> None:
        self._exchange.close()

    async def _receive(
        self, wanted: Wanted, on_bytes: OnBytes, known: Known | None
    ) -> DigestMismatch | None:
        """Receive what is missing of a file.

        Returns:
            The mismatch, where bytes of an earlier attempt may be to blame; they are gone now.
        """
        part = await in_thread(self._begin, wanted.digest, wanted.size)
        try:
            if known is not None:
                await self._copy(part, known)
            resumed = part.received_bytes > 0
            await self._fill(part, wanted, on_bytes)
            await in_thread(part.finish)
        except DigestMismatch as mismatch:
            if not resumed:
                raise
            return mismatch
        finally:
            await in_thread(_flush_and_close, part)
        return None

    async def _copy(self, part: Part, known: Known) -> None:
        """Put in place what other files of the store have of this one."""
        rebuild = Rebuild(self._store, part)
        for first in range(0, len(known.chunks), COPIED_CHUNKS):
            await in_thread(rebuild.copy, known.chunks[first : first + COPIED_CHUNKS], known.held)

    async def _fill(self, part: Part, wanted: Wanted, on_bytes: OnBytes) -> None:
        flushed_at = self._exchange.now()

        def write(new: list[Block], flush: bool) -> None:
            for block in new:
                part.write_block(block.number, block.data)
            if flush:
                part.flush()

        async def keep(new: list[Block]) -> None:
            nonlocal flushed_at
            flush = self._exchange.now() - flushed_at >= FLUSH_EVERY_S
            await in_thread(write, new, flush)
            if flush:
                flushed_at = self._exchange.now()
            on_bytes(part.received_bytes)

        transfer = Transfer(
            pack=wanted.pack,
            file=wanted.name,
            digest=wanted.digest,
            size=wanted.size,
            max_bytes=wanted.size,
            missing=await in_thread(part.missing_blocks),
            now=self._exchange.now(),
        )
        await self._exchange.receive(transfer, keep)


def _flush_and_close(part: Part) -> None:
    # Whatever went wrong with the disk has been said already.
    with suppress(StoreError, RuntimeError):
        part.flush()
    with suppress(StoreError):
        part.close()
