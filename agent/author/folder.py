"""The folder of a pack: made beside its place and moved there whole; read back and verified."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.documents import codec
from agent.documents.manifest import MAX_MANIFEST_BYTES, Manifest, PackFile
from agent.errors import DigestMismatch, ModelRejected, UsageError
from agent.store.names import MANIFEST, SIGNATURE, check_names

_CHUNK = 1024 * 1024


class OpenedPack(msgspec.Struct, frozen=True):
    """A pack as it was read from a folder.

    Args:
        pack: Its id.
        directory: Where it lies.
        manifest: Its manifest.
        signed: Whether there is a signature beside it; whose, `verify` says.
    """

    pack: str
    directory: Path
    manifest: Manifest
    signed: bool


class Folder:
    """A pack in the making. Nothing is seen at its place before `replace_pack`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, PackFile] = {}

    @classmethod
    def beside(cls, out: Path) -> Folder:
        """Make an empty folder on the same file system as `out`.

        Raises:
            UsageError: There is no place for it.
        """
        path = out.absolute().parent / f".{out.name}.{secrets.token_hex(4)}"
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise UsageError(f"{path.parent}: {error.strerror}") from None
        return cls(path)

    def take(self, source: Path, name: str, *, exactly: bool = False) -> str:
        """Copy a file into the pack.

        Args:
            source: The file.
            name: Its name in the pack, changed where another file has it.
            exactly: Refuse rather than change: other files of the pack use the name.

        Returns:
            The name it got.
        """
        digest = digest_of(source)
        stem, dot, suffix = name.partition(".")
        count = 1
        while name in self._files and (exactly or self._files[name].digest != digest):
            if self._files[name].digest == digest:
                return name
            if exactly:
                raise ModelRejected(f"two different files of the pack are called {name!r}")
            count += 1
            name = f"{stem}-{count}{dot}{suffix}"
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
        self._files[name] = PackFile(digest_of(place), place.stat().st_size)
        return name

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the pack."""
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        self._files[name] = PackFile(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))

    def write_manifest(self, data: bytes) -> None:
        """Write the manifest, which is no file of the pack."""
        (self.path / MANIFEST).write_bytes(data)

    def files(self) -> dict[str, PackFile]:
        """Return what a manifest says of the files, sorted by name.

        Raises:
            PackError: A name is none that every device takes.
        """
        check_names(self._files)
        return dict(sorted(self._files.items()))

    def remove(self) -> None:
        """Remove the folder, if it is still here."""
        shutil.rmtree(self.path, ignore_errors=True)


def digest_of(path: Path) -> str:
    """Return `sha256:` and the digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def replace_pack(folder: Folder, out: Path, manifest: bytes, *, force: bool) -> None:
    """Move a finished pack to its place.

    Raises:
        UsageError: Something else is there: another pack, and `force` is not set, or no pack.
    """
    folder.write_manifest(manifest)
    target = out.absolute()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{out}: is no folder", hint="give a folder that does not exist yet")
    old = None
    if target.is_dir() and any(target.iterdir()):
        _check_replaceable(out, target, manifest, force=force)
        old = target.with_name(f"{folder.path.name}.old")
        target.rename(old)
    try:
        folder.path.rename(target)
    except OSError as error:
        if old is not None:
            with suppress(OSError):
                old.rename(target)
        raise UsageError(f"{out}: {error.strerror}") from None
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(out: Path, target: Path, manifest: bytes, *, force: bool) -> None:
    there = target / MANIFEST
    if not there.is_file():
        raise UsageError(
            f"{out}: is not empty and holds no pack", hint="give a folder that does not exist yet"
        )
    if not force and there.read_bytes() != manifest:
        raise UsageError(f"{out}: holds another pack", hint="--force replaces it")


def open_pack(directory: Path) -> OpenedPack:
    """Read a pack's manifest; its files are not looked at.

    Raises:
        UsageError: There is no pack.
        DocumentError: Its manifest is not what a manifest must be.
    """
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"{directory}: holds no pack ({MANIFEST}: {error.strerror})",
            hint="give the folder that `edgeward pack --out` made",
        ) from None
    manifest = codec.decode(data, Manifest, name=MANIFEST, max_bytes=MAX_MANIFEST_BYTES).value
    pack = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return OpenedPack(pack, directory, manifest, (directory / SIGNATURE).is_file())


def verify(opened: OpenedPack) -> list[str]:
    """Compare every file with the manifest.

    Returns:
        A sentence for each file that is missing, altered or not the manifest's.

    Raises:
        PackError: The manifest names a file that no pack may have.
    """
    files = opened.manifest.files
    check_names(files)
    wrong = []
    for name, promised in files.items():
        place = opened.directory / name
        if place.is_symlink() or not place.is_file():
            wrong.append(f"{name}: is missing")
        elif (size := place.stat().st_size) != promised.size:
            wrong.append(f"{name}: has {size} bytes, the manifest says {promised.size}")
        elif digest_of(place) != promised.digest:
            wrong.append(f"{name}: was altered; its digest is not the manifest's")
    extra = set(_names_below(opened.directory)) - set(files) - {MANIFEST, SIGNATURE}
    wrong += [f"{name}: is not in the manifest" for name in sorted(extra)]
    for variant in opened.manifest.variants:
        if variant.file not in files:
            wrong.append(f"variant {variant.name}: its file {variant.file} is not in the manifest")
    return wrong


def _names_below(directory: Path) -> list[str]:
    return [
        os.path.relpath(os.path.join(folder, name), directory)  # noqa: PTH118 faster than Path
        for folder, _, names in os.walk(directory)
        for name in names
    ]


def require_whole(opened: OpenedPack) -> None:
    """Refuse a pack that is not what its manifest says.

    Raises:
        DigestMismatch: A file is missing, altered or not the manifest's.
        PackError: The manifest names a file that no pack may have.
    """
    wrong = verify(opened)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise DigestMismatch(f"{opened.directory}: {wrong[0]}{more}", hint="pack it again")
