"""Packs in memory, for tests of how they arrive."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from agent.documents.manifest import Manifest, PackFile, Tensor, Tolerance, Variant
from agent.store.packs import PackStore
from agent.wire import blocks
from agent.wire.blocks import BlockServer


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Pack:
    """A pack in memory: its files and the manifest that lists them."""

    def __init__(self, files: dict[str, bytes], version: str = "1") -> None:
        self.files = files
        tensor = Tensor("x", "FP32", (1,))
        first = next(iter(files))
        manifest = Manifest(
            schema=1,
            name="model",
            version=version,
            inputs=(tensor,),
            outputs=(tensor,),
            variants=(Variant("a", first, "onnx", (tensor,), (tensor,), Tolerance(0)),),
            files={name: PackFile(digest_of(data), len(data)) for name, data in files.items()},
        )
        self.manifest = msgspec.json.encode(manifest)
        self.id = digest_of(self.manifest)

    @property
    def content(self) -> dict[str, bytes]:
        return {**self.files, blocks.MANIFEST_FILE: self.manifest}

    def server(self) -> BlockServer:
        content = self.content
        offered = {name: PackFile(digest_of(data), len(data)) for name, data in content.items()}
        return BlockServer(self.id, offered, lambda name, at, size: content[name][at : at + size])

    def write(self, folder: Path) -> Path:
        for name, data in self.content.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder


def assert_installed(store: PackStore, pack: Pack) -> None:
    assert store.has(pack.id)
    assert store.verify(pack.id) == ()
    for name, data in pack.files.items():
        assert (store.directory(pack.id) / name).read_bytes() == data
