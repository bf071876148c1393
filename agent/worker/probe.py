"""Qualifies a candidate on this device: its self-test, a short benchmark, its peak of memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.documents import codec
from agent.documents.manifest import SelfTestCase
from agent.errors import AgentError, BadInput, BadOutput, SelfTestFailed
from agent.pipeline.chain import Incoming
from agent.pipeline.message import Prediction
from agent.pipeline.tensors import Arrays
from agent.wire.worker import Probed
from agent.worker.load import Model, read_file

MAX_CASE_BYTES = 64 * 1024 * 1024
BENCHMARK_RUNS = 50
BENCHMARK_S = 0.5
WARM_UP_RUNS = 3


def qualify(model: Model) -> Probed:
    """Run every self-test case through the whole chain, then measure.

    Raises:
        SelfTestFailed: A case gives something else than it promises; says which and where.
        MemoryError: A run needs more memory than this process may have.
    """
    sequences = itertools.count(1)
    inputs = model.chain.zeros()
    deviations = [0.0]
    for number, name in enumerate(model.manifest.selftest, 1):
        case = _read_case(model.directory / name)
        try:
            inputs, deviation = _run_case(model, case, f"selftest/{number}", sequences)
        except (BadInput, BadOutput, SelfTestFailed) as error:
            raise SelfTestFailed(
                f"self-test case {number} ({name}): {error.message}", hint=error.hint
            ) from None
        deviations.append(deviation)
    return Probed(
        ready=model.ready,
        cases=len(model.manifest.selftest),
        max_deviation=max(deviations),
        p50_ms=round(median_ms(lambda: model.run("selftest/1", inputs)), 4),
        peak_memory_bytes=peak_memory_bytes(),
    )


def median_ms(run: Callable[[], object]) -> float:
    """Return the median time of a call, in ms: of `BENCHMARK_RUNS`, fewer where it is slow."""
    times: list[float] = []
    ends = time.perf_counter() + BENCHMARK_S
    try:
        while len(times) < BENCHMARK_RUNS + WARM_UP_RUNS and time.perf_counter() < ends:
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    except AgentError:
        # Without a self-test the inputs are zeros, which the model may not be able to digest.
        return 0.0
    counted = sorted(times[WARM_UP_RUNS:] or times)
    return counted[len(counted) // 2] * 1000


def peak_memory_bytes() -> int:
    """Return the most memory that this process has had resident (VmHWM of proc(5))."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _read_case(path: Path) -> SelfTestCase:
    data = read_file(path, MAX_CASE_BYTES)
    return codec.decode(data, SelfTestCase, name=path.name, max_bytes=MAX_CASE_BYTES).value


def _run_case(
    model: Model, case: SelfTestCase, topic: str, sequences: Iterator[int]
) -> tuple[Arrays, float]:
    """Return the inputs of the case's last run, and how far its outputs are off."""
    prediction: Prediction | None = None
    inputs: Arrays = {}
    for payload in case.payloads:
        prediction = None
        step = model.chain.accept(Incoming(next(sequences), topic, payload))
        if step.inputs is not None:
            inputs = step.inputs
            prediction = model.chain.predict(step, model.run(topic, inputs))
    if prediction is None:
        raise SelfTestFailed("its last payload gives no prediction: the window is not full")
    return inputs, model.chain.deviation(prediction, case.outputs)
