"""Bytes on the wire for kinds of model change: `python -m tests.scenarios.wire_bytes`.

Each change is packed by `edgeward pack --delta-from`, offered by a web server, and fetched by a
device's fetch process that has the old pack: what is counted is what the server sent. The table
of docs/delivery.md comes from here. Tools that are in PATH (zstd, bsdiff, xdelta3) stand beside.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from agent.author.folder import open_pack
from agent.author.pack import Packed, pack
from agent.documents import codec
from agent.documents.manifest import PackFile, delta_files
from tests.daemon.http_source import Answer, Asked, HttpSource, ranged

MODEL = "model.onnx"
LAYERS = (64, 2048, 1024, 10)
OTHER_LAYERS = (64, 1536, 1536, 10)
SAMPLES, CLASSES, BATCH = 1800, 10, 64
# Moves weights too that no sample reaches, as is usual today.
DECAY = 0.01

Array = npt.NDArray[np.float32]
Weights = list[tuple[Array, Array]]


# The models: a perceptron that learns to tell ten kinds of 8 x 8 pictures apart.


@dataclass(frozen=True)
class Pictures:
    """Prototypes with noise, in 17 shades as the digits that everybody knows."""

    rows: Array
    classes: npt.NDArray[np.int64]

    @classmethod
    def made(cls) -> Pictures:
        rng = np.random.default_rng(1)
        prototypes = rng.uniform(0, 16, (CLASSES, LAYERS[0]))
        classes = rng.integers(0, CLASSES, SAMPLES)
        rows = prototypes[classes] + rng.normal(0, 6, (SAMPLES, LAYERS[0]))
        return cls((np.clip(rows, 0, 16) / 16).astype(np.float32), classes)


def untrained(layers: Sequence[int], seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return [
        (
            rng.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32),
            np.zeros(outputs, np.float32),
        )
        for inputs, outputs in pairwise(layers)
    ]


def trained(
    weights: Weights, pictures: Pictures, *, rate: float, passes: int, seed: int, first: int = 0
) -> Weights:
    """Return weights after some passes of AdamW; layers before `first` stay as they are."""
    weights = [(matrix.copy(), bias.copy()) for matrix, bias in weights]
    rng = np.random.default_rng(seed)
    moments = [[(np.zeros_like(v), np.zeros_like(v)) for v in layer] for layer in weights]
    step = 0
    for _ in range(passes):
        order = rng.permutation(SAMPLES)
        for start in range(0, SAMPLES, BATCH):
            step += 1
            chosen = order[start : start + BATCH]
            gradients = _gradients(weights, pictures.rows[chosen], pictures.classes[chosen])
            for layer in range(first, len(weights)):
                for value, gradient, (mean, square) in zip(
                    weights[layer], gradients[layer], moments[layer], strict=True
                ):
                    mean += 0.1 * (gradient - mean)
                    square += 0.001 * (gradient**2 - square)
                    scaled = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
                    value -= rate * (scaled + DECAY * value)
    return weights


def _gradients(
    weights: Weights, rows: Array, classes: npt.NDArray[np.int64]
) -> list[tuple[Array, Array]]:
    activations = [rows]
    for matrix, bias in weights:
        activations.append(np.maximum(activations[-1] @ matrix + bias, 0))
    logits = activations[-2] @ weights[-1][0] + weights[-1][1]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = odds / odds.sum(axis=1, keepdims=True)
    error[np.arange(len(rows)), classes] -= 1
    error = (error / len(rows)).astype(np.float32)
    gradients: list[tuple[Array, Array]] = []
    for index in range(len(weights) - 1, -1, -1):
        active = activations[index]
        gradients.insert(0, (active.T @ error, error.sum(axis=0)))
        if index:
            error = (error @ weights[index][0].T) * (active > 0)
    return gradients


def onnx_of(weights: Weights, *, names: str = "layer{}.{}", backwards: bool = False) -> bytes:
    """Return the model; another exporter has other names, and another order of the tensors."""
    from onnx import TensorProto, helper, numpy_helper

    tensors, nodes, last = [], [], "x"
    for index, (matrix, bias) in enumerate(weights):
        called = [names.format(index, part) for part in ("weight", "bias")]
        tensors += [
            numpy_helper.from_array(value, name)
            for value, name in zip((matrix, bias), called, strict=True)
        ]
        end = index == len(weights) - 1
        out = "y" if end else names.format(index, "out")
        gemm = out if end else names.format(index, "sum")
        nodes.append(helper.make_node("Gemm", [last, *called], [gemm]))
        if not end:
            nodes.append(helper.make_node("Relu", [gemm], [out]))
        last = out
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", LAYERS[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES])],
        tensors[::-1] if backwards else tensors,
    )
    opset = [helper.make_opsetid("", 17)]
    made: bytes = helper.make_model(graph, ir_version=8, opset_imports=opset).SerializeToString()
    return made


def quantised(model: bytes) -> bytes:
    """Return the model with 8-bit weights."""
    from onnxruntime.quantization import quantize_dynamic

    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "a.onnx", Path(folder) / "b.onnx"
        before.write_bytes(model)
        quantize_dynamic(before, after)
        return after.read_bytes()


def changes(
    passes: int, layers: Sequence[int] = LAYERS, others: Sequence[int] = OTHER_LAYERS
) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield each kind of change: its name, the old model and the new one."""
    pictures = Pictures.made()
    base = trained(untrained(layers, 1), pictures, rate=1e-3, passes=passes, seed=1)

    def tuned(rate: float, first: int = 0) -> Weights:
        return trained(base, pictures, rate=rate, passes=3, seed=2, first=first)

    small, old = onnx_of(tuned(1e-5)), onnx_of(base)
    other = trained(untrained(others, 3), pictures, rate=1e-3, passes=passes, seed=3)
    yield "last layer retrained", old, onnx_of(tuned(1e-3, first=len(layers) - 2))
    yield "fine-tuned, rate 1e-5", old, small
    yield "fine-tuned, rate 1e-3", old, onnx_of(tuned(1e-3))
    yield (
        "exported again, other names and order",
        old,
        onnx_of(base, names="/m/{}/{}", backwards=True),
    )
    yield "quantised: FP32 to INT8", old, quantised(old)
    yield "INT8, fine-tuned, rate 1e-5", quantised(old), quantised(small)
    yield "new architecture", old, onnx_of(other)


