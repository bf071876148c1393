"""A worker's conversation over its real socket, with a real model."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.documents.manifest import Limits, Pipeline, StatePair, Tensor, Window
from agent.errors import (
    BadOutput,
    PackError,
    RuntimeUnavailable,
    UsageError,
    WorkerError,
    WorkerExited,
)
from agent.links.worker import BlockingWorker
from agent.wire import frames
from agent.wire.worker import MAX_PREDICTION_BYTES, Failed, Load
from agent.worker.serve import _short_enough
from tests.runtimes import models
from tests.worker.conftest import Start
from tests.worker.packs import make_pack, v2

X, Y = Tensor("x", "FP32", (1, 4)), Tensor("y", "FP32", (1, 4))


@pytest.fixture(scope="module")
def relu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(tmp_path_factory.mktemp("relu"), models.relu_onnx(), "onnx", [X], [Y])


@pytest.fixture(scope="module")
def serving(relu: Path) -> Iterator[BlockingWorker]:
    load = Load(directory=str(relu), pack="sha256:" + "0" * 64, variant="cpu", slot="line")
    with BlockingWorker("onnx", load) as worker:
        worker.load()
        yield worker


def row(*values: float, id: str | None = "m1") -> bytes:
    return v2({"x": ("FP32", [1, 4], values)}, id)


def body_of(payload: bytes) -> Any:
    return msgspec.json.decode(payload)


def test_a_prediction_says_what_made_it_and_how_long_it_took(serving: BlockingWorker) -> None:
    answer = serving.ask("sensors/1", row(-1, 2, -3, 4))
    assert answer.outcome == frames.PREDICTION
    body = body_of(answer.payload)
    assert body["id"] == "m1"
    assert body["outputs"][0]["data"] == [0, 2, 0, 4]
    parameters = body["parameters"]
    assert parameters["runtime"] == "onnx"
    assert parameters["provider"] == "CPUExecutionProvider"
    assert (parameters["variant"], parameters["slot"]) == ("cpu", "line")
    assert answer.result.run_us == parameters["run_us"]
    assert answer.result.released == (1,) or len(answer.result.released) == 1


@pytest.mark.parametrize(
    ("payload", "message_id"),
    [
        (b"", b""),
        (b"not json", b""),
        (b"[" * 5000, b""),
        (b'{"id":"seven"}', b"seven"),
        (row(1, 2, 3, 4, id="wide").replace(b"[1,4]", b"[1,5]"), b"wide"),
        (v2({"x": ("INT64", [1, 4], [2**62] * 4)}, "big"), b"big"),
        (v2({"z": ("FP32", [1, 4], [1.0] * 4)}, "named"), b"named"),
    ],
    ids=["empty", "no JSON", "deep", "no inputs", "shape", "datatype", "name"],
)
def test_a_payload_that_does_not_fit_is_answered_and_the_stream_goes_on(
    serving: BlockingWorker, payload: bytes, message_id: bytes
) -> None:
    answer = serving.ask("t", payload)
    assert answer.outcome == frames.REJECTED
    assert not answer.flags & frames.BAD_OUTPUT
    assert bool(answer.flags & frames.HAS_ID) == bool(message_id)
    assert answer.result.id == message_id
    body = body_of(answer.payload)
    assert body["code"] == "bad_input"
    assert body["id"] == (message_id.decode() or None)
    assert serving.ask("t", row(1, 1, 1, 1)).outcome == frames.PREDICTION


def test_correlation_data_is_the_id_where_the_payload_has_none(serving: BlockingWorker) -> None:
    answer = serving.ask("t", b"{}", b"c-17")
    assert answer.result.id == b"c-17"
    good = serving.ask("t", row(1, 1, 1, 1, id=None), b"c-18")
    assert body_of(good.payload)["id"] == "c-18"


def test_a_burst_is_answered_in_order_however_it_is_cut(serving: BlockingWorker) -> None:
    stream = serving._open_stream()
    burst = b"".join(
        frames.encode_message(1000 + n, b"t", row(n, 0, 0, 0, id=str(n)), None) for n in range(200)
    )
    for low in range(0, len(burst), 7001):
        stream.sendall(burst[low : low + 7001])
    reader = frames.FrameReader()
    got: list[tuple[int, float]] = []
    stream.settimeout(20)
    while len(got) < 200:
        got += [
            (frame.sequence, body_of(bytes(frame.payload))["outputs"][0]["data"][0])
            for frame in reader.feed(stream.recv(65536))
        ]
    assert got == [(1000 + n, n) for n in range(200)]


def test_a_large_payload_goes_through(start: Start, tmp_path: Path) -> None:
    wide = Tensor("x", "FP32", (1, 500_000)), Tensor("y", "FP32", (1, 500_000))
    pack = make_pack(
        tmp_path,
        models.relu_onnx((1, 500_000)),
        "onnx",
        wide[:1],
        wide[1:],
        pipeline=Pipeline(decode={"codec": "raw"}, encode={"codec": "raw"}),
    )
    worker = start(pack, "onnx")
    worker.load()
    values = np.linspace(-1, 1, 500_000, dtype=np.float32)
    answer = worker.ask("t", values.tobytes())
    assert answer.outcome == frames.PREDICTION, answer.payload
    np.testing.assert_array_equal(np.frombuffer(answer.payload, np.float32), values.clip(0))


def test_a_window_absorbs_until_it_is_full_and_then_releases(start: Start, tmp_path: Path) -> None:
    reading = Tensor("x", "FP32", (4,))
    file_input = Tensor("x", "FP32", (3, 4))
    output = Tensor("y", "FP32", (3, 4))
    pack = make_pack(
        tmp_path,
        models.relu_onnx((3, 4)),
        "onnx",
        [file_input],
        [output],
        public_inputs=[reading],
        pipeline=Pipeline(window=Window(kind="tumbling", size=3)),
    )
    worker = start(pack, "onnx")
    worker.load()
    released = []
    for n in range(6):
        answer = worker.ask("t", v2({"x": ("FP32", [4], [n] * 4)}))
        released.append((answer.outcome, answer.result.released))
    absorbed = (frames.ABSORBED, ())
    assert released == [
        absorbed,
        absorbed,
        (frames.PREDICTION, (1, 2, 3)),
        absorbed,
        absorbed,
        (frames.PREDICTION, (4, 5, 6)),
    ]


def test_replayed_messages_rebuild_a_window_without_a_prediction(
    start: Start, tmp_path: Path
) -> None:
    reading, stacked = Tensor("x", "FP32", (4,)), Tensor("x", "FP32", (2, 4))
    pack = make_pack(
        tmp_path,
        models.relu_onnx((2, 4)),
        "onnx",
        [stacked],
        [Tensor("y", "FP32", (2, 4))],
        public_inputs=[reading],
        pipeline=Pipeline(window=Window(kind="sliding", size=2)),
    )
    worker = start(pack, "onnx")
    worker.load()
    answers = [
        worker.ask("t", v2({"x": ("FP32", [4], [n] * 4)}), replay=n < 3).outcome for n in range(4)
    ]
    assert answers == [frames.ABSORBED] * 3 + [frames.PREDICTION]


def test_state_that_the_model_hands_back_belongs_to_one_source(
    start: Start, tmp_path: Path
) -> None:
    # sum = a + b, and the sum is the next b: a running total for each source.
    a, b = Tensor("a", "FP32", (1, 4)), Tensor("b", "FP32", (1, 4))
    total = Tensor("sum", "FP32", (1, 4))
    pack = make_pack(
        tmp_path,
        models.sum_and_difference_onnx(),
        "onnx",
        [a, b],
        [total],
        public_inputs=[a],
        state=(StatePair(input="b", output="sum"),),
    )
    worker = start(pack, "onnx")
    worker.load()

    def add(topic: str, value: float) -> float:
        answer = worker.ask(topic, v2({"a": ("FP32", [1, 4], [value] * 4)}))
        return float(body_of(answer.payload)["outputs"][0]["data"][0])

    assert [add("s/1", 1), add("s/2", 10), add("s/1", 1), add("s/2", 10)] == [1, 10, 2, 20]


@pytest.mark.parametrize("policy", ["reset", "per_source"])
def test_hidden_state_never_leaks_from_one_source_to_another(
    policy: str, start: Start, tmp_path: Path, shared_models: Path
) -> None:
    data = (shared_models / "mnist_lstm" / "mnist_lstm_fp32.tflite").read_bytes()
    x = Tensor("serving_default_fixed_input:0", "FP32", (1, 28, 28))
    y = Tensor("StatefulPartitionedCall:0", "FP32", (1, 10))
    pack = make_pack(
        tmp_path, data, "tflite", [x], [y], hidden_state=policy, limits=Limits(max_sources=2)
    )
    worker = start(pack, "tflite")
    assert worker.load().replayable == (policy == "reset")
    digit = np.random.default_rng(3).random(784).round(3).tolist()

    def ask(topic: str) -> list[float]:
        body = body_of(worker.ask(topic, v2({x.name: ("FP32", [1, 28, 28], digit)})).payload)
        return [round(value, 6) for value in body["outputs"][0]["data"]]

    first = ask("a")
    assert ask("b") == first
    again = ask("a")
    assert (again == first) == (policy == "reset")
    # A third source takes the place of the one that was silent for longest: it starts clean.
    assert ask("c") == first
    assert ask("b") == first


def test_the_manifest_may_not_contradict_the_file(start: Start, tmp_path: Path) -> None:
    wrong = Tensor("x", "FP32", (1, 5))
    pack = make_pack(tmp_path, models.relu_onnx(), "onnx", [wrong], [Y])
    with pytest.raises(PackError, match=r"the manifest says FP32 \[1,5\], the model FP32 \[1,4\]"):
        start(pack, "onnx").load()


def test_a_pack_with_another_file_size_is_refused(start: Start, tmp_path: Path) -> None:
    pack = make_pack(tmp_path, models.relu_onnx(), "onnx", [X], [Y])
    with (pack / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(PackError, match="the manifest says"):
        start(pack, "onnx").load()


def test_a_link_out_of_the_pack_is_not_followed(start: Start, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", models.relu_onnx(), "onnx", [X], [Y])
    (pack / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (pack / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(PackError, match="no file of the pack"):
        start(pack, "onnx").load()


def test_a_missing_pack_is_one_sentence(start: Start, tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"manifest.json of the pack cannot be read: No such file"):
        start(tmp_path, "onnx").load()


def test_a_worker_ends_when_it_is_told_to(serving: BlockingWorker, relu: Path) -> None:
    load = Load(directory=str(relu), pack="p", variant="cpu")
    with BlockingWorker("onnx", load) as worker:
        worker.load()
        worker._open_stream().sendall(frames.encode_frame(frames.STOP, 0, 0, b"", b""))
        with pytest.raises(WorkerExited, match="exit status 0"):
            worker.ask("t", b"")


def test_a_conversation_that_begins_otherwise_ends(start: Start, relu: Path) -> None:
    worker = start(relu, "onnx")
    with pytest.raises(WorkerExited):
        worker.ask("t", b"")


def test_nan_may_pass_where_the_manifest_allows_it(start: Start, tmp_path: Path) -> None:
    y = msgspec.structs.replace(Y, allow_nan=True)
    pack = make_pack(
        tmp_path,
        models.relu_onnx(),
        "onnx",
        [X],
        [y],
        pipeline=Pipeline(decode={"codec": "raw"}, encode={"codec": "raw"}),
    )
    worker = start(pack, "onnx")
    worker.load()
    answer = worker.ask("t", np.full(4, 3e38, np.float32).tobytes())
    assert answer.outcome == frames.PREDICTION
    assert all(math.isfinite(value) for value in np.frombuffer(answer.payload, np.float32))


def test_an_error_keeps_its_kind_over_the_socket() -> None:
    from agent.links.worker import error_of

    error = error_of(Failed("bad_pack", "no", "do"))
    assert type(error) is PackError
    assert (error.message, error.hint) == ("no", "do")
    assert type(error_of(Failed("bad_document", "a: expected b"))).__name__ == "DocumentError"
    assert type(error_of(Failed("new_in_2030", "x"))) is WorkerError
    assert type(error_of(Failed("usage", "x"))) is UsageError


def test_an_unknown_runtime_is_told_with_the_known_ones(relu: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="no runtime called 'tensorrt'"):
        BlockingWorker("tensorrt", Load(directory=str(relu), pack="p", variant="cpu"))


def test_the_stream_is_a_plain_socket(serving: BlockingWorker) -> None:
    assert serving._open_stream().type == socket.SOCK_STREAM


def test_a_prediction_beyond_what_a_frame_may_hold_is_the_models_fault() -> None:
    assert _short_enough(b"1") == b"1"
    with pytest.raises(BadOutput, match="8388609 bytes"):
        _short_enough(bytes(MAX_PREDICTION_BYTES + 1))
