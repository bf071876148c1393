"""Qualification: the self-test through the whole chain, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from agent.documents.manifest import (
    CaseTensor,
    Pipeline,
    SelfTestCase,
    Tensor,
    Tolerance,
    Window,
)
from agent.errors import MemoryLimit, SelfTestFailed, WorkerError
from agent.wire.worker import Measure
from agent.worker.probe import WARM_UP_RUNS, Bench
from tests.runtimes import models
from tests.worker.conftest import Start
from tests.worker.packs import make_pack, v2

X, Y = Tensor("x", "FP32", (1, 4)), Tensor("y", "FP32", (1, 4))


def case(*rows: Sequence[float], expected: Sequence[float]) -> SelfTestCase:
    payloads = tuple(v2({"x": ("FP32", [1, 4], row)}) for row in rows)
    data = np.array(expected, np.float32).tobytes()
    return SelfTestCase(
        schema=1,
        payloads=payloads,
        outputs=(CaseTensor(name="y", datatype="FP32", shape=(1, 4), data=data),),
    )


GOOD = case([-1, 2, -3, 4], expected=[0, 2, 0, 4])


def pack_with(folder: Path, *cases: SelfTestCase, absolute: float = 1e-5) -> Path:
    return make_pack(
        folder,
        models.relu_onnx(),
        "onnx",
        [X],
        [Y],
        cases=cases,
        tolerance=Tolerance(absolute=absolute),
    )


def test_a_good_candidate_is_measured(start: Start, tmp_path: Path) -> None:
    near = case([1, 2, 3, 4], expected=[1, 2, 3, 4.25])
    probed = start(pack_with(tmp_path, GOOD, near, absolute=0.5), "onnx").probe()
    assert probed.cases == 2
    assert probed.max_deviation == pytest.approx(0.25)
    assert 0 < probed.p50_ms < 100
    assert probed.message_ms is not None
    assert 0 < probed.message_ms < 100
    assert 10e6 < probed.peak_memory_bytes < 512e6
    assert probed.ready.runtime == "onnx"
    assert probed.ready.isolation.layers["memory"] == "rlimit_data"


def test_the_first_wrong_value_is_told_in_a_sentence(start: Start, tmp_path: Path) -> None:
    wrong = case([1, 2, 3, 4], expected=[1, 2, 3, 5])
    with pytest.raises(SelfTestFailed) as caught:
        start(pack_with(tmp_path, GOOD, wrong), "onnx").probe()
    told = caught.value.message
    assert told.startswith("self-test case 2 (case-2.json): output 'y'[0,3]:")
    assert "expected 5" in told
    assert "got 4" in told
    assert "tolerance 1e-05" in told


def test_a_case_whose_payload_does_not_fit_fails(start: Start, tmp_path: Path) -> None:
    odd = SelfTestCase(schema=1, payloads=(b"{}",), outputs=GOOD.outputs)
    with pytest.raises(SelfTestFailed, match=r"self-test case 1 .*inputs"):
        start(pack_with(tmp_path, odd), "onnx").probe()


def test_a_case_may_fill_a_window_first(start: Start, tmp_path: Path) -> None:
    reading, stacked = Tensor("x", "FP32", (2,)), Tensor("x", "FP32", (2, 2))
    payloads = [v2({"x": ("FP32", [2], row)}) for row in ([-1, 2], [-3, 4])]
    expected = CaseTensor("y", "FP32", (2, 2), np.array([0, 2, 0, 4], np.float32).tobytes())
    pack = make_pack(
        tmp_path,
        models.relu_onnx((2, 2)),
        "onnx",
        [stacked],
        [Tensor("y", "FP32", (2, 2))],
        public_inputs=[reading],
        pipeline=Pipeline(window=Window(kind="tumbling", size=2)),
        cases=[SelfTestCase(schema=1, payloads=tuple(payloads), outputs=(expected,))] * 2,
    )
    assert start(pack, "onnx").probe().cases == 2


def test_a_case_that_gives_no_prediction_fails(start: Start, tmp_path: Path) -> None:
    pack = make_pack(
        tmp_path,
        models.relu_onnx((2, 4)),
        "onnx",
        [Tensor("x", "FP32", (2, 4))],
        [Tensor("y", "FP32", (2, 4))],
        public_inputs=[Tensor("x", "FP32", (4,))],
        pipeline=Pipeline(window=Window(kind="tumbling", size=2)),
        cases=[
            SelfTestCase(
                schema=1, payloads=(v2({"x": ("FP32", [4], [1] * 4)}),), outputs=GOOD.outputs
            )
        ],
    )
    with pytest.raises(SelfTestFailed, match="the window is not full"):
        start(pack, "onnx").probe()


def test_without_a_self_test_zeros_are_run(start: Start, tmp_path: Path) -> None:
    probed = start(pack_with(tmp_path), "onnx").probe()
    assert (probed.cases, probed.max_deviation) == (0, 0.0)
    assert probed.p50_ms > 0


def test_a_nan_fails_the_self_test(start: Start, tmp_path: Path, shared_models: Path) -> None:
    data = (shared_models / "invalid" / "nan_output.onnx").read_bytes()
    bad = case([-1, -1, -1, -1], expected=[0, 0, 0, 0])
    pack = make_pack(tmp_path, data, "onnx", [X], [Y], cases=[bad])
    with pytest.raises(SelfTestFailed, match=r"self-test case 1 .*NaN"):
        start(pack, "onnx").probe()


def test_the_memory_limit_holds_for_the_probe(
    start: Start, tmp_path: Path, shared_models: Path
) -> None:
    data = (shared_models / "invalid" / "memory_12gb_at_run.onnx").read_bytes()
    pack = make_pack(tmp_path, data, "onnx", [X], [Tensor("y", "FP32", ())])
    with pytest.raises(MemoryLimit, match="the limit of 200 MB"):
        start(pack, "onnx", memory_mb=200).probe()


def test_warming_up_takes_a_bounded_number_of_runs_and_tells_the_first_apart() -> None:
    calls: list[None] = []
    bench = Bench(lambda: calls.append(None))
    assert bench.warm_up() > 0
    low, high = WARM_UP_RUNS
    assert low <= len(calls) <= high


def test_a_block_is_as_long_as_asked_for_however_fast_the_model_is() -> None:
    calls: list[None] = []
    bench = Bench(lambda: calls.append(None))
    bench.warm_up()
    calls.clear()
    measured = bench.measure(Measure(blocks=3, block_ms=2.0))
    assert len(measured.ms) == 3
    assert len(calls) > 100
    assert measured.ms[0] < 0.1
    assert 0 < measured.cpu_ms < 0.1


def test_with_pauses_each_block_is_one_call() -> None:
    calls: list[None] = []
    bench = Bench(lambda: calls.append(None))
    bench.warm_up()
    calls.clear()
    assert len(bench.measure(Measure(blocks=4, pause_ms=0.1)).ms) == len(calls) == 4


def test_a_slow_model_is_measured_no_longer_than_allowed() -> None:
    bench = Bench(lambda: None)
    bench.warm_up()
    assert len(bench.measure(Measure(blocks=50), within_s=0.0).ms) == 1


def test_a_probe_can_be_measured_again_and_again(start: Start, tmp_path: Path) -> None:
    worker = start(pack_with(tmp_path, GOOD), "onnx")
    probed = worker.probe()
    assert 0 < probed.p50_ms <= probed.first_ms < 1000
    for blocks in (1, 5):
        measured = worker.measure(Measure(blocks=blocks), 10.0)
        assert len(measured.ms) == blocks
        assert measured.peak_memory_bytes >= probed.peak_memory_bytes


def test_a_probe_answers_no_message(start: Start, tmp_path: Path) -> None:
    worker = start(pack_with(tmp_path, GOOD), "onnx")
    worker.probe()
    with pytest.raises(WorkerError, match="a probe got a frame of kind 2"):
        worker.ask("in/a", b"{}")
