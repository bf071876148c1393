"""Makes deltas from the files of older packs, and leaves out those that save too little."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from agent.author.chunking import LISTED_BYTES
from agent.author.folder import Folder, OpenedPack, require_whole
from agent.control.shipping import choose, is_worth
from agent.documents.manifest import Delta, Manifest, PackFile, delta_files
from agent.wire.chunks import bytes_of, decode_list, ranges_of
from agent.wire.delta import METHOD, WIDTHS, Shape, encode_block

MAX_BASES = 8
# Blocks looked at, spread over the file, to find the width and the codec.
SAMPLED_BLOCKS = 4
# lzma takes a device three times as long as zlib; it must be worth that.
LZMA_SHARE = 0.95
# What a sample says of the whole may be wrong by so much.
_DOUBT = 0.9


class Saving(msgspec.Struct, frozen=True):
    """How much of one file must be sent to a device that has an older one.

    Attributes:
        file: Of the new pack.
        base: The older pack's id.
        version: Its version.
        whole_bytes: The file.
        chunks_bytes: Its missing chunks; None where the older pack lists none.
        delta_bytes: The delta, also one that was left out; an estimate where none was made.
        kept: Whether the delta is in the pack.
    """

    file: str
    base: str
    version: str
    whole_bytes: int
    chunks_bytes: int | None
    delta_bytes: int
    kept: bool

    @property
    def wire_bytes(self) -> int:
        """What a device with the older pack will fetch."""
        deltas = [(0, self.delta_bytes)] if self.kept else []
        return choose(self.whole_bytes, self.chunks_bytes, deltas)[0].wire_bytes


def add(
    folder: Folder, manifest: Manifest, bases: Sequence[OpenedPack]
) -> tuple[Manifest, tuple[Saving, ...]]:
    """Write the useful deltas into a pack in the making.

    Args:
        folder: The pack's, with all files in it.
        manifest: Its manifest, with chunk lists.
        bases: Older packs that devices may have.

    Returns:
        The manifest with the deltas, and what each of them saves.

    Raises:
        DigestMismatch: An older pack is not what its manifest says.
    """
    savings: list[Saving] = []
    files = dict(manifest.files)
    for base in bases:
        require_whole(base)
        for name, old_name in _pairs(manifest, base.manifest):
            made = _Making(folder, files[name], name, base, old_name)
            saving, delta = made.run()
            savings.append(saving)
            if delta is not None:
                deltas = (*files[name].deltas, delta)
                files[name] = msgspec.structs.replace(files[name], deltas=deltas)
    written = {name: file for name, file in folder.files().items() if name not in files}
    files = dict(sorted({**files, **written}.items()))
    return msgspec.structs.replace(manifest, files=files), tuple(savings)


def _pairs(new: Manifest, old: Manifest) -> Iterator[tuple[str, str]]:
    """Each large file of the new pack that changed, and what it was in the old one."""
    known = {file.digest for file in old.files.values()}
    no_base = delta_files(old) | set(old.selftest)
    for name, file in new.files.items():
        if file.size <= LISTED_BYTES or file.digest in known or name in new.selftest:
            continue
        old_name = name if name in old.files else _counterpart(new, old, name)
        if old_name is not None and old_name not in no_base and old.files[old_name].size:
            yield name, old_name


def _counterpart(new: Manifest, old: Manifest, name: str) -> str | None:
    """The file of the old pack that had another name: of the same variant, or the only such one."""
    for variant in new.variants:
        if variant.file == name:
            same = (
                v.file for v in old.variants if (v.name, v.format) == (variant.name, variant.format)
            )
            return next(same, None)
    models = {variant.file for variant in old.variants} | delta_files(old)
    beside = [
        one
        for one, file in old.files.items()
        if file.size > LISTED_BYTES and one not in models and Path(one).suffix == Path(name).suffix
    ]
    return beside[0] if len(beside) == 1 else None


class _Making:
    """One delta."""

    def __init__(
        self, folder: Folder, file: PackFile, name: str, base: OpenedPack, old_name: str
    ) -> None:
        self._folder = folder
        self._file = file
        self._name = name
        self._base = base
        self._old_name = old_name

    def run(self) -> tuple[Saving, Delta | None]:
        old = self._base.manifest.files[self._old_name]
        chunks_bytes = missing_bytes(self._file, self._base.manifest)
        other = choose(self._file.size, chunks_bytes, ())[0].wire_bytes
        new_path, old_path = self._folder.path / self._name, self._base.directory / self._old_name
        with _mapped(new_path) as new_data, _mapped(old_path) as old_data:
            blocks = _Blocks(new_data, old_data)
            shape, size = blocks.best_shape()
            delta = None
            if is_worth(int(size * _DOUBT), other):
                packed = blocks.encode(shape)
                size = len(packed)
                if is_worth(size, other):
                    delta = self._write(packed, old, shape)
        manifest = self._base.manifest
        saving = Saving(
            self._name,
            self._base.pack,
            manifest.version,
            self._file.size,
            chunks_bytes,
            size,
            delta is not None,
        )
        return saving, delta

    def _write(self, packed: bytes, old: PackFile, shape: Shape) -> Delta:
        short = (digest.removeprefix("sha256:")[:12] for digest in (old.digest, self._file.digest))
        name = f"delta/{'-'.join(short)}.xp"
        self._folder.write(name, packed)
        return Delta(old.digest, METHOD, shape.width, shape.codec, shape.block, name)


def missing_bytes(new: PackFile, old: Manifest) -> int | None:
    """What a device with the old pack must fetch of a file by its chunk list; None without one."""
    chunks = decode_list(new.chunks, new.size)
    held = {
        chunk.digest for file in old.files.values() for chunk in decode_list(file.chunks, file.size)
    }
    if not chunks or not held:
        return None
    return bytes_of(ranges_of(chunk for chunk in chunks if chunk.digest not in held))


class _Blocks:
    """Two files, block by block."""

    def __init__(self, new: mmap.mmap, old: mmap.mmap) -> None:
        self._new = new
        self._old = old

    def best_shape(self) -> tuple[Shape, int]:
        """The shape that makes the smallest delta, and how large that will be about."""
        block = Shape(1, "zlib").block
        starts = range(0, len(self._new), block)
        sample = starts[:: max(1, len(starts) // SAMPLED_BLOCKS)]
        sampled = sum(min(block, len(self._new) - start) for start in sample)

        def size(shape: Shape) -> int:
            return sum(len(self._one(start, shape)) for start in sample)

        zlibs = {shape: size(shape) for shape in (Shape(width, "zlib") for width in WIDTHS)}
        best = min(zlibs, key=zlibs.__getitem__)
        lzma = Shape(best.width, "lzma")
        lzma_size = size(lzma)
        if lzma_size <= LZMA_SHARE * zlibs[best]:
            return lzma, lzma_size * len(self._new) // sampled
        return best, zlibs[best] * len(self._new) // sampled

    def encode(self, shape: Shape) -> bytes:
        starts = range(0, len(self._new), shape.block)
        return b"".join(self._one(start, shape) for start in starts)

    def _one(self, start: int, shape: Shape) -> bytes:
        end = start + shape.block
        return encode_block(self._new[start:end], self._old[start:end], shape)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data
