"""The benchmark's models run, look at their input, and are the same on every build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.models import MOBILENET_BLOCKS, BenchModel, build_models

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
# Table 1 of Howard et al., arXiv 1704.04861: channels and stride of each block at width 1.
PUBLISHED = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1)),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BenchModel]:
    return build_models(tmp_path_factory.mktemp("models"))


def _session(model: BenchModel) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(model.file), options, providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize(
    ("name", "payload_bytes"), [("tab", 120), ("kws", 32_000), ("img", 27_648)]
)
def test_the_answer_depends_on_the_payload(
    models: dict[str, BenchModel], name: str, payload_bytes: int
) -> None:
    model, rng = models[name], np.random.default_rng(1)
    session = _session(model)
    samples = [model.sample(rng) for _ in range(2)]
    assert samples[0].nbytes == payload_bytes
    first, second = (session.run(None, {model.input_name: sample})[0] for sample in samples)
    assert first.sum() == pytest.approx(1, abs=1e-5)
    assert np.abs(first - second).max() > 1e-4
    assert [output.name for output in session.get_outputs()] == [model.output_name]


def test_the_same_seed_gives_the_same_bytes(models: dict[str, BenchModel], tmp_path: Path) -> None:
    again = build_models(tmp_path)
    assert all(
        again[name].file.read_bytes() == model.file.read_bytes() for name, model in models.items()
    )


def test_the_page_names_the_width_of_the_network_for_pictures() -> None:
    width = MOBILENET_BLOCKS[0][0] / PUBLISHED[0][0]
    assert tuple((wide / width, stride) for wide, stride in MOBILENET_BLOCKS) == PUBLISHED
    (row,) = (line for line in PAGE.read_text().splitlines() if line.startswith("| img |"))
    assert row.endswith(f"MobileNetV1 {width} |")
