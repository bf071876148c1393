"""Three models of the sizes that a benchmark needs: tabular, audio and image.

Seeded random weights: what they answer means nothing, what they cost does. Depth and width
follow the public networks of each kind (a small MLP; the raw-waveform convnet M5 of Dai et al.,
"Very deep convolutional neural networks for raw waveforms", ICASSP 2017, narrowed; MobileNetV1
0.5 of Howard et al., arXiv 1704.04861). Pre-processing is inside the graph, so a payload is the
input tensor's bytes. Medians of one run on one thread of an x86_64 machine, ONNX Runtime 1.32:
tab 5.7, kws 235, img 470 microseconds; other machines were not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.demo.onnx_graph import OnnxGraph

KEYWORDS, OBJECTS = 12, 10
# Output channels and stride of each depthwise-separable block: MobileNetV1, width 0.5.
MOBILENET_BLOCKS = (
    (32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2),
    (256, 1), (256, 1), (256, 1), (256, 1), (256, 1), (512, 2), (512, 1),
)  # fmt: skip


@dataclass(frozen=True)
class BenchModel:
    """One model to be measured.

    Args:
        name: `tab`, `kws` or `img`.
        file: The `.onnx` file.
        input_name: The only input.
        dtype: Of the input, in NumPy's words.
        shape: Of the input, the batch of 1 included.
        output_name: The only output, float32 (1, classes), rows that sum to one.
    """

    name: str
    file: Path
    input_name: str
    dtype: str
    shape: tuple[int, ...]
    output_name: str

    def sample(self, rng: np.random.Generator) -> NDArray[Any]:
        """An input in the range that its kind of sensor delivers."""
        dtype = np.dtype(self.dtype)
        if dtype.kind == "f":
            return rng.standard_normal(self.shape).astype(dtype)
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, self.shape, dtype=dtype, endpoint=True)


def build_models(folder: Path, seed: int = 11) -> dict[str, BenchModel]:
    """Write `tab.onnx`, `kws.onnx` and `img.onnx`; same seed, same bytes.

    Args:
        folder: Must exist.
        seed: Of the weights.
    """
    return {
        name: write(folder / f"{name}.onnx", np.random.default_rng([seed, number]))
        for number, (name, write) in enumerate(WRITERS.items())
    }


def _tab(path: Path, rng: np.random.Generator) -> BenchModel:
    """30 floats through 32 and 16 units to 3 classes."""
    net = _Net(path, "features", np.float32, (1, 30), rng)
    rows = net.relu(net.dense("features", 30, 32))
    rows = net.relu(net.dense(rows, 32, 16))
    return net.written(rows, 16, 3)


def _kws(path: Path, rng: np.random.Generator) -> BenchModel:
    """One second of 16 kHz int16 audio through four convolutions to 12 keywords."""
    net = _Net(path, "audio", np.int16, (1, 16_000), rng)
    signal = net.scaled("audio", 1 / 32768)
    signal = net.add("Unsqueeze", [signal, net.int64([1])])
    channels = 1
    for wide, kernel, stride in ((16, 80, 8), (32, 3, 2), (48, 3, 2), (64, 3, 2)):
        signal = net.relu(net.convolution(signal, channels, wide, [kernel], stride))
        channels = wide
    rows = net.add("ReduceMean", [signal], axes=[2], keepdims=0)
    return net.written(rows, channels, KEYWORDS)


def _img(path: Path, rng: np.random.Generator) -> BenchModel:
    """A 96 x 96 RGB picture (height, width, channel) through MobileNetV1 0.5 to 10 classes."""
    net = _Net(path, "image", np.uint8, (1, 96, 96, 3), rng)
    picture = net.add("Transpose", ["image"], perm=[0, 3, 1, 2])
    picture = net.scaled(picture, 1 / 127.5, offset=-1.0)
    picture = net.relu(net.convolution(picture, 3, 16, [3, 3], 2), top=6.0)
    channels = 16
    for wide, stride in MOBILENET_BLOCKS:
        picture = net.convolution(picture, channels, channels, [3, 3], stride, groups=channels)
        picture = net.convolution(net.relu(picture, top=6.0), channels, wide, [1, 1], 1)
        picture = net.relu(picture, top=6.0)
        channels = wide
    rows = net.add("ReduceMean", [picture], axes=[2, 3], keepdims=0)
    return net.written(rows, channels, OBJECTS)


WRITERS: dict[str, Callable[[Path, np.random.Generator], BenchModel]] = {
    "tab": _tab,
    "kws": _kws,
    "img": _img,
}


class _Net:
    """Layers with random weights on top of a graph; names are numbered."""

    def __init__(
        self, path: Path, source: str, dtype: type, shape: tuple[int, ...], rng: np.random.Generator
    ) -> None:
        self._path, self._rng = path, rng
        self._source, self._dtype, self._shape = source, np.dtype(dtype).name, shape
        self._graph = OnnxGraph(path.stem, source, dtype, shape)
        self._count = 0

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        return self._graph.add(op, inputs, self._name(op.lower()), **attributes)

    def int64(self, values: list[int]) -> str:
        return self._graph.constant(self._name("axes"), np.array(values, np.int64))

    def scaled(self, source: str, scale: float, offset: float = 0.0) -> str:
        """Integers to float32, times `scale`, plus `offset`."""
        values = self.add("Cast", [source], to=1)  # 1 is TensorProto.FLOAT
        values = self.add("Mul", [values, self._float(scale)])
        return self.add("Add", [values, self._float(offset)]) if offset else values

    def relu(self, source: str, top: float | None = None) -> str:
        if top is None:
            return self.add("Relu", [source])
        return self.add("Clip", [source, self._float(0.0), self._float(top)])

    def dense(self, rows: str, inputs: int, outputs: int) -> str:
        weights = self._weights((inputs, outputs), inputs)
        return self._graph.dense(rows, self._name("dense"), weights, np.zeros(outputs, np.float32))

    def convolution(
        self,
        source: str,
        inputs: int,
        outputs: int,
        kernel: list[int],
        stride: int,
        groups: int = 1,
    ) -> str:
        """Keeps the size but for the stride, as TensorFlow's "same" padding does."""
        shape = (outputs, inputs // groups, *kernel)
        weights = self._weights(shape, int(np.prod(shape[1:])))
        operands = [
            self._graph.constant(self._name("kernel"), weights),
            self._graph.constant(self._name("bias"), np.zeros(outputs, np.float32)),
        ]
        pads = [(size - 1) // 2 for size in kernel]
        strides = [stride] * len(kernel)
        return self.add("Conv", [source, *operands], pads=pads * 2, strides=strides, group=groups)

    def written(self, rows: str, inputs: int, classes: int) -> BenchModel:
        logits = self.dense(rows, inputs, classes)
        self._graph.add("Softmax", [logits], "scores", axis=1)
        self._graph.write(self._path, "scores", [1, classes])
        name = self._path.stem
        return BenchModel(name, self._path, self._source, self._dtype, self._shape, "scores")

    def _weights(self, shape: tuple[int, ...], fan_in: int) -> NDArray[np.float32]:
        """He initialisation: activations neither vanish nor blow up, however deep the net."""
        scale = np.sqrt(2 / fan_in)
        return np.asarray(self._rng.standard_normal(shape) * scale, np.float32)

    def _float(self, value: float) -> str:
        return self._graph.constant(self._name("value"), np.array(value, np.float32))

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"
