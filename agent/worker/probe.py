"""Qualifies a candidate on this device: its self-test, how fast it is, its peak of memory."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from agent.documents import codec
from agent.documents.manifest import SelfTestCase
from agent.errors import AgentError, BadInput, BadOutput, SelfTestFailed
from agent.pipeline.chain import Incoming
from agent.pipeline.message import Prediction
from agent.pipeline.tensors import Arrays
from agent.wire.worker import Measure, Measured, Probed
from agent.worker.load import Model, read_file

MAX_CASE_BYTES = 64 * 1024 * 1024
# Warm is a model of which two calls in a row take the same time, within this share.
STEADY = 0.1
WARM_UP_RUNS = (3, 20)
WARM_UP_S = 2.0
FIRST_LOOK = Measure(blocks=15)
FIRST_LOOK_S = 0.5
# How often a message of the self-test is timed, for how long all of them, and how much is kept.
MESSAGE_TIMES, MESSAGES_S, KEPT_BYTES = 3, 0.25, 4 * 1024 * 1024
MAX_BLOCKS, MAX_BLOCK_S, MAX_PAUSE_S = 100, 1.0, 1.0

# Source and payload of each.
Messages = list[tuple[str, bytes]]


class Bench:
    """A qualified model and inputs to measure it with."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self._call_s = 0.0

    def warm_up(self) -> float:
        """Run until the time of a call is steady; return the first call's, in seconds."""
        first = last = self._timed()
        ends = time.perf_counter() + WARM_UP_S
        for number in range(2, WARM_UP_RUNS[1] + 1):
            before, last = last, self._timed()
            steady = abs(last - before) <= STEADY * max(last, before)
            if number >= WARM_UP_RUNS[0] and (steady or time.perf_counter() > ends):
                break
        self._call_s = last
        return first

    def measure(self, asked: Measure, *, within_s: float = math.inf) -> Measured:
        """Run some blocks of calls; fewer where they would take longer than `within_s`."""
        block_s = min(asked.block_ms / 1000, MAX_BLOCK_S)
        calls = max(1, math.ceil(block_s / max(self._call_s, 1e-9)))
        ends = time.perf_counter() + within_s
        ms: list[float] = []
        if asked.pause_ms:
            # It shows what a runtime's threads do while there is nothing to do.
            calls = 1
        # Over all blocks: where CPU time is limited the kernel counts it in ticks of milliseconds.
        cpu_s = time.process_time()
        for _ in range(min(asked.blocks, MAX_BLOCKS)):
            if asked.pause_ms:
                time.sleep(min(asked.pause_ms / 1000, MAX_PAUSE_S))
            started = time.perf_counter()
            for _ in range(calls):
                self._run()
            ms.append((time.perf_counter() - started) / calls * 1000)
            if time.perf_counter() > ends:
                break
        cpu_ms = (time.process_time() - cpu_s) / (calls * len(ms)) * 1000
        return Measured(tuple(ms), cpu_ms, peak_memory_bytes())

    def _timed(self) -> float:
        started = time.perf_counter()
        self._run()
        return time.perf_counter() - started


def qualify(model: Model) -> tuple[Probed, Bench]:
    """Run every self-test case through the whole chain, then measure a little.

    Raises:
        SelfTestFailed: A case gives something else than it promises; says which and where.
        MemoryError: A run needs more memory than this process may have.
    """
    sequences = itertools.count(1)
    inputs = model.chain.zeros()
    deviations, kept_bytes = [0.0], 0
    messages: Messages = []
    for number, name in enumerate(model.manifest.selftest, 1):
        case = _read_case(model.directory / name)
        try:
            inputs, deviation = _run_case(model, case, f"selftest/{number}", sequences)
        except (BadInput, BadOutput, SelfTestFailed) as error:
            raise SelfTestFailed(
                f"self-test case {number} ({name}): {error.message}", hint=error.hint
            ) from None
        deviations.append(deviation)
        kept_bytes += sum(map(len, case.payloads))
        if kept_bytes <= KEPT_BYTES:
            messages += [(f"selftest/{number}", payload) for payload in case.payloads]
    bench = Bench(lambda: model.run("selftest/1", inputs))
    first_s = p50_ms = 0.0
    # Without a self-test the inputs are zeros, which the model may not be able to digest.
    with suppress(AgentError):
        first_s = bench.warm_up()
        p50_ms = float(np.median(bench.measure(FIRST_LOOK, within_s=FIRST_LOOK_S).ms))
    message_ms = None
    with suppress(AgentError):
        message_ms = _longest_ms(model, messages, sequences)
    probed = Probed(
        ready=model.ready,
        cases=len(model.manifest.selftest),
        max_deviation=max(deviations),
        p50_ms=round(p50_ms, 4),
        first_ms=round(first_s * 1000, 4),
        peak_memory_bytes=peak_memory_bytes(),
        message_ms=message_ms,
    )
    return probed, bench


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


def _longest_ms(model: Model, messages: Messages, sequences: Iterator[int]) -> float | None:
    """Return how long the message takes that takes longest, from payload to answer; None where
    there is none. All have been run before; the median of each counts."""
    taken: list[list[float]] = [[] for _ in messages]
    ends = time.perf_counter() + MESSAGES_S
    for place in MESSAGE_TIMES * list(range(len(messages))):
        topic, payload = messages[place]
        started = time.perf_counter()
        _answer(model, Incoming(next(sequences), topic, payload))
        now = time.perf_counter()
        taken[place].append((now - started) * 1000)
        if now > ends:
            break
    return max((round(float(np.median(ms)), 4) for ms in taken if ms), default=None)


def _answer(model: Model, message: Incoming) -> None:
    step = model.chain.accept(message)
    if step.inputs is not None:
        prediction = model.chain.predict(step, model.run(message.topic, step.inputs))
        model.chain.encode(step, prediction, 0)
