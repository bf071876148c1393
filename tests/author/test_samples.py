"""Golden samples: the author's files, and random numbers that are the same every time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.author import random_samples
from agent.author.payloads import Values, write
from agent.author.samples import MAX_CASES, Reading, Sample, read_samples
from agent.documents.manifest import Tensor
from agent.errors import AgentError, DocumentError, UsageError
from agent.pipeline.codecs.api import DecoderContext
from agent.pipeline.codecs.registry import CODECS
from agent.pipeline.options import read_options
from agent.pipeline.tensors import DTYPES, Arrays

X = Tensor("x", "FP32", (-1, 3))
Y = Tensor("y", "FP32", (-1, 1))
V2 = {"codec": "v2_json"}


def reading(*inputs: Tensor, codec: Mapping[str, Any] = V2, together: bool = False) -> Reading:
    return Reading(inputs or (X,), (Y,), codec, together)


def decode(payload: bytes, *inputs: Tensor, codec: Mapping[str, Any] = V2) -> Arrays:
    kind = CODECS[codec["codec"]]
    assert kind.decoder is not None
    options = read_options(codec, kind.options, "codec", path="decode")
    return kind.decoder(options, DecoderContext(inputs or (X,)))(payload).arrays


def values_of(samples: tuple[Sample, ...]) -> list[list[float]]:
    return [decode(p)["x"].ravel().tolist() for sample in samples for p in sample.payloads]


def save(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content)
    else:
        path.write_text(json.dumps(content))
    return path


def v2(*data: float, shape: tuple[int, ...] = (1, 3), name: str = "x") -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": shape, "data": data}


# The author's.


def test_a_table_gives_a_sample_a_row(tmp_path: Path) -> None:
    file = save(tmp_path / "a.csv", "u,v,w\n1,2,3\n\n4,5.5,6\n")
    assert values_of(read_samples([file], reading())) == [[1, 2, 3], [4, 5.5, 6]]


def test_rows_of_one_stream_stay_together(tmp_path: Path) -> None:
    file = save(tmp_path / "a.csv", "1,2,3\n4,5,6\n")
    samples = read_samples([file], reading(together=True))
    assert [len(sample.payloads) for sample in samples] == [2]


def test_an_array_is_one_batch_or_a_stack_of_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "batch.npy", np.ones((5, 3), np.float32))
    np.save(tmp_path / "rows.npy", np.ones((5, 2, 3)))
    assert len(read_samples([tmp_path / "batch.npy"], reading())) == 1
    assert len(read_samples([tmp_path / "rows.npy"], reading())) == 5
    fixed = reading(Tensor("x", "FP32", (1, 3)))
    assert len(read_samples([tmp_path / "batch.npy"], fixed)) == 5


def test_several_inputs_come_as_an_archive(tmp_path: Path) -> None:
    two = (Tensor("a", "FP32", (1, 2)), Tensor("b", "INT64", (1,)))
    np.savez(tmp_path / "a.npz", a=np.ones((4, 2)), b=np.arange(4))
    samples = read_samples([tmp_path / "a.npz"], reading(*two))
    assert [decode(s.payloads[0], *two)["b"].tolist() for s in samples] == [[0], [1], [2], [3]]
    np.savez(tmp_path / "b.npz", a=np.ones((4, 2)))
    with pytest.raises(DocumentError, match="an array 'b'"):
        read_samples([tmp_path / "b.npz"], reading(*two))


def test_requests_come_alone_listed_or_with_their_outputs(tmp_path: Path) -> None:
    one = {"inputs": [v2(1, 2, 3)]}
    golden = {"samples": [{**one, "outputs": [v2(9, shape=(1, 1), name="y")], "truth": "worn"}]}
    for document in (one, [one], golden):
        samples = read_samples([save(tmp_path / "a.json", document)], reading())
        assert values_of(samples) == [[1, 2, 3]]
    assert samples[0].outputs["y"].tolist() == [[9]]


def test_a_payload_of_another_codec_is_taken_as_it_is(tmp_path: Path) -> None:
    photo = save(tmp_path / "photo.jpg", b"\xff\xd8\xff")
    samples = read_samples([photo], reading(codec={"codec": "image"}))
    assert samples == (Sample((b"\xff\xd8\xff",)),)
    lines = save(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 2}\n')
    samples = read_samples([lines], reading(codec={"codec": "features"}))
    assert [s.payloads for s in samples] == [(b'{"a": 1}',), (b'{"a": 2}',)]


def test_of_a_long_table_rows_spread_over_it_are_kept(tmp_path: Path) -> None:
    file = save(tmp_path / "a.csv", "".join(f"{i},0,0\n" for i in range(1000)))
    first = [row[0] for row in values_of(read_samples([file], reading()))]
    assert len(first) == MAX_CASES
    assert first[:2] == [0, 1000 // MAX_CASES]
    assert first[-1] > 950


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "1,2\n", "expected 3 columns"),
        ("a.csv", "1,2,3\n1,2,warm\n", "row 2: expected FP32 values"),
        ("a.csv", b"\xff\xfe", "not UTF-8"),
        ("a.csv", "u,v,w\n", "no sample"),
        ("a.npy", b"\x93NUMPY", "not a NumPy file"),
        ("a.npy", b"\x80\x04.", "not a NumPy file"),
        ("a.json", {"inputs": [v2(1, 2)]}, "x.data: expected 3 values, got 2"),
        ("a.json", {"inputs": [{**v2(1, 2, 3), "datatype": "FP64"}]}, "expected FP32, got FP64"),
        ("a.json", {"inputs": [v2(1, 2, 3, name="z")]}, "expected one of x"),
        ("a.json", {"inputs": []}, "an input 'x'"),
        ("a.json", {"rows": []}, "expected V2 requests"),
        ("a.json", "[" * 5000, "expected V2 requests"),
    ],
)
def test_a_wrong_sample_is_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(AgentError, match=message):
        read_samples([save(tmp_path / name, content)], reading())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.npy"):
        read_samples([tmp_path / "gone.npy"], reading())


# Random ones.


def test_random_samples_are_the_same_every_time() -> None:
    first, second = (list(random_samples.draw((X,), {}, 1, 3)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])
    assert not np.array_equal(first[0]["x"], first[1]["x"])


@given(
    datatype=st.sampled_from([name for name in DTYPES if name not in ("BYTES", "BF16")]),
    low=st.floats(-1000, 1000) | st.none(),
    width=st.floats(1, 1000) | st.none(),
    shape=st.lists(st.integers(-1, 4), max_size=3).map(tuple),
)
@settings(max_examples=150, deadline=None)
def test_random_values_keep_to_the_declared_range_and_type(
    datatype: Any, low: float | None, width: float | None, shape: tuple[int, ...]
) -> None:
    high = None if width is None else (low or 0.0) + width
    tensor = Tensor("x", datatype, shape, low=low, high=high)
    array = next(random_samples.draw((tensor,), {}, 2, 1))["x"]
    assert array.shape == tuple((1 if i == 0 else 2) if n == -1 else n for i, n in enumerate(shape))
    limits = np.iinfo(DTYPES[datatype]) if DTYPES[datatype].kind in "iu" else None
    if limits:
        assert array.dtype == limits.dtype
    elif datatype != "BOOL" and array.size:
        assert low is None or array.min() >= low
        assert high is None or array.max() <= high


def test_a_real_input_over_a_quantised_tensor_is_drawn_from_what_it_can_hold() -> None:
    stored = Tensor("x", "INT8", (64, 64), scale=0.5, zero_point=-128)
    public = Tensor("x", "FP32", (64, 64))
    array = next(random_samples.draw((public,), {"x": stored}, 1, 1))["x"]
    assert array.min() >= 0
    assert array.max() <= 127.5
    assert array.max() > 100


def test_every_dimension_called_like_the_batch_is_one() -> None:
    state = Tensor("state", "FP32", (2, -1, 128))
    names = {"x": ("batch", "sequence"), "state": ("", "batch", "")}
    x, fixed = random_samples.with_batch_of_one((Tensor("x", "FP32", (-1, -1)), state), names)
    assert x.shape == (1, -1)
    assert fixed.shape == (2, 1, 128)
    assert random_samples.free_sizes((x, fixed)) == random_samples.FREE_SIZES
    assert random_samples.free_sizes((fixed,)) == (1,)


# Payloads.


CODEC_CASES: list[tuple[dict[str, Any], tuple[Tensor, ...]]] = [
    ({"codec": "v2_json"}, (X, Tensor("n", "INT64", ()), Tensor("s", "BYTES", (2,)))),
    ({"codec": "v2_binary"}, (X, Tensor("b", "BF16", (2,)), Tensor("s", "BYTES", (2,)))),
    ({"codec": "raw"}, (Tensor("x", "FP32", (2, 3)), Tensor("n", "INT16", (4,)))),
    ({"codec": "features"}, (Tensor("x", "FP32", (4,)),)),
    ({"codec": "features"}, (Tensor("a", "FP32", (1,)), Tensor("b", "INT32", (1,)))),
    ({"codec": "csv"}, (Tensor("x", "FP32", (4,)),)),
    (
        {"codec": "csv", "delimiter": ";", "columns": ["t", "b", "a"], "fields": ["a", "b"]},
        (Tensor("x", "FP32", (2,)),),
    ),
    ({"codec": "image"}, (Tensor("photo", "UINT8", (5, 4, 3)),)),
    ({"codec": "image", "mode": "L"}, (Tensor("photo", "UINT8", (5, 4)),)),
    ({"codec": "pcm"}, (Tensor("sound", "INT16", (1, 16)),)),
    ({"codec": "pcm", "encoding": "f32le"}, (Tensor("sound", "FP32", (16,)),)),
]


@pytest.mark.parametrize(("codec", "inputs"), CODEC_CASES)
def test_a_made_up_payload_decodes_to_what_was_put_in(
    codec: dict[str, Any], inputs: tuple[Tensor, ...]
) -> None:
    if codec["codec"] == "image":
        pytest.importorskip("PIL")
    arrays = next(random_samples.draw(inputs, {}, 1, 1))
    found = decode(write(Values(codec, inputs, arrays)), *inputs, codec=codec)
    for tensor in inputs:
        if tensor.datatype == "BF16":
            continue
        wanted = arrays[tensor.name].astype(DTYPES[tensor.datatype])
        np.testing.assert_array_equal(found[tensor.name], wanted)


@pytest.mark.parametrize("encoding", ["u8", "s8", "s16le", "s32le"])
def test_made_up_sound_decodes_to_nearly_what_was_put_in(encoding: str) -> None:
    codec, tensor = {"codec": "pcm", "encoding": encoding}, Tensor("sound", "FP32", (64,))
    arrays = next(random_samples.draw((tensor,), {}, 1, 1))
    found = decode(write(Values(codec, (tensor,), arrays)), tensor, codec=codec)["sound"]
    np.testing.assert_allclose(found, arrays["sound"], atol=0.02)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_float32_comes_back_exactly_from_its_shortest_text(values: list[float]) -> None:
    array = np.array(values, np.float32).reshape(1, -1)
    tensor = Tensor("x", "FP32", (1, -1))
    found = decode(write(Values(V2, (tensor,), {"x": array})), tensor)["x"]
    np.testing.assert_array_equal(found, array)


def test_a_codec_that_nobody_can_make_up_asks_for_real_payloads() -> None:
    with pytest.raises(UsageError, match="--samples"):
        write(Values({"codec": "lidar"}, (X,), {}))


def test_every_built_in_codec_that_reads_can_be_made_up() -> None:
    from agent.author.payloads import WRITERS

    assert set(WRITERS) == {name for name, codec in CODECS.items() if codec.decoder}
