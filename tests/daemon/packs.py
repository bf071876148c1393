"""Packs in memory, for tests of how they arrive."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from agent.documents.manifest import Manifest, PackFile, Tensor, Tolerance, Variant
from agent.documents.pack_names import SIGNATURE
from agent.store.packs import PackStore
from agent.trust import signing
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
        self.signature: bytes | None = None

    def sign(self, key: EllipticCurvePrivateKey) -> None:
        digests = {name: digest_of(data) for name, data in self.content.items()}
        self.signature = signing.sign(digests, key, name="model")

    @property
    def content(self) -> dict[str, bytes]:
        signature = {SIGNATURE: self.signature} if self.signature is not None else {}
        return {**self.files, blocks.MANIFEST_FILE: self.manifest, **signature}

    def server(self) -> BlockServer:
        content = self.content
        offered = {name: PackFile(digest_of(data), len(data)) for name, data in content.items()}
        if SIGNATURE in offered:
            digest = blocks.signature_digest(self.id)
            offered[SIGNATURE] = PackFile(digest, offered[SIGNATURE].size)
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