# The device.

_DEVICE = """
import json, sys, time
from pathlib import Path
from agent.daemon import fetch_http
from agent.daemon.fetch_messages import Ask
from agent.daemon.fetcher import Receiver
from agent.store.files import Files
from agent.store.packs import PackStore

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

url, root, sparing, asked = sys.argv[1:]
store = PackStore(Files(), Path(root), 1 << 32)
receiver = Receiver(store, fetch_http.HttpFiles(url), lambda here: None, sparing=sparing == "yes")
pack, files = json.loads(asked)
data = receiver.small("manifest.json")
store.add_manifest(pack, data)
before, began = peak(), time.process_time()
for name, (digest, size) in files.items():
    if not store.has_blob(digest):
        receiver.file(Ask(pack, name, digest, size))
spent, grown = time.process_time() - began, peak() - before
store.install(pack, data, {name: tuple(file) for name, file in files.items()})
print(json.dumps([spent, grown]))
"""


@dataclass(frozen=True)
class Fetched:
    """What a fetch took: bytes that the server sent, the device's CPU time and memory."""

    wire_bytes: int
    cpu_s: float
    memory_bytes: int
    way: str = ""


def fetched(packed: Packed, root: Path, *, sparing: bool = True) -> Fetched:
    """Bring a pack to the device whose store is at `root`, by a process of its own."""

    def play(asked: Asked) -> Answer:
        path = packed.directory / asked.path.removeprefix("/")
        return ranged(path.read_bytes(), asked, ETag='"v1"') if path.is_file() else Answer(404)

    deltas = delta_files(packed.manifest)
    files = {
        name: (file.digest, file.size)
        for name, file in packed.manifest.files.items()
        if name not in deltas
    }
    with HttpSource(play) as source:
        words = [source.url, str(root), "yes" if sparing else "no"]
        done = subprocess.run(
            [sys.executable, "-c", _DEVICE, *words, json.dumps([packed.pack, files])],
            capture_output=True,
            check=True,
            timeout=300,
        )
    spent, grown = json.loads(done.stdout)
    return Fetched(source.sent_bytes, spent, grown, _way(source.asked))


def _way(asked: Sequence[Asked]) -> str:
    if any(one.path.startswith("/delta/") for one in asked):
        return "delta"
    return "chunks" if any("Range" in one.headers for one in asked) else "whole"


# Tools that are known for this.

