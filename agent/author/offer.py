"""A pack on a workstation's disk, checked and ready to be offered to devices."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from agent.documents import codec
from agent.documents.manifest import MAX_MANIFEST_BYTES, Manifest, PackFile, delta_files
from agent.documents.pack_names import SIGNATURE
from agent.errors import DigestMismatch, PackError, UsageError
from agent.store.names import check_names
from agent.wire.blocks import MANIFEST_FILE, BlockServer, signature_digest

CHUNK_BYTES = 1 << 20


class Offer(msgspec.Struct, frozen=True):
    """One pack: its id, its manifest, and every file that a device may ask for.

    `files` holds `manifest.json` too, and `model.sig` where there is one; sizes are in bytes.
    """

    directory: Path
    id: str
    manifest: Manifest
    files: Mapping[str, PackFile]

    @property
    def total_bytes(self) -> int:
        """What a device that has nothing yet will fetch; equal files are fetched once."""
        deltas = delta_files(self.manifest)
        files = {file.digest: file.size for name, file in self.files.items() if name not in deltas}
        return sum(files.values())

    def server(self) -> BlockServer:
        """What answers the requests of devices, reading from the disk."""
        return BlockServer(self.id, self.files, self.read)

    def read(self, name: str, offset: int, length: int) -> bytes:
        with (self.directory / name).open("rb") as file:
            file.seek(offset)
            return file.read(length)


def open_pack(directory: Path, *, check: bool = True) -> Offer:
    """Read a pack's directory.

    Args:
        directory: What `edgeward pack` has written.
        check: Read every file and compare it with the manifest.

    Raises:
        UsageError: There is no pack.
        DocumentError: Its manifest is none.
        PackError: A name is refused, or a file is missing.
        DigestMismatch: A file is not the one that the manifest lists.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise UsageError(
            f"{directory} holds no pack: there is no {MANIFEST_FILE}",
            hint="make one with `edgeward pack MODEL --out DIR`",
        )
    data = path.read_bytes()
    decoded = codec.decode(data, Manifest, name=str(path), max_bytes=MAX_MANIFEST_BYTES)
    files = decoded.value.files
    check_names(files)
    if check:
        for name, promised in files.items():
            _check(directory / name, promised)
    pack_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
    own = {MANIFEST_FILE: PackFile(pack_id, len(data))}
    signature = directory / SIGNATURE
    if signature.is_file():
        own[SIGNATURE] = PackFile(signature_digest(pack_id), signature.stat().st_size)
    return Offer(directory, pack_id, decoded.value, {**files, **own})


def _check(path: Path, promised: PackFile) -> None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise PackError(f"{path} cannot be read: {error.strerror}", hint="pack it again") from None
    if f"sha256:{digest.hexdigest()}" != promised.digest:
        raise DigestMismatch(
            f"{path} is not the file that the manifest lists", hint="pack it again"
        )
