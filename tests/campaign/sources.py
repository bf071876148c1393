"""The valid models that a campaign starts from, each in a pack with its golden answers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from agent.author.pack import pack
from agent.documents import codec
from agent.documents.manifest import MAX_MANIFEST_BYTES, Manifest, PackFile, SelfTestCase, Variant
from agent.errors import ModelRejected
from tests.campaign.mutations import Origin, weight_of

_MAX_CASE_BYTES = 64 * 1024 * 1024


class Source(msgspec.Struct, frozen=True):
    """A valid model and the folder of its pack."""

    name: str
    directory: str

    def manifest(self) -> Manifest:
        data = (Path(self.directory) / "manifest.json").read_bytes()
        return codec.decode(data, Manifest, name="manifest", max_bytes=MAX_MANIFEST_BYTES).value

    def variant(self) -> Variant:
        return self.manifest().variants[0]

    def data(self) -> bytes:
        return (Path(self.directory) / self.variant().file).read_bytes()

    def case(self) -> SelfTestCase:
        """Return the first case of its self-test."""
        data = (Path(self.directory) / self.manifest().selftest[0]).read_bytes()
        return codec.decode(data, SelfTestCase, name="case", max_bytes=_MAX_CASE_BYTES).value

    def origin(self) -> Origin:
        data = self.data()
        return Origin(self.name, self.variant().format, data, weight_of(len(data)))


def shared_files(folder: Path) -> dict[str, Path]:
    """Return the valid models of a folder with an `index.json`, by name."""
    index = json.loads((folder / "index.json").read_text())
    return {entry["name"]: folder / entry["file"] for entry in index["models"]}


def make_sources(files: dict[str, Path], folder: Path) -> list[Source]:
    """Pack models, two at a time; takes a second or two each.

    Each ONNX model is also taken in ONNX Runtime's own format. A model that only runs on hardware
    that is not here gets a made-up self-test.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as threads:
        made = threads.map(lambda item: _packed(item[1], folder / item[0]), files.items())
        packs = dict(zip(files, made, strict=True))
        twins = {f"{n}_ort": path for n, path in packs.items() if files[n].suffix == ".onnx"}
        for path in threads.map(lambda item: _ort_twin(item[1], folder / item[0]), twins.items()):
            packs[path.name] = path
    return [Source(name, str(path)) for name, path in packs.items()]


def _ort_twin(directory: Path, out: Path) -> Path:
    """Copy the pack of an ONNX model, with the model converted; its golden answers stay."""
    shutil.copytree(directory, out, dirs_exist_ok=True)
    source = Source(out.name, str(out))
    manifest, variant = source.manifest(), source.variant()
    model = _as_ort(out / variant.file, out / "model.ort").read_bytes()
    digest = f"sha256:{hashlib.sha256(model).hexdigest()}"
    told = msgspec.structs.replace(
        manifest,
        variants=(msgspec.structs.replace(variant, file="model.ort", format="ort"),),
        files={**manifest.files, "model.ort": PackFile(digest=digest, size=len(model))},
    )
    (out / "manifest.json").write_bytes(codec.encode(told))
    return out


def _as_ort(model: Path, out: Path) -> Path:
    """Have ONNX Runtime write a model in its own format, in a child of its own."""
    script = (
        "import sys, onnxruntime\n"
        "options = onnxruntime.SessionOptions()\n"
        "options.optimized_model_filepath = sys.argv[2]\n"
        "options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC\n"
        "options.add_session_config_entry('session.save_model_format', 'ORT')\n"
        "onnxruntime.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])\n"
    )
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", script, str(model), str(out)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return out


def _packed(model: Path, out: Path) -> Path:
    try:
        return pack(model, out, force=True).directory
    except ModelRejected:
        return pack(model, out, force=True, unchecked=True).directory


def forced(source: Source, folder: Path, data: bytes, digest: str) -> tuple[Path, Variant]:
    """Put other bytes in place of a model, in a pack that promises just these.

    Args:
        source: The model that they were made from; all but the file's size and digest stays.
        folder: A copy of its pack.
        data: The bytes.
        digest: Theirs.

    Returns:
        The model file, and its variant.
    """
    manifest = source.manifest()
    variant = manifest.variants[0]
    (folder / variant.file).write_bytes(data)
    files = {**manifest.files, variant.file: PackFile(digest=digest, size=len(data))}
    told = msgspec.structs.replace(manifest, files=files)
    (folder / "manifest.json").write_bytes(codec.encode(told))
    return folder / variant.file, variant
