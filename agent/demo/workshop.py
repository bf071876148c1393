"""The demo's packs: three good ones, and two that a device must refuse."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from agent.author.pack import Packed, pack
from agent.author.spec import Spec
from agent.demo import physics
from agent.demo.fleet import THERMAL_WINDOW
from agent.demo.models import (
    ANOMALY_THRESHOLD,
    THERMAL_LABELS,
    THERMAL_UNITS,
    DemoModel,
    build_models,
)
from agent.documents.codec import convert


@dataclass(frozen=True)
class Workshop:
    """Everything there is to deploy; folders with a manifest each."""

    models: tuple[DemoModel, DemoModel, DemoModel]
    bearing_v1: Packed
    bearing_v2: Packed
    thermal: Packed
    corrupted: Path
    lying: Path


def make_packs(folder: Path, seed: int) -> Workshop:
    """Train the models, pack them, and spoil two copies."""
    models = build_models(folder, seed)
    first, second, thermal = models
    bearing: dict[str, object] = {
        "task": "classification",
        "labels": list(physics.CONDITIONS),
        "pipeline": {"post": [{"step": "argmax", "keep": True}]},
        "inputs": [{"name": first.input_name, "unit": first.input_unit}],
        "card": {"intended_use": "The demo's machines", "licence": "Apache-2.0"},
    }
    packs = folder / "packs"
    one = _pack(first, packs / "bearing-1", bearing)
    two = _pack(second, packs / "bearing-2", bearing)
    heat = _pack(thermal, packs / "thermal-1", _thermal_spec(thermal))
    return Workshop(
        models,
        one,
        two,
        heat,
        _corrupt(two.directory, packs / "corrupted"),
        _lie(two.directory, packs / "lying"),
    )


def _thermal_spec(model: DemoModel) -> dict[str, object]:
    channels = list(physics.THERMAL_CHANNELS)
    return {
        "task": "anomaly detection",
        "inputs": [
            {
                "name": model.input_name,
                "datatype": "FP32",
                "shape": [len(channels)],
                "unit": ", ".join(THERMAL_UNITS),
                "low": 1.0,
                "high": 80.0,
            }
        ],
        "pipeline": {
            "decode": {"codec": "features", "fields": channels},
            "window": {"kind": "sliding", "size": THERMAL_WINDOW},
            "post": [
                {
                    "step": "threshold",
                    "input": model.output_names[0],
                    "threshold": ANOMALY_THRESHOLD,
                    "labels": list(THERMAL_LABELS),
                }
            ],
        },
    }


def _pack(model: DemoModel, out: Path, spec: dict[str, object]) -> Packed:
    checked = convert(spec, Spec, name="model.toml").value
    return pack(model.file, out, spec=checked, name=model.name, version=model.version)


def _corrupt(source: Path, out: Path) -> Path:
    """Promise a new model file, and hold one that differs from it in one bit, as a bad disk or a
    bad neighbour would make it."""
    shutil.copytree(source, out)
    model = next(out.glob("*.onnx"))
    promised = bytearray(model.read_bytes())
    promised[len(promised) // 2] ^= 0x01
    _promise(out, model.name, bytes(promised), version="2.0.2")
    promised[len(promised) // 2] ^= 0x10
    _rewrite(model, bytes(promised))
    return out


def _lie(source: Path, out: Path) -> Path:
    """Promise other answers than the model gives; every digest is right."""
    shutil.copytree(source, out)
    manifest = json.loads((out / "manifest.json").read_bytes())
    name = manifest["selftest"][0]
    case = json.loads((out / name).read_bytes())
    for tensor in case["outputs"]:
        if tensor["datatype"] == "FP32":
            size = len(base64.b64decode(tensor["data"]))
            tensor["data"] = base64.b64encode(bytes(size)).decode()
    _promise(out, name, json.dumps(case).encode(), version="2.0.1")
    return out


def _promise(folder: Path, name: str, data: bytes, *, version: str) -> None:
    """Put a file into a pack, and into its manifest."""
    _rewrite(folder / name, data)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    manifest["files"][name] = {"digest": digest, "size": len(data)}
    manifest["version"] = version
    _rewrite(folder / "manifest.json", json.dumps(manifest).encode())


def _rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)
