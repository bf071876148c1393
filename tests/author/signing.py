"""A pack on disk that nobody has to run, for what looks at its files only."""

from __future__ import annotations

from pathlib import Path

from agent.author.folder import Folder
from agent.documents import codec
from agent.documents.manifest import Manifest, Tensor, Tolerance, Variant

FILES = {
    "model.onnx": b"weights of the one",
    "model.tflite": b"weights of the other",
    "selftest/000.json": b"{}",
}


def write_pack(place: Path, files: dict[str, bytes] | None = None, name: str = "pump") -> Path:
    """Write a pack as `edgeward pack` would, but for its contents."""
    place.mkdir()
    folder = Folder(place)
    for file, data in (files or FILES).items():
        folder.write(file, data)
    tensor = Tensor(name="x", datatype="FP32", shape=(1, 4))
    manifest = Manifest(
        schema=1,
        name=name,
        version="1.4.0",
        inputs=(tensor,),
        outputs=(tensor,),
        variants=tuple(
            Variant(
                name=file,
                file=file,
                format="onnx",
                inputs=(tensor,),
                outputs=(tensor,),
                tolerance=Tolerance(absolute=0.0),
            )
            for file in (files or FILES)
            if file.startswith("model")
        ),
        selftest=("selftest/000.json",),
        files=folder.files(),
    )
    folder.write_manifest(codec.encode(manifest))
    return place
