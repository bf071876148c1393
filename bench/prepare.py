"""Make models, packs and messages, in a process that ends: `python -m bench.prepare FOLDER`.

The benchmark itself must not hold NumPy or a runtime: it would share their pages with the systems
that it measures and so make them look smaller.

    FOLDER/models/tab-1.onnx …    for the scripts; what follows the hyphen is the version
    FOLDER/packs/tab-1/ …         for the agent
    FOLDER/messages/tab.bin …     for the load generator; load.c has the layout
    FOLDER/prepared.json          `Prepared`
"""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime

from agent.author.pack import pack
from agent.author.spec import Spec
from agent.documents.manifest import Pipeline
from bench.models import BenchModel, build_models

# Different messages of each model, each on a topic of its own.
KINDS = 16
INPUT_TOPIC = "bench/in/{}"
# The switch needs a second pack. Its weights are the same, so that answers can be checked.
VERSIONS = {"tab": ("1", "2"), "kws": ("1",), "img": ("1",)}
_RAW = Pipeline(decode={"codec": "raw"}, encode={"codec": "raw"})


class Prepared(msgspec.Struct, frozen=True):
    """What was made.

    Args:
        packs: Pack id by model and version, such as `tab-1`.
        payload_bytes: Of one message, by model.
    """

    packs: dict[str, str]
    payload_bytes: dict[str, int]


def prepare(folder: Path) -> Prepared:
    """Make everything below an empty folder."""
    for name in ("models", "packs", "messages", "drafts"):
        (folder / name).mkdir()
    packs: dict[str, str] = {}
    payload_bytes: dict[str, int] = {}
    for name, model in build_models(folder / "drafts").items():
        for version in VERSIONS[name]:
            file = folder / "models" / f"{name}-{version}.onnx"
            shutil.copyfile(model.file, file)
            spec = Spec(name=name, version=version, pipeline=Pipeline() if name == "tab" else _RAW)
            made = pack(file, folder / "packs" / f"{name}-{version}", spec=spec)
            packs[f"{name}-{version}"] = made.pack
        payload_bytes[name] = write_messages(folder / "messages" / f"{name}.bin", model)
    return Prepared(packs, payload_bytes)


def write_messages(path: Path, model: BenchModel) -> int:
    """Write seeded messages and their right answers; return the size of one payload in bytes."""
    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(str(model.file), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    parts = [struct.pack("<I", KINDS)]
    size = 0
    for kind in range(KINDS):
        sample = model.sample(rng)
        (scores,) = session.run(None, {model.input_name: sample})
        payload, id_at = sample.tobytes(), -1
        if model.name == "tab":
            payload, id_at = v2_request(model, sample.ravel().tolist())
        topic = INPUT_TOPIC.format(kind).encode()
        parts += [
            struct.pack("<IIiI", len(topic), len(payload), id_at, scores.size),
            topic,
            payload,
            scores.astype("<f4").tobytes(),
        ]
        size = max(size, len(payload))
    path.write_bytes(b"".join(parts))
    return size


def v2_request(model: BenchModel, values: list[float]) -> tuple[bytes, int]:
    """An Open Inference Protocol request, and where the eight digits of its id are."""
    tensor = {
        "name": model.input_name,
        "shape": model.shape,
        "datatype": "FP32",
        "data": [round(value, 5) for value in values],
    }
    payload = msgspec.json.encode({"id": "00000000", "inputs": [tensor]})
    return payload, payload.index(b"00000000")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (target / "prepared.json").write_bytes(msgspec.json.encode(prepare(target)))
