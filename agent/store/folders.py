"""The folders that workers are given: `packs/<pack id hex>/`, made of hard links to blobs.

Beside each folder, `<pack id hex>.files` says which digest each of its names must have. A folder
appears whole, by one rename, and vanishes first, by another: whoever sees its name sees all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from agent.errors import StoreCorrupt, StoreError
from agent.store.blobs import Blobs, sha256
from agent.store.files import Files, temporary_name
from agent.store.sealed import seal, unseal

Damage = Literal["missing", "altered", "unreadable"]
_LIST_BYTES_MAX = 4 << 20


class BadFile(msgspec.Struct, frozen=True):
    """A file of a pack that is not what was installed."""

    name: str
    digest: str
    reason: Damage


class PackFolders:
    """All installed packs, by the hex digits of their ids.

    Args:
        files: The layer to use.
        root: The folder that holds `packs` and `part`.
        blobs: Where the files are.
    """

    def __init__(self, files: Files, root: Path, blobs: Blobs) -> None:
        self._files = files
        self._packs = root / "packs"
        self._part = root / "part"
        self._blobs = blobs

    def path(self, pack_hex: str) -> Path:
        return self._packs / pack_hex

    def has(self, pack_hex: str) -> bool:
        return self._files.is_folder(self.path(pack_hex))

    def all(self) -> list[str]:
        """The packs, longest unused first."""
        names = [name for name in self._files.names(self._packs) if len(name) == 64]
        return sorted(names, key=self._last_used)

    def install(self, pack_hex: str, links: Mapping[str, str]) -> None:
        """Make a folder, or put right the files of one that exists; durable on return.

        Args:
            pack_hex: Which pack.
            links: The name of each file → the hex digits of its blob, which must be there.
        """
        path = self.path(pack_hex)
        self._files.make_folder(self._packs)
        self._files.replace(self._list(pack_hex), seal(msgspec.json.encode(links)))
        if self.has(pack_hex):
            self._relink(path, links)
        else:
            self._build(path, links)

    def remove(self, pack_hex: str) -> None:
        """Remove a pack; its blobs stay."""
        doomed = temporary_name(self.path(pack_hex))
        self._files.rename(self.path(pack_hex), doomed)
        # Durable before its files go, or a power cut could leave a pack with holes in it.
        self._files.sync_dir(self._packs)
        self._files.remove_tree(doomed)
        self._files.unlink(self._list(pack_hex))

    def links_of(self, pack_hex: str) -> dict[str, str]:
        """The name of each file of a pack → the hex digits of the digest it must have.

        Raises:
            StoreCorrupt: The list of its files is missing or damaged.
        """
        data = self._files.read(self._list(pack_hex), _LIST_BYTES_MAX)
        sealed = None if data is None else unseal(data)
        if sealed is None:
            raise StoreCorrupt(
                f"{self._list(pack_hex)}: missing or damaged", hint="deploy it again"
            )
        return msgspec.json.decode(sealed.document, type=dict[str, str])

    def bad_files(self, pack_hex: str) -> tuple[BadFile, ...]:
        """Read all files of a pack; those that are not what was installed.

        Raises:
            StoreCorrupt: The list of its files is missing or damaged.
        """
        links = self.links_of(pack_hex)
        judged = [
            (name, to, self._judge(self.path(pack_hex) / name, to)) for name, to in links.items()
        ]
        return tuple(BadFile(name, f"sha256:{to}", bad) for name, to, bad in judged if bad)

    def mark_used(self, pack_hex: str) -> None:
        """Make this the last of `all`."""
        others = [name for name in self.all() if name != pack_hex]
        newest = self._last_used(others[-1]) if others else 0
        if self._last_used(pack_hex) <= newest:
            # A count, not a time: a board without a battery boots in the past.
            # Worth no failure: without it, the order of removal is a little wrong.
            with suppress(StoreError):
                self._files.touch(self.path(pack_hex), newest + 1)

    def sweep(self) -> None:
        """Remove what interrupted calls have left."""
        self._files.sweep(self._packs)
        for name in self._files.names(self._packs):
            pack_hex = name.removesuffix(".files")
            if pack_hex != name and not self.has(pack_hex):
                self._files.unlink(self._packs / name)

    def _build(self, path: Path, links: Mapping[str, str]) -> None:
        doing = temporary_name(path)
        try:
            self._files.mkdir(doing)
            for name, digest_hex in links.items():
                self._files.make_folder((doing / name).parent)
                self._files.link(self._blobs.path(digest_hex), doing / name)
            for folder in _folders(doing, links):
                self._files.sync_dir(folder)
            self._files.rename(doing, path)
        except StoreError:
            with suppress(StoreError):
                if self._files.is_folder(doing):
                    self._files.remove_tree(doing)
            raise
        self._files.sync_dir(self._packs)

    def _relink(self, path: Path, links: Mapping[str, str]) -> None:
        for name, digest_hex in links.items():
            blob, place = self._blobs.path(digest_hex), path / name
            if self._is_same_file(blob, place):
                continue
            # A second name beside the parts, moved over the old one: the place is never empty.
            temporary = temporary_name(self._part / digest_hex)
            self._files.make_folder(self._part)
            self._files.make_folder(place.parent)
            self._files.link(blob, temporary)
            self._files.rename(temporary, place)
        # Also when all was in place: the flushes of an earlier attempt may have failed.
        for folder in _folders(path, links):
            self._files.sync_dir(folder)
        self._files.sync_dir(self._packs)

    def _is_same_file(self, one: Path, other: Path) -> bool:
        left, right = self._files.stat(one), self._files.stat(other)
        return left is not None and right is not None and left.st_ino == right.st_ino

    def _judge(self, path: Path, digest_hex: str) -> Damage | None:
        try:
            got = sha256(self._files, path)
        except StoreError:
            return "unreadable"
        if got is None:
            return "missing"
        return None if got == digest_hex else "altered"

    def _list(self, pack_hex: str) -> Path:
        return self._packs / f"{pack_hex}.files"

    def _last_used(self, pack_hex: str) -> int:
        found = self._files.stat(self.path(pack_hex))
        return 0 if found is None else int(found.st_mtime)


def _folders(root: Path, names: Iterable[str]) -> list[Path]:
    """Every folder of a pack, the deepest first."""
    folders = {folder for name in names for folder in (root / name).parents}
    inside = [folder for folder in folders if folder == root or root in folder.parents]
    return sorted(inside, key=lambda folder: len(folder.parts), reverse=True)
