"""Packs on disk, each a folder of hard links to content-addressed blobs.

    blobs/sha256/ab/<hex>     every file once, read-only
    packs/<pack id hex>/      manifest.json and the pack's files, under the names a worker uses
    packs/<pack id hex>.files which digest each of those names must have
    part/<hex>, <hex>.map     files being received

How many packs use a blob is its link count, kept by the file system.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec

from agent.errors import NoSpace, PackError, StoreCorrupt
from agent.store.blobs import Blobs
from agent.store.files import Files, OpenFile
from agent.store.folders import BadFile, PackFolders
from agent.store.names import MANIFEST, SIGNATURE, check_names, hex_of
from agent.store.parts import BLOCKS_MAX, Part, discard_part, received_of

MANIFEST_BYTES_MAX = 1 << 20
SIGNATURE_BYTES_MAX = 1 << 20
RESERVE_BYTES_MIN = 64 << 20
RESERVE_SHARE = 0.05
PART_AGE_MAX_S = 7 * 24 * 3600


class Usage(msgspec.Struct, frozen=True):
    """Room taken and left, in bytes."""

    used_bytes: int
    quota_bytes: int
    free_bytes: int
    packs: int


class Collected(msgspec.Struct, frozen=True):
    """What the collector removed."""

    packs: tuple[str, ...]
    freed_bytes: int


class PackStore:
    """The packs of one device, within a quota and never to the last byte of the disk.

    Nothing is read or written before the first call; call `sweep` once at start. Methods that
    write, verify or collect take one lock and may read whole files: call those from a thread.

    Args:
        files: The layer to use.
        root: The folder that holds `blobs`, `packs` and `part`: one file system with hard links.
        quota_bytes: Most that blobs and parts may take together (`limits.store_mb`).
    """

    def __init__(self, files: Files, root: Path, quota_bytes: int) -> None:
        self._files = files
        self._part = root / "part"
        self._root = root
        self._quota = quota_bytes
        self._blobs = Blobs(files, root)
        self._folders = PackFolders(files, root, self._blobs)
        self._receiving: dict[str, Part] = {}
        self._lock = threading.RLock()

    # What is here.

    def has(self, pack_id: str) -> bool:
        """Whether the pack is installed; whether its files are still whole, `verify` says."""
        return self._folders.has(hex_of(pack_id))

    def directory(self, pack_id: str) -> Path:
        """The folder a worker is given.

        Raises:
            StoreCorrupt: The pack is not installed.
        """
        if not self.has(pack_id):
            raise StoreCorrupt(f"pack {pack_id} is not in the store", hint="deploy it again")
        return self._folders.path(hex_of(pack_id))

    def packs(self) -> list[str]:
        """The ids of all installed packs, longest unused first."""
        return [f"sha256:{pack_hex}" for pack_hex in self._folders.all()]

    def manifest(self, pack_id: str) -> bytes | None:
        """The manifest of a pack, installed or being fetched; None when unknown or damaged."""
        pack_hex = hex_of(pack_id)
        for path in (self._folders.path(pack_hex) / MANIFEST, self._blobs.path(pack_hex)):
            data = self._files.read(path, MANIFEST_BYTES_MAX)
            if data is not None and hashlib.sha256(data).hexdigest() == pack_hex:
                return data
        return None

    def signature(self, pack_id: str) -> bytes | None:
        """The content of an installed pack's `model.sig`; None where it has none.

        It may have been altered since: whoever vouches for the pack by it, looks at it.
        """
        path = self._folders.path(hex_of(pack_id)) / SIGNATURE
        return self._files.read_range(path, 0, SIGNATURE_BYTES_MAX + 1)

    def has_blob(self, digest: str) -> bool:
        """Whether a file is here already and need not be fetched."""
        return self._blobs.size(hex_of(digest)) is not None

    def read_blob(self, digest: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a file that is here, fewer at its end; none where it is not."""
        return self._files.read_range(self._blobs.path(hex_of(digest)), offset, size) or b""

    def is_whole(self, digest: str) -> bool:
        """Read a file again: whether it is here, with the bytes that its digest promises."""
        return self.has_blob(digest) and not self._blobs.is_altered(hex_of(digest))

    def drop_unused(self, digest: str) -> None:
        """Remove a file that no pack has; durable on return."""
        with self._lock:
            found = self._files.stat(self._blobs.path(hex_of(digest)))
            if found is not None and found.st_nlink == 1:
                self._blobs.drop(hex_of(digest))

    def missing(self, files: Mapping[str, tuple[str, int]]) -> list[str]:
        """The names of files still to be fetched before `install`."""
        return [name for name, (digest, _) in files.items() if not self.has_blob(digest)]

    # Receiving.

    def add_manifest(self, pack_id: str, manifest: bytes) -> None:
        """Keep the manifest of a pack that is about to be fetched; durable on return.

        Raises:
            DigestMismatch: It is not the manifest with this id.
            PackError: It has more than 1 MiB.
        """
        if len(manifest) > MANIFEST_BYTES_MAX:
            raise PackError(f"pack {pack_id}: a manifest of {len(manifest)} bytes, at most 1 MiB")
        with self._lock:
            self._blobs.add(manifest, hex_of(pack_id))

    def begin_part(self, digest: str, size: int, block_size: int) -> Part:
        """Start to receive a file, or go on where an earlier attempt stopped.

        With another `block_size` than last time the file starts afresh.

        Raises:
            RuntimeError: The file is here (`has_blob`) or is being received already.
            PackError: The sizes make no sense.
            NoSpace: It would not fit; nothing was changed.
        """
        digest_hex = hex_of(digest)
        if size < 0 or block_size < 1 or size > block_size * BLOCKS_MAX:
            raise PackError(f"{digest}: {size} bytes in blocks of {block_size} cannot be received")
        with self._lock:
            if digest_hex in self._receiving or self.has_blob(digest):
                raise RuntimeError(f"{digest}: here or being received already")
            path = self._part / digest_hex
            self.reserve(max(0, size - self._allocated(path)))
            part = Part(
                self._files,
                path,
                size,
                block_size,
                adopt=lambda file: self._adopt(file, digest_hex),
                on_close=lambda: self._receiving.pop(digest_hex, None),
            )
            self._receiving[digest_hex] = part
            return part

    def received_bytes(self, digest: str, size: int, block_size: int) -> int:
        """How much of a file that is not being received now an earlier attempt has left."""
        return received_of(self._files, self._part / hex_of(digest), size, block_size)

    def still_needed(self, sizes: Mapping[str, int]) -> int:
        """How many bytes files of these digests and sizes will take beyond what they take now."""
        parts = {digest: self._part / hex_of(digest) for digest in sizes}
        return sum(max(0, sizes[d] - self._allocated(path)) for d, path in parts.items())

    def install(
        self,
        pack_id: str,
        manifest: bytes,
        files: Mapping[str, tuple[str, int]],
        signature: bytes | None = None,
    ) -> Path:
        """Make the pack's folder from files that are all here; repairs one that exists.

        Reads every file that this process has not verified yet. Repeating it changes nothing.

        Args:
            pack_id: Digest of the manifest.
            manifest: The manifest's bytes.
            files: Name of each file → its digest and size in bytes.
            signature: Content of `model.sig`, where there is one.

        Raises:
            PackError: A name is refused, or a size contradicts the file.
            StoreCorrupt: A file is missing or altered; it is dropped so that it can be fetched.
        """
        check_names(files)
        if signature is not None and len(signature) > SIGNATURE_BYTES_MAX:
            raise PackError(f"pack {pack_id}: a signature of {len(signature)} bytes, at most 1 MiB")
        with self._lock:
            self.add_manifest(pack_id, manifest)
            for name, (digest, size) in files.items():
                self._require(name, hex_of(digest), size)
            links = {name: hex_of(digest) for name, (digest, _) in files.items()}
            links[MANIFEST] = hex_of(pack_id)
            if signature is not None:
                links[SIGNATURE] = hashlib.sha256(signature).hexdigest()
                self._blobs.add(signature, links[SIGNATURE])
            self._folders.install(hex_of(pack_id), links)
            self.mark_used(pack_id)
        return self.directory(pack_id)

    def mark_used(self, pack_id: str) -> None:
        """Make this the last pack that `collect` would remove."""
        self._folders.mark_used(hex_of(pack_id))

    # Looking after it.

    def sweep(self) -> None:
        """Remove what interrupted calls have left. Call once at start, before anything else."""
        with self._lock:
            self._folders.sweep()
            self._blobs.sweep()
            self._files.sweep(self._part)
            for name in self._files.names(self._part):
                digest_hex = name.removesuffix(".map")
                stored = self._blobs.size(digest_hex) is not None
                if stored or self._files.stat(self._part / digest_hex) is None:
                    discard_part(self._files, self._part / digest_hex)

    def verify(self, pack_id: str) -> tuple[BadFile, ...]:
        """Read a whole pack again and say which of its files are missing or altered.

        Raises:
            StoreCorrupt: The pack, or the list of its files, is not there; install it again.
        """
        self.directory(pack_id)
        return self._folders.bad_files(hex_of(pack_id))

    def repair(self, pack_id: str) -> tuple[BadFile, ...]:
        """Verify a pack and drop each bad file from the store, so that `missing` names it.

        The pack's folder stays as it is, for a worker that serves from it; fetch what is missing,
        then `install` puts the good files in place.
        """
        with self._lock:
            bad = self.verify(pack_id)
            for file in bad:
                digest_hex = hex_of(file.digest)
                if self._blobs.is_altered(digest_hex):
                    self._blobs.drop(digest_hex)
            return bad

    def remove(self, pack_id: str) -> None:
        """Remove a pack that nobody needs, and the files that no other has."""
        with self._lock:
            if self.has(pack_id):
                self._folders.remove(hex_of(pack_id))
            list(self._drop_unused_blobs(set(self._receiving)))

    def reserve(self, needed_bytes: int, *, promised_bytes: int | None = None) -> None:
        """Check that so many more bytes may be stored.

        Args:
            needed_bytes: How many.
            promised_bytes: What is on its way for others; None: what this process receives.

        Raises:
            NoSpace: They would exceed the quota, or leave less than the reserve of the disk.
        """
        promised = self._promised() if promised_bytes is None else promised_bytes
        short = self._short(needed_bytes + promised)
        if short <= 0:
            return
        usage, reserve = self.usage(), self._reserve_bytes()
        others = f", {_size(promised)} are on their way for others" if promised else ""
        raise NoSpace(
            f"{_size(needed_bytes)} are needed, {_size(short)} more than there is room for: "
            f"{_size(usage.free_bytes)} of the disk are free and {_size(reserve)} must stay free, "
            f"packs take {_size(usage.used_bytes)} of {_size(usage.quota_bytes)}{others}",
            hint="remove a slot, free some space, or raise limits.store_mb",
        )

    def usage(self) -> Usage:
        """Room taken by blobs and parts, and left."""
        blobs = sum(blob.size for blob in self._blobs.all())
        parts = sum(map(self._allocated, self._part_paths()))
        free = self._files.space(self._root).free_bytes
        return Usage(blobs + parts, self._quota, free, len(self._folders.all()))

    def collect(
        self,
        roots: Collection[str],
        *,
        keep: Collection[str] = (),
        needed_bytes: int = 0,
        promised_bytes: int | None = None,
        now_s: float | None = None,
    ) -> Collected:
        """Remove what nobody needs, as far as `needed_bytes` more would not fit otherwise.

        First parts older than a week, then blobs of no pack, then packs, longest unused first, at
        last unfinished parts. Not for a caller that does not know all roots.

        Args:
            roots: Ids of packs to keep: current, previous and candidate of every slot.
            keep: Digests of files to keep although no installed pack has them: those of a pack
                that is being fetched. Files being received at this moment are kept in any case.
            needed_bytes: How much is about to be stored.
            promised_bytes: What is on its way for others; None: what this process receives.
            now_s: Wall clock, seconds since 1970, to tell the age of parts; not asked when None.
        """
        kept = {hex_of(digest) for digest in (*roots, *keep)} | set(self._receiving)
        with self._lock:
            before = self.usage().used_bytes
            coming = needed_bytes + (self._promised() if promised_bytes is None else promised_bytes)
            removed: list[str] = []
            for _ in self._removals(roots, kept, now_s, removed):
                if self._short(coming) <= 0:
                    break
            return Collected(tuple(removed), max(0, before - self.usage().used_bytes))

    # How it is done.

    def _removals(
        self, roots: Collection[str], kept: set[str], now_s: float | None, removed: list[str]
    ) -> Iterator[None]:
        parts = [path for path in self._part_paths() if path.name not in kept]
        if now_s is not None:
            for path in parts:
                found = self._files.stat(path)
                if found is not None and now_s - found.st_mtime > PART_AGE_MAX_S:
                    discard_part(self._files, path)
        yield
        yield from self._drop_unused_blobs(kept)
        for pack_id in self.packs():
            if pack_id not in roots:
                self._folders.remove(hex_of(pack_id))
                removed.append(pack_id)
                yield from self._drop_unused_blobs(kept)
        for path in parts:
            discard_part(self._files, path)
            yield

    def _drop_unused_blobs(self, kept: set[str]) -> Iterator[None]:
        for blob in list(self._blobs.all()):
            if blob.links == 1 and blob.digest_hex not in kept:
                self._blobs.drop(blob.digest_hex)
                yield

    def _adopt(self, file: OpenFile, digest_hex: str) -> None:
        with self._lock:
            self._blobs.adopt(file, digest_hex)

    def _require(self, name: str, digest_hex: str, size: int) -> None:
        found = self._blobs.size(digest_hex)
        if found is not None and not self._blobs.is_whole(digest_hex):
            self._blobs.drop(digest_hex)
            raise StoreCorrupt(f"file {name!r} (sha256:{digest_hex}) was altered in the store")
        if found is None:
            raise StoreCorrupt(f"file {name!r} (sha256:{digest_hex}) is missing from the store")
        if found != size:
            raise PackError(f"file {name!r}: the manifest says {size} bytes, it has {found}")

    def _promised(self) -> int:
        receiving = list(self._receiving.values())  # another thread may close one meanwhile
        return sum(part.size - part.received_bytes for part in receiving)

    def _short(self, coming: int) -> int:
        usage = self.usage()
        over_quota = usage.used_bytes + coming - usage.quota_bytes
        below_reserve = self._reserve_bytes() - (usage.free_bytes - coming)
        return max(over_quota, below_reserve)

    def _reserve_bytes(self) -> int:
        total = self._files.space(self._root).total_bytes
        return max(RESERVE_BYTES_MIN, int(total * RESERVE_SHARE))

    def _allocated(self, path: Path) -> int:
        # A part has holes where blocks are still missing; its length says nothing.
        found = self._files.stat(path)
        return 0 if found is None else min(found.st_size, found.st_blocks * 512)

    def _part_paths(self) -> list[Path]:
        names = self._files.names(self._part)
        return [self._part / name for name in names if len(name) == 64]


def _size(count: int) -> str:
    """Bytes as a person reads them; all of them where they are few."""
    return f"{count} B" if count < 10_000 else f"{count / 1_000_000:.2f} MB"
