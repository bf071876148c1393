"""Every byte of the store read again: what is damaged, what is left over, and putting it right."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec.structs import replace

from agent.control.state import DeviceState
from agent.errors import StoreError
from agent.store.blobs import Blobs
from agent.store.files import Files, is_temporary
from agent.store.folders import BadFile, Damage, PackFolders
from agent.store.packs import PackStore

LISTED_MAX = 500
_DIGITS = re.compile(r"[0-9a-f]{64}")
_SHELF = re.compile(r"[0-9a-f]{2}")
# Told (bytes read, bytes to read) now and then.
Told = Callable[[int, int], object]


class BadPack(msgspec.Struct, frozen=True, omit_defaults=True):
    """A pack that is not whole.

    Attributes:
        pack: Its id.
        why: What is wrong with it as a whole.
        files: The files of it that are missing, altered or unreadable.
        needed: Which slots serve it, go back to it, or are on their way to it.
        done: What `--repair` did about it, and what comes next.
    """

    pack: str
    why: str = ""
    files: tuple[BadFile, ...] = ()
    needed: tuple[str, ...] = ()
    done: str = ""


class BadBlob(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stored file whose bytes are not those of its name."""

    digest: str
    reason: Damage
    done: str = ""


class Found(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a check has found.

    Attributes:
        packs: How many are installed.
        blobs: How many files are stored, each once.
        read_bytes: How much was read.
        used_bytes: What files and parts take of the quota.
        quota_bytes: `limits.store_mb`.
        free_bytes: What the disk has left.
        unused_bytes: Files that no pack has, kept until room is needed.
        bad_packs: Packs that are not whole.
        bad_blobs: Altered or unreadable files that no bad pack names.
        parts: Files on their way: digest → bytes.
        temporary: What an interrupted call has left; the next start removes it.
        strays: Names that are not the store's; never touched.
        more: How many findings the lists leave out.
    """

    packs: int
    blobs: int
    read_bytes: int
    used_bytes: int
    quota_bytes: int
    free_bytes: int
    unused_bytes: int
    bad_packs: tuple[BadPack, ...] = ()
    bad_blobs: tuple[BadBlob, ...] = ()
    parts: dict[str, int] = {}
    temporary: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    more: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is damaged, or all that was has been dealt with."""
        packs_whole = all(bad.done for bad in self.bad_packs)
        return packs_whole and all(bad.done for bad in self.bad_blobs)


def needs_of(state: DeviceState) -> dict[str, tuple[str, ...]] | None:
    """What each pack is needed for; None where nobody knows, so that no pack may go."""
    if state.lost:
        return None
    needed: dict[str, tuple[str, ...]] = {}
    for name, entry in state.slots.items():
        coming = entry.rollout
        uses = [(entry.serving, "serves"), (entry.previous, "is the way back of")]
        if coming is not None:
            uses += [(coming.target, "is coming to"), (coming.aim.target, "is coming to")]
        for slot, use in uses:
            words = f"{use} slot {name}"
            if slot is not None and words not in needed.get(slot.pack, ()):
                needed[slot.pack] = (*needed.get(slot.pack, ()), words)
    return needed


class Checker:
    """Reads the store of one device. It changes nothing, and may run beside an agent that does.

    Args:
        files: The layer to use.
        root: The folder that holds `blobs`, `packs` and `part`.
        store: The store there.
        told: Told how far it is.
    """

    def __init__(
        self, files: Files, root: Path, store: PackStore, told: Told = lambda done, total: None
    ) -> None:
        self._files = files
        self._root = root
        self._store = store
        self._told = told
        self._blobs = Blobs(files, root)
        self._folders = PackFolders(files, root, self._blobs)
        # A pack's files are the blobs themselves under other names: each is read once.
        self._digests: dict[tuple[int, int], str | None] = {}
        self._read_bytes = self._total_bytes = 0

    def look(self, needs: Mapping[str, tuple[str, ...]] | None) -> Found:
        """Read everything.

        Args:
            needs: From `needs_of`.

        Raises:
            StoreError: A folder cannot be listed.
        """
        blobs = [blob for blob in self._blobs.all() if _DIGITS.fullmatch(blob.digest_hex)]
        self._total_bytes = sum(blob.size for blob in blobs)
        bad_packs = [bad for pack in self._store.packs() if (bad := self._pack(pack, needs))]
        named = {file.digest for pack in bad_packs for file in pack.files}
        bad_blobs = []
        for blob in blobs:
            reason = self._judge(self._blobs.path(blob.digest_hex), blob.digest_hex)
            digest = f"sha256:{blob.digest_hex}"
            if reason is not None and reason != "missing" and digest not in named:
                bad_blobs.append(BadBlob(digest, reason))
        temporary, strays = self._names()
        usage = self._store.usage()
        lists = (bad_packs, bad_blobs, temporary, strays)
        return Found(
            packs=usage.packs,
            blobs=len(blobs),
            read_bytes=self._read_bytes,
            used_bytes=usage.used_bytes,
            quota_bytes=usage.quota_bytes,
            free_bytes=usage.free_bytes,
            unused_bytes=sum(blob.size for blob in blobs if blob.links == 1),
            bad_packs=tuple(bad_packs[:LISTED_MAX]),
            bad_blobs=tuple(bad_blobs[:LISTED_MAX]),
            parts=self._parts(),
            temporary=tuple(temporary[:LISTED_MAX]),
            strays=tuple(strays[:LISTED_MAX]),
            more=sum(max(0, len(each) - LISTED_MAX) for each in lists),
        )

    def _pack(self, pack: str, needs: Mapping[str, tuple[str, ...]] | None) -> BadPack | None:
        pack_hex = pack.removeprefix("sha256:")
        needed = (needs or {}).get(pack, ())
        try:
            links = self._folders.links_of(pack_hex)
        except StoreError as error:
            gone = not self._folders.has(pack_hex)  # removed while this runs
            return None if gone else BadPack(pack, error.message, needed=needed)
        folder = self._folders.path(pack_hex)
        judged = [(name, to, self._judge(folder / name, to)) for name, to in links.items()]
        bad = tuple(BadFile(name, f"sha256:{to}", why) for name, to, why in judged if why)
        if not bad or not self._folders.has(pack_hex):
            return None
        return BadPack(pack, files=bad, needed=needed)

    def _judge(self, path: Path, digest_hex: str) -> Damage | None:
        try:
            found = self._files.stat(path)
            if found is None:
                return "missing"
            if not stat.S_ISREG(found.st_mode):
                return "altered"  # not opened: a pipe would wait for a writer
            inode = (found.st_dev, found.st_ino)
            if inode not in self._digests:
                self._digests[inode] = self._sha256(path)
        except StoreError:
            return "unreadable"
        got = self._digests[inode]
        if got is None:
            return "unreadable"
        return None if got == digest_hex else "altered"

    def _sha256(self, path: Path) -> str | None:
        digest = hashlib.sha256()
        try:
            for chunk in self._files.chunks(path):
                digest.update(chunk)
                self._read_bytes += len(chunk)
                self._told(self._read_bytes, max(self._total_bytes, self._read_bytes))
        except StoreError:
            return None
        return digest.hexdigest()

    def _parts(self) -> dict[str, int]:
        folder = self._root / "part"
        names = [name for name in self._files.names(folder) if _DIGITS.fullmatch(name)]
        sizes = {f"sha256:{name}": self._files.stat(folder / name) for name in names[:LISTED_MAX]}
        return {
            digest: min(found.st_size, found.st_blocks * 512)
            for digest, found in sizes.items()
            if found is not None
        }

    def _names(self) -> tuple[list[str], list[str]]:
        """What was left over, and what is not the store's, by their paths in the state folder."""
        blobs = self._root / "blobs" / "sha256"
        shelves = [name for name in self._files.names(blobs) if _SHELF.fullmatch(name)]
        found = [
            *self._odd(blobs.parent, "sha256"),
            *self._odd(blobs, _SHELF.pattern),
            *self._odd(self._root / "packs", r"[0-9a-f]{64}(\.files)?"),
            *self._odd(self._root / "part", r"[0-9a-f]{64}(\.map)?"),
            *(odd for name in shelves for odd in self._odd(blobs / name, name + r"[0-9a-f]{62}")),
        ]
        temporary = [path for path in found if is_temporary(path.rpartition("/")[2])]
        return temporary, [path for path in found if not is_temporary(path.rpartition("/")[2])]

    def _odd(self, folder: Path, known: str) -> list[str]:
        names = self._files.names(folder) if self._files.is_folder(folder) else []
        where = folder.relative_to(self._root).as_posix()
        return [f"{where}/{name}" for name in names if not re.fullmatch(known, name)]


def mend(
    store: PackStore,
    found: Found,
    needs: Mapping[str, tuple[str, ...]] | None,
    next_fetch: str,
) -> Found:
    """Drop what is damaged, so that it is fetched again.

    A pack's folder stays while a slot needs it: a worker that serves from it goes on.

    Args:
        store: The store of the device.
        found: From `Checker.look`.
        needs: From `needs_of`, at this moment.
        next_fetch: When packs that a slot needs are fetched again, as a sentence tells it.
    """
    packs = tuple(_mend_pack(store, bad, needs, next_fetch) for bad in found.bad_packs)
    blobs = tuple(_mend_blob(store, bad) for bad in found.bad_blobs)
    return replace(found, bad_packs=packs, bad_blobs=blobs)


def _mend_pack(
    store: PackStore, bad: BadPack, needs: Mapping[str, tuple[str, ...]] | None, next_fetch: str
) -> BadPack:
    needed = (needs or {}).get(bad.pack, ())
    bad = replace(bad, needed=needed)
    try:
        if needs is not None and not needed:
            store.remove(bad.pack)
            return replace(bad, done="removed: no slot needs it")
        if bad.why:
            return replace(bad, done=f"left as it is; {next_fetch}")
        again = {file.digest for file in store.repair(bad.pack)}
    except StoreError as error:
        return replace(bad, why=f"not repaired: {error.message}", done="")
    names = ", ".join(file.name for file in bad.files if file.digest in again)
    serves = any(use.startswith("serves") for use in needed)
    only = " (the only copy of what serves)" if serves else ""
    return replace(bad, done=f"dropped {names}{only}; {next_fetch}")


def _mend_blob(store: PackStore, bad: BadBlob) -> BadBlob:
    try:
        store.drop_unused(bad.digest)
        # One that is still here belongs to a pack whose list of files is damaged.
        gone = not store.has_blob(bad.digest)
    except StoreError:
        gone = False
    return replace(bad, done="dropped: no pack has it" if gone else "")
