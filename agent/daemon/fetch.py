"""Packs into the store, whatever their source: manifest, names, room, files, install.

A pack wanted by two slots is fetched once; what has arrived of a file survives restarts.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from weakref import WeakValueDictionary

from agent.daemon.fetch_blocks import BlockExchange, BlockSource
from agent.daemon.fetch_child import ChildSource
from agent.daemon.fetch_source import Placed, Source, Wanted, in_thread
from agent.daemon.fetch_turns import Entry, Turns
from agent.daemon.vouching import Vouched, Vouching
from agent.documents import codec
from agent.documents.manifest import MAX_MANIFEST_BYTES, Manifest, delta_files
from agent.documents.settings import Settings, prefix_of
from agent.errors import (
    DigestMismatch,
    NoSpace,
    NotTrusted,
    PackInconsistent,
    SourceExpired,
    SourceRefused,
    StoreCorrupt,
)
from agent.links.api import Blocks
from agent.store.names import check_names
from agent.store.packs import PackStore
from agent.wire.blocks import BLOCK_BYTES

log = logging.getLogger(__name__)

# Told (bytes here, bytes of the whole pack) after each piece.
OnProgress = Callable[[int, int], None]
# Pack and manifest → names of files.
LeavesOut = Callable[[str, Manifest], Awaitable[Collection[str]]]
# Name of a file → its digest and size in bytes.
PackFiles = dict[str, tuple[str, int]]
# Pack, source and limit in KiB a second → the source, opened.
Opens = Callable[[str, str, int], Source]

SILENCE_S = 30.0


class _Fetch:
    """One running fetch and the callers that wait for it."""

    def __init__(self) -> None:
        self.listeners: list[OnProgress] = []
        self.files: PackFiles = {}
        self.manifest = b""
        self.signature: bytes | None = None
        # Digests of what only helps to make those files.
        self.deltas: frozenset[str] = frozenset()
        self.task: asyncio.Task[None] | None = None
        self.entry: Entry | None = None
        self.urgent = False
        # Of this fetch: what it has room for and has not received.
        self.promised_bytes = 0
        self.here: tuple[int, int] | None = None

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        self.here = done_bytes, total_bytes
        self.promised_bytes = min(self.promised_bytes, total_bytes - done_bytes)
        for listener in list(self.listeners):
            listener(done_bytes, total_bytes)

    def join(self, progress: OnProgress, *, urgent: bool) -> None:
        self.listeners.append(progress)
        self.urgent |= urgent
        if self.entry is not None:
            self.entry.urgent |= urgent
        if self.here is not None:
            progress(*self.here)


class Fetcher:
    """Brings packs into the store. One per daemon; call `close` at the end."""

    def __init__(
        self,
        store: PackStore,
        settings: Settings,
        *,
        blocks: Blocks | None,
        roots: Callable[[], Collection[str] | None],
        leaves_out: LeavesOut | None = None,
        now: Callable[[], float] = time.monotonic,
        silence_s: float = SILENCE_S,
        turns: Turns | None = None,
        vouching: Vouching | None = None,
    ) -> None:
        """
        Args:
            blocks: The way of blocks over the link; None where it has none.
            roots: Ids of the packs that must stay when room is made for another; None where
                nobody knows, so that all must stay.
            leaves_out: Says which files of a pack this device has no use for, before any of them is
                fetched; raises where it has use for none. None: it needs all.
            now: Monotonic seconds.
            silence_s: How long a source may say nothing before it counts as gone.
            turns: When which fetch may run; None: as the settings say.
            vouching: Says who vouches for a pack; None: as the settings say.
        """
        self._store = store
        self._roots = roots
        self.turns = turns or Turns(settings.fetch)
        self._leaves_out = leaves_out
        self._vouching = vouching or Vouching(settings.trust)
        self._exchange: BlockExchange | None = None
        if blocks is not None:
            prefix = prefix_of(settings)
            self._exchange = BlockExchange(prefix, blocks, now=now, silence_s=silence_s)

        def over_the_link(pack: str, source: str, kib_s: int) -> Source:
            if self._exchange is None:
                raise SourceRefused(
                    f"packs cannot come over a link of kind {settings.link.kind!r}",
                    hint="give the slot a `from` with `file:` or `https:`",
                )
            return BlockSource(pack, store, self._exchange)

        def child(pack: str, source: str, kib_s: int) -> Source:
            return ChildSource(pack, source, settings, max_kib_s=kib_s)

        self._sources: Mapping[str, Opens] = {
            "": lambda pack, source, kib_s: Placed(pack),
            "mqtt": over_the_link,
            "http": child,
            "https": child,
            "file": child,
        }
        self._running: dict[tuple[str, str], _Fetch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # By pack id and by digest of a file; an entry lives as long as somebody holds it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def digests(self) -> set[str]:
        """Files that a running fetch needs: to be kept when anybody makes room in the store."""
        files = [running.files for running in self._running.values()]
        packs = {pack for pack, _ in self._running}
        deltas = {digest for running in self._running.values() for digest in running.deltas}
        return packs | deltas | {digest for known in files for digest, _ in known.values()}

    def on_message(self, topic: str, payload: bytes | memoryview) -> None:
        """Take a message below the device's `blocks/`."""
        if self._exchange is not None:
            self._exchange.on_message(topic, payload)

    def on_link(self, up: bool) -> None:
        """The link came (back) or went; until first told, it counts as there."""
        if self._exchange is not None:
            self._exchange.on_link(up)

    async def fetch(
        self,
        pack: str,
        source: str,
        progress: OnProgress = lambda done, total: None,
        *,
        urgent: bool = False,
        opens: Opens | None = None,
    ) -> None:
        """Bring one pack into the store, or do nothing where it is there and whole.

        Callers of the same pack and source share one fetch; it is cancelled with its last caller.

        Args:
            pack: The pack's id.
            source: The slot's `from`; empty where the pack should be here already.
            progress: Called in the event loop, as often as something arrives.
            urgent: A slot waits for it that serves nothing: it goes before those that do.
            opens: Opens a source of another kind; `source` is then only its name.

        Raises:
            FetchError: The source cannot be reached, or is silent.
            FetchPostponed: The settings say: not now.
            SourceRefused: It says no, or this agent does not know such a source.
            NotTrusted: Nobody whom the settings name vouches for it.
            DigestMismatch, PackError, DocumentError: What it gives is not that pack.
            StoreError: The store cannot take it (`NoSpace`: for lack of room).
        """
        running = self._running.get((pack, source)) or self._start(pack, source, opens)
        assert running.task is not None
        running.join(progress, urgent=urgent)
        self.turns.look()
        try:
            await asyncio.shield(running.task)
        finally:
            running.listeners.remove(progress)
            if not running.listeners and not running.task.done():
                self._running.pop((pack, source), None)
                running.task.cancel()

    async def close(self) -> None:
        """Cancel what is running and wait until its files are closed."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start(self, pack: str, source: str, opens: Opens | None) -> _Fetch:
        running = self._running[pack, source] = _Fetch()
        running.task = asyncio.ensure_future(self._fetch(pack, source, opens, running))
        self._tasks.add(running.task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if self._running.get((pack, source)) is running:
                del self._running[pack, source]
            if not task.cancelled():
                task.exception()  # its callers may all be gone

        running.task.add_done_callback(ended)
        return running

    async def _fetch(self, pack: str, source: str, opens: Opens | None, running: _Fetch) -> None:
        if opens is None:
            opens = self._sources.get(scheme_of(source), _unknown(tuple(self._sources)))

        async def bring(kib_s: int) -> None:
            try:
                async with self._lock(pack):
                    await self._bring(pack, opens(pack, source, kib_s), running)
            finally:
                running.promised_bytes = 0

        # What is here already needs no turn, nor a window.
        scheme = "" if await self._is_here(pack) else scheme_of(source)
        with self.turns.entered(scheme) as running.entry:
            running.entry.urgent |= running.urgent
            await self.turns.run(running.entry, bring)

    async def _is_here(self, pack: str) -> bool:
        manifest = await in_thread(self._store.manifest, pack)
        if manifest is None or not await in_thread(self._store.has, pack):
            return False
        signature = await in_thread(self._store.signature, pack)
        try:
            await self._vouching.judge(pack, manifest, signature)
        except NotTrusted:
            return False  # the source may know a newer signature
        files, _ = await self._files_for(pack, manifest)
        return not await in_thread(self._store.missing, files)

    async def _bring(self, pack: str, opened: Source, running: _Fetch) -> None:
        try:
            vouched = await self._vouched(pack, opened, running)
            running.files, running.deltas = await self._files_for(pack, running.manifest)
            _check_signed(pack, vouched, running.files)
            await self._files(pack, opened, running)
            try:
                await self._install(pack, running)
            except StoreCorrupt as error:
                # The store has dropped what was altered; get it once more.
                log.warning("pack %s: %s; fetching it again", pack, error)
                await self._files(pack, opened, running)
                await self._install(pack, running)
        finally:
            await opened.close()

    async def _install(self, pack: str, running: _Fetch) -> None:
        await in_thread(
            self._store.install, pack, running.manifest, running.files, running.signature
        )

    async def _vouched(self, pack: str, source: Source, running: _Fetch) -> Vouched:
        """Have the manifest and its signature, and know who vouches for them, before anything of
        the pack is parsed or kept."""
        kept = await in_thread(self._store.manifest, pack)
        running.manifest = kept if kept is not None else await self._manifest(pack, source)
        if await in_thread(self._store.has, pack):
            running.signature = await in_thread(self._store.signature, pack)
            # Only where what is here does not do: the source may be away, or know a newer one.
            with suppress(NotTrusted):
                return await self._vouching.judge(pack, running.manifest, running.signature)
        if self._vouching.wants_signatures:
            came = await self._signature(source, has_answered=kept is None)
            running.signature = running.signature if came is None else came
        vouched = await self._vouching.judge(pack, running.manifest, running.signature)
        if kept is None:
            await in_thread(self._store.add_manifest, pack, running.manifest)
        return vouched

    async def _signature(self, source: Source, *, has_answered: bool) -> bytes | None:
        try:
            return await source.signature()
        except SourceExpired as error:
            # An object store says so of a missing file too, where nobody may list its files.
            if not has_answered:
                raise
            log.info("the pack comes without a signature: %s", error)
            return None

    async def _files_for(self, pack: str, data: bytes) -> tuple[PackFiles, frozenset[str]]:
        """The files that this device needs of a pack, and the digests of its deltas.

        Raises:
            ModelRejected: No variant of it can run here, whatever its files hold.
        """
        manifest = manifest_of(pack, data)
        out = await self._leaves_out(pack, manifest) if self._leaves_out is not None else ()
        deltas = delta_files(manifest)
        files = {
            name: (file.digest, file.size)
            for name, file in manifest.files.items()
            # What is here already may be what another slot runs.
            if name not in deltas and (name not in out or self._store.has_blob(file.digest))
        }
        return files, frozenset(
            manifest.files[name].digest for name in deltas & set(manifest.files)
        )

    async def _manifest(self, pack: str, source: Source) -> bytes:
        manifest = await source.manifest()
        got = hashlib.sha256(manifest).hexdigest()
        if f"sha256:{got}" != pack:
            raise DigestMismatch(
                f"the manifest that came for pack {pack} has the digest sha256:{got}",
                hint="the source offers another pack, or an altered one",
            )
        return manifest

    async def _files(self, pack: str, source: Source, running: _Fetch) -> None:
        sizes = dict(running.files.values())
        missing = await in_thread(self._store.missing, running.files)
        # Files with the same content are one file.
        wanted = {running.files[name][0]: name for name in missing}
        here = {digest: self._received(digest, sizes[digest]) for digest in wanted}
        total = sum(sizes.values())
        done = total - sum(sizes[digest] for digest in wanted)
        running.progress(done + sum(here.values()), total)
        if wanted:
            needed = self._store.still_needed({digest: sizes[digest] for digest in wanted})
            await self._make_room(needed, running)
            running.promised_bytes = needed
        for digest, name in wanted.items():
            one = Wanted(pack, name, digest, sizes[digest])
            ahead = done + sum(here.values()) - here.pop(digest)
            await self._file(
                one, source, running, partial(_shifted, running.progress, ahead, total)
            )
            done += one.size
            running.progress(done + sum(here.values()), total)

    def _received(self, digest: str, size: int) -> int:
        return self._store.received_bytes(digest, size, BLOCK_BYTES)

    async def _file(
        self, wanted: Wanted, source: Source, running: _Fetch, on_bytes: Callable[[int], None]
    ) -> None:
        async with self._lock(wanted.digest):
            if self._store.has_blob(wanted.digest):
                return  # another pack with the same file was faster
            try:
                await source.file(wanted, on_bytes)
            except NoSpace:
                needed = self._store.still_needed({wanted.digest: wanted.size})
                await self._make_room(needed, running)
                await source.file(wanted, on_bytes)

    async def _make_room(self, needed_bytes: int, asking: _Fetch) -> None:
        """Remove what nobody needs, if that is what it takes; what is on its way keeps its room.

        Raises:
            NoSpace: What is needed does not fit even so.
        """
        others = [running for running in self._running.values() if running is not asking]
        promised = sum(running.promised_bytes for running in others)
        try:
            await in_thread(self._store.reserve, needed_bytes, promised_bytes=promised)
        except NoSpace:
            roots = self._roots()
            if roots is None:
                raise
            gone = await in_thread(
                self._store.collect,
                roots,
                keep=self.digests,
                needed_bytes=needed_bytes,
                promised_bytes=promised,
            )
            log.info("made room: %d packs, %d bytes", len(gone.packs), gone.freed_bytes)
            await in_thread(self._store.reserve, needed_bytes, promised_bytes=promised)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


def _shifted(progress: OnProgress, before: int, total: int, here: int) -> None:
    progress(before + here, total)


def scheme_of(source: str) -> str:
    return source.partition(":")[0].lower()


def _unknown(known: Collection[str]) -> Opens:
    def opens(pack: str, source: str, kib_s: int) -> Source:
        listed = ", ".join(f"{name}:" for name in known if name)
        raise SourceRefused(
            f"this agent cannot fetch from {scheme_of(source)[:20]!r} sources",
            hint=f"it knows {listed} and packs that are placed beforehand",
        )

    return opens


def _check_signed(pack: str, vouched: Vouched, files: PackFiles) -> None:
    """See that each file to be fetched is one that was signed, by the very same digest."""
    if vouched.files is None:
        return
    for name, (digest, _) in files.items():
        if vouched.files.get(name) != digest:
            raise PackInconsistent(f"{name!r} of pack {pack} is not what was signed")


def manifest_of(pack: str, manifest: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        DocumentError: It is no manifest.
        PackError: A name could leave the pack's folder or collide with another.
    """
    name = f"manifest of pack {pack}"
    decoded = codec.decode(manifest, Manifest, name=name, max_bytes=MAX_MANIFEST_BYTES)
    check_names(decoded.value.files)
    return decoded.value
