"""Packs into the store, whatever their source: manifest, names, room, files, install.

A pack wanted by two slots is fetched once; what has arrived of a file survives restarts.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from weakref import WeakValueDictionary

from agent.daemon.fetch_blocks import BlockExchange, BlockSource
from agent.daemon.fetch_child import ChildSource
from agent.daemon.fetch_source import Placed, Source, Wanted, in_thread
from agent.documents import codec
from agent.documents.manifest import MAX_MANIFEST_BYTES, Manifest, delta_files
from agent.documents.settings import Settings, prefix_of
from agent.errors import DigestMismatch, NoSpace, SourceRefused, StoreCorrupt
from agent.links.api import Blocks
from agent.store.names import check_names
from agent.store.packs import PackStore

log = logging.getLogger(__name__)

# Told (bytes here, bytes of the whole pack) after each piece.
OnProgress = Callable[[int, int], None]
# Pack and manifest → names of files.
LeavesOut = Callable[[str, Manifest], Awaitable[Collection[str]]]
# Name of a file → its digest and size in bytes.
PackFiles = dict[str, tuple[str, int]]

SILENCE_S = 30.0


class _Fetch:
    """One running fetch and the callers that wait for it."""

    def __init__(self) -> None:
        self.listeners: list[OnProgress] = []
        self.files: PackFiles = {}
        # Digests of what only helps to make those files.
        self.deltas: frozenset[str] = frozenset()
        self.task: asyncio.Task[None] | None = None

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        for listener in list(self.listeners):
            listener(done_bytes, total_bytes)


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
        """
        self._store = store
        self._roots = roots
        self._leaves_out = leaves_out
        self._exchange: BlockExchange | None = None
        if blocks is not None:
            prefix = prefix_of(settings)
            self._exchange = BlockExchange(prefix, blocks, now=now, silence_s=silence_s)

        def over_the_link(pack: str, source: str) -> Source:
            if self._exchange is None:
                raise SourceRefused(
                    f"packs cannot come over a link of kind {settings.link.kind!r}",
                    hint="give the slot a `from` with `file:` or `https:`",
                )
            return BlockSource(pack, store, self._exchange)

        def child(pack: str, source: str) -> Source:
            return ChildSource(pack, source, settings)

        self._sources: Mapping[str, Callable[[str, str], Source]] = {
            "": lambda pack, source: Placed(pack),
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
        self, pack: str, source: str, progress: OnProgress = lambda done, total: None
    ) -> None:
        """Bring one pack into the store, or do nothing where it is there and whole.

        Callers of the same pack and source share one fetch; it is cancelled with its last caller.

        Args:
            pack: The pack's id.
            source: The slot's `from`; empty where the pack should be here already.
            progress: Called in the event loop, as often as something arrives.

        Raises:
            FetchError: The source cannot be reached, or is silent.
            SourceRefused: It says no, or this agent does not know such a source.
            DigestMismatch, PackError, DocumentError: What it gives is not that pack.
            StoreError: The store cannot take it (`NoSpace`: for lack of room).
        """
        running = self._running.get((pack, source)) or self._start(pack, source)
        assert running.task is not None
        running.listeners.append(progress)
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

    def _start(self, pack: str, source: str) -> _Fetch:
        running = self._running[pack, source] = _Fetch()
        running.task = asyncio.ensure_future(self._fetch(pack, source, running))
        self._tasks.add(running.task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if self._running.get((pack, source)) is running:
                del self._running[pack, source]
            if not task.cancelled():
                task.exception()  # its callers may all be gone

        running.task.add_done_callback(ended)
        return running

    async def _fetch(self, pack: str, source: str, running: _Fetch) -> None:
        async with self._lock(pack):
            opened = self._open(pack, source)
            try:
                manifest, fresh = await self._manifest(pack, opened)
                running.files, running.deltas = await self._files_for(pack, manifest)
                await self._files(pack, opened, running, reserve=fresh)
                try:
                    await in_thread(self._store.install, pack, manifest, running.files)
                except StoreCorrupt as error:
                    # The store has dropped what was altered; get it once more.
                    log.warning("pack %s: %s; fetching it again", pack, error)
                    await self._files(pack, opened, running, reserve=False)
                    await in_thread(self._store.install, pack, manifest, running.files)
            finally:
                await opened.close()

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

    def _open(self, pack: str, source: str) -> Source:
        scheme = source.partition(":")[0].lower()
        if scheme not in self._sources:
            known = ", ".join(f"{name}:" for name in self._sources if name)
            raise SourceRefused(
                f"this agent cannot fetch from {scheme[:20]!r} sources",
                hint=f"it knows {known} and packs that are placed beforehand",
            )
        return self._sources[scheme](pack, source)

    async def _manifest(self, pack: str, source: Source) -> tuple[bytes, bool]:
        """The manifest's bytes, and whether the store did not have them before."""
        kept = await in_thread(self._store.manifest, pack)
        if kept is not None:
            return kept, False
        manifest = await source.manifest()
        got = hashlib.sha256(manifest).hexdigest()
        if f"sha256:{got}" != pack:
            raise DigestMismatch(
                f"the manifest that came for pack {pack} has the digest sha256:{got}",
                hint="the source offers another pack, or an altered one",
            )
        await in_thread(self._store.add_manifest, pack, manifest)
        return manifest, True

    async def _files(self, pack: str, source: Source, running: _Fetch, *, reserve: bool) -> None:
        sizes = dict(running.files.values())
        missing = await in_thread(self._store.missing, running.files)
        # Files with the same content are one file.
        wanted = {running.files[name][0]: name for name in missing}
        total = sum(sizes.values())
        done = total - sum(sizes[digest] for digest in wanted)
        running.progress(done, total)
        if reserve and wanted:
            # What an earlier attempt has left takes room already, so only the first one can ask.
            await self._make_room(total - done)
        for digest, name in wanted.items():
            one = Wanted(pack, name, digest, sizes[digest])
            await self._file(one, source, partial(_shifted, running.progress, done, total))
            done += one.size
            running.progress(done, total)

    async def _file(self, wanted: Wanted, source: Source, on_bytes: Callable[[int], None]) -> None:
        async with self._lock(wanted.digest):
            if self._store.has_blob(wanted.digest):
                return  # another pack with the same file was faster
            try:
                await source.file(wanted, on_bytes)
            except NoSpace:
                await self._make_room(wanted.size)
                await source.file(wanted, on_bytes)

    async def _make_room(self, needed_bytes: int) -> None:
        """Remove what nobody needs, if that is what it takes.

        Raises:
            NoSpace: What is needed does not fit even so.
        """
        try:
            await in_thread(self._store.reserve, needed_bytes)
        except NoSpace:
            roots = self._roots()
            if roots is None:
                raise
            gone = await in_thread(
                self._store.collect, roots, keep=self.digests, needed_bytes=needed_bytes
            )
            log.info("made room: %d packs, %d bytes", len(gone.packs), gone.freed_bytes)
            await in_thread(self._store.reserve, needed_bytes)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


def _shifted(progress: OnProgress, before: int, total: int, here: int) -> None:
    progress(before + here, total)


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
