"""Small packs for the tests of the store, and a disk of any size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from agent.store.files import Files, Space
from agent.store.packs import PackStore
from tests.store.recorder import QuickFiles

BLOCK_BYTES = 64
QUOTA_BYTES = 1 << 20
PLENTY = Space(free_bytes=1 << 40, total_bytes=1 << 41)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class SamplePack:
    """A manifest (the store does not look into it) and the content of each file."""

    manifest: bytes
    contents: Mapping[str, bytes]

    @property
    def pack_id(self) -> str:
        return digest_of(self.manifest)

    @property
    def files(self) -> dict[str, tuple[str, int]]:
        return {name: (digest_of(data), len(data)) for name, data in self.contents.items()}


SHARED = b"labels of both versions"
OLD = SamplePack(b"manifest 1", {"model.onnx": b"old" * 50, "data/labels.txt": SHARED})
NEW = SamplePack(b"manifest 2", {"model.onnx": b"new" * 60, "data/labels.txt": SHARED})


class SizedFiles(QuickFiles):
    """The plain layer on a disk that claims to have so much room."""

    def __init__(self, space: Space = PLENTY) -> None:
        super().__init__()
        self.claimed = space

    def space(self, path: Path) -> Space:
        return self.claimed

    def leave(self, free_bytes: int) -> None:
        self.claimed = replace(self.claimed, free_bytes=free_bytes)


def store_at(root: Path, files: Files | None = None, quota_bytes: int = QUOTA_BYTES) -> PackStore:
    return PackStore(files or QuickFiles(), root, quota_bytes)


def receive(store: PackStore, data: bytes) -> None:
    """Deliver one file in blocks, going on where an earlier attempt stopped."""
    digest = digest_of(data)
    if store.has_blob(digest):
        return
    with store.begin_part(digest, len(data), BLOCK_BYTES) as part:
        for index in part.missing_blocks():
            part.write_block(index, data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
            if index == 1:
                part.flush()
        part.finish()


def deliver(store: PackStore, pack: SamplePack) -> Path:
    """Fetch and install a whole pack, as often as one likes."""
    store.add_manifest(pack.pack_id, pack.manifest)
    for name in store.missing(pack.files):
        receive(store, pack.contents[name])
    return store.install(pack.pack_id, pack.manifest, pack.files, signature=b"signed")


def is_whole(store: PackStore, pack: SamplePack) -> bool:
    """Whether a pack is installed with exactly the content it was delivered with."""
    if not store.has(pack.pack_id):
        return False
    folder = store.directory(pack.pack_id)
    right = (folder / "manifest.json").read_bytes() == pack.manifest and all(
        (folder / name).read_bytes() == data for name, data in pack.contents.items()
    )
    return right and store.verify(pack.pack_id) == ()
