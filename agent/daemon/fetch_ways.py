"""How a file may come with less than all its bytes on the wire, given what the store has.

Everything here is an improvement and nothing a condition: whatever goes wrong on a shorter way, the
whole file comes instead, and goes on from what the shorter way has brought.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial

import msgspec

from agent.control.shipping import WORTH_BYTES, Way, choose
from agent.documents.manifest import Delta, Manifest, PackFile
from agent.errors import AgentError, PackError, StoreError
from agent.store.packs import PackStore
from agent.store.parts import Part
from agent.store.rebuild import Held, Patch, Rebuild
from agent.wire.chunks import Chunk, Range, bytes_of, decode_list, ranges_of
from agent.wire.delta import is_known, shape_of

# A file's name in the pack, and what the manifest promises of it.
Named = tuple[str, PackFile]
# File, start and end (not included) → those bytes.
FetchRange = Callable[[Named, int, int], Iterator[bytes]]


class Known(msgspec.Struct, frozen=True):
    """What the manifest and the store say of one file.

    Attributes:
        file: As the manifest promises it.
        chunks: What it is made of; empty where that is not known.
        held: Digest of a chunk → where the store has it.
        deltas: Those whose base is in the store, each with the file that holds it.
    """

    file: PackFile
    chunks: Sequence[Chunk]
    held: Mapping[bytes, Held]
    deltas: Sequence[tuple[Delta, Named]]

    def missing(self, part: Part) -> tuple[Range, ...]:
        """The ranges that bring what neither the part nor the store has."""
        return ranges_of(
            chunk
            for chunk in self.chunks
            if chunk.digest not in self.held and part.lacks(chunk.offset, chunk.end)
        )

    def ways(self, part: Part, *, whole_blocks: bool = False) -> tuple[Way, ...]:
        """The ways worth trying, the best one first, the whole file last.

        Args:
            part: What of the file is here.
            whole_blocks: The source gives no less than the part's blocks.
        """
        ranges = self.missing(part)
        if whole_blocks:
            ranges = tuple(_in_blocks(one, part) for one in ranges)
        chunk_bytes = bytes_of(ranges) if self.held else None
        deltas = ((index, made.size) for index, (_, (_, made)) in enumerate(self.deltas))
        return choose(part.size - part.received_bytes, chunk_bytes, deltas)


def look(store: PackStore, pack: str, name: str) -> Known | None:
    """What is known of a file of a pack whose manifest is here; None: that it comes whole."""
    manifest = _manifest(store, pack)
    file = manifest.files.get(name) if manifest is not None else None
    if manifest is None or file is None or file.size < WORTH_BYTES:
        return None
    chunks = _chunks(file)
    deltas = [
        (delta, (delta.file, manifest.files[delta.file]))
        for delta in file.deltas
        if is_known(delta) and delta.file in manifest.files and store.has_blob(delta.base)
    ]
    return Known(file, chunks, _held(store, {chunk.digest for chunk in chunks}), deltas)


def _held(store: PackStore, wanted: set[bytes]) -> dict[bytes, Held]:
    """Where the files of installed packs have these chunks."""
    held: dict[bytes, Held] = {}
    for pack in reversed(store.packs()) if wanted else ():
        manifest = _manifest(store, pack)
        for file in manifest.files.values() if manifest is not None else ():
            if file.chunks is not None and store.has_blob(file.digest):
                for chunk in _chunks(file):
                    if chunk.digest in wanted:
                        held.setdefault(chunk.digest, Held(file.digest, chunk.offset))
    return held


def _manifest(store: PackStore, pack: str) -> Manifest | None:
    data = store.manifest(pack)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError:
        return None  # another version of this agent took it


def _chunks(file: PackFile) -> Sequence[Chunk]:
    try:
        return decode_list(file.chunks, file.size)
    except PackError:
        return ()


def _in_blocks(one: Range, part: Part) -> Range:
    size = part.block_size
    return Range(one.start // size * size, min(part.size, -(-one.end // size) * size))


class Shorter:
    """Brings files by the ways that are shorter than the whole, from a source of ranges.

    Args:
        store: Where older files are, and the new one goes.
        block_size: Of the parts; that of whoever brings the whole file.
        fetch: Brings a range of a file.
        whole: Brings a whole file into the store: a delta comes as one.
        tick: Called with the part after each piece, to flush and to tell.
    """

    def __init__(
        self,
        store: PackStore,
        block_size: int,
        *,
        fetch: FetchRange,
        whole: Callable[[Named], None],
        tick: Callable[[Part], None] = lambda part: None,
    ) -> None:
        self._store = store
        self._block_size = block_size
        self._fetch = fetch
        self._whole = whole
        self._tick = tick

    def bring(self, pack: str, name: str) -> bool:
        """Bring one file.

        Returns:
            Whether it is in the store now. If not, the whole file is what is left; it goes on from
            the part as it is.
        """
        known = look(self._store, pack, name)
        if known is None or not (known.held or known.deltas):
            return False
        with self._begin(known) as part:
            ways = known.ways(part)
        for way in ways[:-1]:
            try:
                self._by(way, known, name)
            except AgentError:
                continue
            return True
        return False

    def _by(self, way: Way, known: Known, name: str) -> None:
        if way.kind == "chunks":
            with self._begin(known) as part:
                rebuild = Rebuild(self._store, part, tick=lambda: self._tick(part))
                fetch = partial(self._fetch, (name, known.file))
                rebuild.from_chunks(known.chunks, known.held, fetch)
                part.finish()
            return
        delta, made = known.deltas[way.index]
        if not self._store.has_blob(made[1].digest):
            self._whole(made)
        with self._begin(known) as part:
            apply(self._store, part, delta, made[1], tick=lambda: self._tick(part))

    def _begin(self, known: Known) -> AbstractContextManager[Part]:
        part = self._store.begin_part(known.file.digest, known.file.size, self._block_size)
        return kept(part)


@contextmanager
def kept(part: Part) -> Iterator[Part]:
    """Flush and close a part at the end of a block, whatever happened in it."""
    try:
        yield part
    finally:
        # Whatever went wrong with the disk has been said already.
        with suppress(StoreError, RuntimeError):
            part.flush()
        with suppress(StoreError):
            part.close()


def apply(
    store: PackStore,
    part: Part,
    delta: Delta,
    made: PackFile,
    *,
    tick: Callable[[], object] = lambda: None,
) -> None:
    """Make a file by a delta that is in the store, and drop the delta, also where it fails.

    Raises:
        StoreError: Base or delta are altered, or the disk fails.
        PackError: The delta does not give the file.
    """
    try:
        patch = Patch(delta.base, made.digest, made.size, shape_of(delta))
        Rebuild(store, part, tick=tick).from_delta(patch)
        part.finish()
    finally:
        # A bad one must not be kept for the next attempt, a good one is of no more use.
        with suppress(StoreError):
            store.drop_unused(made.digest)