_LAUNCHER = (
    "import os, sys; pid = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:]);"
    "_, status, used = os.wait4(pid, 0);"
    "print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024); sys.exit(status != 0)"
)
Words = Callable[[Path, Path, Path], list[str]]
TOOLS: dict[str, tuple[str, Words, Words]] = {
    "zstd --patch-from": (
        "zstd",
        lambda old, new, out: [
            *("zstd", "-q", "-f", "-19", "--long=27", f"--patch-from={old}", str(new)),
            *("-o", str(out)),
        ],
        lambda old, out, made: [
            *("zstd", "-q", "-f", "-d", "--long=27", f"--patch-from={old}", str(out)),
            *("-o", str(made)),
        ],
    ),
    "bsdiff": (
        "bsdiff",
        lambda old, new, out: ["bsdiff", str(old), str(new), str(out)],
        lambda old, out, made: ["bspatch", str(old), str(made), str(out)],
    ),
    "xdelta3": (
        "xdelta3",
        lambda old, new, out: ["xdelta3", "-e", "-f", "-9", "-s", str(old), str(new), str(out)],
        lambda old, out, made: ["xdelta3", "-d", "-f", "-s", str(old), str(out), str(made)],
    ),
}


def by_tool(name: str, old: bytes, new: bytes) -> Fetched:
    """What a tool's patch has, and what applying it takes (8 MB of its memory are the launcher)."""
    _, make, apply = TOOLS[name]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / part for part in ("old", "new", "patch", "made")]
        paths[0].write_bytes(old)
        paths[1].write_bytes(new)
        subprocess.run(make(*paths[:3]), check=True, capture_output=True, timeout=600)
        words = apply(paths[0], paths[2], paths[3])
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, *words],
            check=True,
            capture_output=True,
            timeout=600,
        )
        if paths[3].read_bytes() != new:
            raise RuntimeError(f"{name} did not give the new file")
        spent, memory = done.stdout.split()
        return Fetched(paths[2].stat().st_size, float(spent), int(memory))


# The table.


def packed_as(folder: Path, model: bytes, version: str, *bases: Path) -> Packed:
    folder.mkdir(parents=True)
    (folder / MODEL).write_bytes(model)
    out = folder / "pack"
    return pack(
        folder / MODEL, out, name="digits", version=version, unchecked=True, delta_from=bases
    )


def without(packed: Packed, folder: Path, **less: Any) -> Packed:
    """The same pack with less said of its model: no list, or no delta."""
    shutil.copytree(packed.directory, folder)
    manifest = packed.manifest
    file: PackFile = msgspec.structs.replace(manifest.files[MODEL], **less)
    manifest = msgspec.structs.replace(manifest, files={**manifest.files, MODEL: file})
    (folder / "manifest.json").write_bytes(codec.encode(manifest))
    opened = open_pack(folder)
    return Packed(opened.pack, folder, opened.manifest)


def row(name: str, old: bytes, new: bytes, folder: Path) -> list[str]:
    """Measure one change; the cells of its row."""
    before = packed_as(folder / "old", old, "1")
    after = packed_as(folder / "new", new, "2", before.directory)
    whole = fetched_onto(before, without(after, folder / "bare", chunks=None, deltas=()), folder)
    taken = fetched_onto(before, after, folder)
    (saving,) = after.savings or (None,)
    cells = [name, _kb(len(new))]
    if saving is None:
        cells += ["0", "0"]
    else:
        chunks, delta = saving.chunks_bytes, saving.delta_bytes
        cells += ["-" if chunks is None else _kb(chunks)]
        cells += [_kb(delta) if saving.kept else f"({_kb(delta)})"]
    cells += [f"**{_kb(taken.wire_bytes)}** {taken.way}", _cost(taken), _cost(whole)]
    for tool, (program, _, _) in TOOLS.items():
        if shutil.which(program):
            patch = by_tool(tool, old, new)
            cells += [f"{_kb(patch.wire_bytes)} ({_cost(patch)})"]
    return cells


def fetched_onto(before: Packed, after: Packed, folder: Path) -> Fetched:
    root = folder / f"store-{after.directory.parent.name}-{after.directory.name}"
    fetched(before, root)
    return fetched(after, root)


def _kb(size: int) -> str:
    return f"{size / 1000:,.0f}".replace(",", " ")


def _cost(one: Fetched) -> str:
    return f"{one.cpu_s:.2f} s, {one.memory_bytes / 1e6:.1f} MB"


def headings() -> list[str]:
    tools = [tool for tool, (program, _, _) in TOOLS.items() if shutil.which(program)]
    return [
        "change",
        "whole",
        "chunks",
        "delta",
        "sent",
        "device",
        "device, whole",
        *tools,
    ]


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table, sizes in thousands of bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=8, help="Of the first training.")
    parser.add_argument("--only", default="", help="A word in the change's name.")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    print(line(headings()))
    print(line(["---"] * len(headings())))
    for name, old, new in changes(options.passes):
        if options.only in name:
            with tempfile.TemporaryDirectory(prefix="edgeward-wire-") as folder:
                print(line(row(name, old, new, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
