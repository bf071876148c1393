"""What every payload codec promises, built in or not. A new one joins by a line in `EXAMPLES`."""

from __future__ import annotations

import io
import json
import struct
import wave
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from agent.documents.manifest import Datatype, Tensor
from agent.errors import BadInput, DocumentError
from agent.pipeline.codecs.api import DecoderContext, EncoderContext
from agent.pipeline.codecs.registry import CODECS
from agent.pipeline.message import Decoded, Prediction, ProducedBy, Step
from agent.pipeline.options import read_options
from agent.pipeline.tensors import DTYPES, Array, fp32_to_bf16, matches

VECTOR = Tensor("x", "FP32", (1, 4))
BATCH = Tensor("x", "FP32", (-1, 4))
EVERY_TYPE = tuple(Tensor(name.lower(), name, (-1, 2)) for name in get_args(Datatype))
NUMBERS = tuple(tensor for tensor in EVERY_TYPE if tensor.datatype != "BYTES")


@dataclass(frozen=True)
class Example:
    """One signature and a payload that fits it."""

    codec: str
    inputs: tuple[Tensor, ...]
    payload: bytes
    options: dict[str, Any] = field(default_factory=dict)


def v2(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"id": "m-1", **more, "inputs": list(tensors)}).encode()


def binary(text: bytes, *blobs: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text + b"".join(blobs)


def in_v2(tensor: Tensor) -> dict[str, Any]:
    values: dict[str, list[Any]] = {"BYTES": ["a", "é"], "BOOL": [True, False]}
    data = values.get(tensor.datatype, [1, 2])
    return {"name": tensor.name, "shape": [1, 2], "datatype": tensor.datatype, "data": data}


def sized(size: int) -> dict[str, Any]:
    return {
        "name": "x",
        "shape": [1, 4],
        "datatype": "FP32",
        "parameters": {"binary_data_size": size},
    }


def picture(kind: str, mode: str = "RGB") -> bytes:
    pillow = pytest.importorskip("PIL.Image")
    target = io.BytesIO()
    pixels = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    pillow.fromarray(pixels).convert(mode).save(target, kind)
    return bytes(target.getvalue())


def wav(channels: int = 1, width: int = 2) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(16000)
        file.writeframes(bytes(range(width * channels * 4)))
    return target.getvalue()


FOUR = np.arange(4, dtype="<f4").tobytes()
EXAMPLES: list[Callable[[], Example]] = [
    lambda: Example(
        "v2_json",
        (VECTOR,),
        v2({"name": "x", "shape": [4], "datatype": "FP32", "data": [1, 2.5, 3, 4]}),
    ),
    lambda: Example("v2_json", EVERY_TYPE, v2(*map(in_v2, EVERY_TYPE))),
    lambda: Example("v2_binary", (BATCH,), binary(v2(sized(16)), FOUR)),
    lambda: Example("v2_binary", EVERY_TYPE, binary(v2(*map(in_v2, EVERY_TYPE)))),
    lambda: Example("raw", (BATCH,), FOUR + FOUR),
    lambda: Example("raw", (VECTOR, Tensor("n", "INT16", (2,))), FOUR + b"\1\2\3\4"),
    lambda: Example(
        "features",
        (BATCH,),
        b'{"a":1,"b":2,"c":3,"d":4,"id":"r"}',
        {"fields": ["a", "b", "c", "d"]},
    ),
    lambda: Example("features", (BATCH,), b"[[1,2,3,4],[5,6,7,8]]"),
    lambda: Example(
        "features",
        (Tensor("age", "INT64", (-1, 1)), Tensor("city", "BYTES", (-1, 1))),
        b'[{"age":1,"city":"Ulm"},{"age":2,"city":"Bonn"}]',
    ),
    lambda: Example("csv", (VECTOR,), b"1,2.5,-3e2,4\r\n"),
    lambda: Example(
        "csv",
        (Tensor("age", "INT64", (1,)), Tensor("city", "BYTES", (1,))),
        b'2024;"Ulm; Donau";3',
        {"delimiter": ";", "columns": ["time", "city", "age"]},
    ),
    lambda: Example("image", (Tensor("x", "UINT8", (-1, -1, 3)),), picture("jpeg")),
    lambda: Example("image", (Tensor("x", "FP32", (1, 5, 4, 1)),), picture("png"), {"mode": "L"}),
    lambda: Example("pcm", (Tensor("x", "FP32", (1, -1)),), bytes(range(64))),
    lambda: Example("pcm", (Tensor("x", "INT16", (-1,)),), wav(2), {"channels": 2}),
    lambda: Example("pcm", (Tensor("x", "FP32", (-1,)),), wav(1, 3)),
]
examples = pytest.mark.parametrize("make", EXAMPLES, ids=lambda make: make().codec)


def decoder_of(example: Example) -> Callable[[bytes | memoryview], Decoded]:
    codec = CODECS[example.codec]
    options = read_options(example.options, codec.options, "codec", path="decode")
    assert codec.decoder is not None
    return codec.decoder(options, DecoderContext(example.inputs, reply_to=True))


def check(arrays: dict[str, Array], inputs: tuple[Tensor, ...]) -> None:
    assert list(arrays) == [tensor.name for tensor in inputs]
    for tensor in inputs:
        array = arrays[tensor.name]
        assert array.dtype == DTYPES[tensor.datatype]
        assert matches(tensor.shape, array.shape)
        if array.dtype.kind == "f":
            assert np.isfinite(array).all()


def test_every_codec_has_an_example() -> None:
    assert {make().codec for make in EXAMPLES} == set(CODECS)


@pytest.mark.parametrize("name", CODECS)
def test_options_are_frozen_and_documented(name: str) -> None:
    options = CODECS[name].options
    assert issubclass(options, msgspec.Struct)
    assert options.__struct_config__.frozen
    assert options.__doc__


@pytest.mark.parametrize("name", CODECS)
def test_an_unknown_option_is_named_with_its_path(name: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_options({"codec": name, "colour": 1}, CODECS[name].options, "codec", path="p.decode")
    assert caught.value.path == "p.decode.colour"


@examples
def test_a_payload_becomes_one_array_per_input(make: Callable[[], Example]) -> None:
    example = make()
    check(decoder_of(example)(example.payload).arrays, example.inputs)


@examples
def test_a_view_of_a_payload_is_as_good_as_its_bytes(make: Callable[[], Example]) -> None:
    example = make()
    decode = decoder_of(example)
    # At an odd offset, as in the middle of a frame.
    view = memoryview(b"\0" + example.payload)[1:]
    first, second = decode(example.payload), decode(view)
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name])
    assert first.id == second.id


@examples
def test_no_bytes_raise_anything_but_bad_input(make: Callable[[], Example]) -> None:
    example = make()
    decode = decoder_of(example)

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=200))
    def any_bytes(payload: bytes) -> None:
        try:
            found = decode(payload)
        except BadInput:
            return
        check(found.arrays, example.inputs)

    any_bytes()


@examples
def test_no_damage_to_a_good_payload_raises_anything_but_bad_input(
    make: Callable[[], Example],
) -> None:
    example = make()
    decode = decoder_of(example)
    good = example.payload

    @settings(max_examples=80, deadline=None)
    @given(
        st.integers(0, len(good)),
        st.integers(0, len(good)),
        st.one_of(
            st.binary(max_size=4),
            st.sampled_from(
                [b"NaN", b"null", b"1e999", b"[", b"{", b"[" * 2000, b"-1", b'"', b"9" * 40]
            ),
        ),
    )
    def damage(start: int, end: int, instead: bytes) -> None:
        payload = good[: min(start, end)] + instead + good[max(start, end) :]
        try:
            found = decode(payload)
        except BadInput:
            return
        check(found.arrays, example.inputs)

    damage()


# Encoders.

CONTEXT = EncoderContext(
    "tab", "1.0.0", "only", ProducedBy("sha256:ab", "onnx", "CPU", "slot"), EVERY_TYPE
)
writers = pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if codec.encoder])


def tensors_of(rows: int) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for tensor in EVERY_TYPE:
        numbers = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
        if tensor.datatype == "BF16":
            arrays[tensor.name] = fp32_to_bf16(numbers)
        elif tensor.datatype == "BYTES":
            arrays[tensor.name] = np.full((rows, 2), "é", np.object_)
        else:
            arrays[tensor.name] = numbers.astype(DTYPES[tensor.datatype])
    return arrays


@writers
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_every_output_is_written(name: str, rows: int) -> None:
    codec = CODECS[name]
    assert codec.encoder is not None
    outputs = NUMBERS if name == "raw" else EVERY_TYPE
    encode = codec.encoder(codec.options(), structs.replace(CONTEXT, outputs=outputs))
    step = Step(None, "m-1", "payload", "a")
    body = encode(step, Prediction(tensors_of(rows)), 5)
    arrays = tensors_of(rows)
    if name == "raw":
        assert body == b"".join(arrays[tensor.name].tobytes() for tensor in NUMBERS)
        return
    blobs = memoryview(b"")
    if name == "v2_binary":
        (length,) = struct.unpack_from("<I", body)
        body, blobs = body[4 : 4 + length], memoryview(body)[4 + length :]
    response = json.loads(body)
    assert response["id"] == "m-1"
    assert response["parameters"]["run_us"] == 5
    assert response["parameters"]["id_from"] == "payload"
    assert [output["datatype"] for output in response["outputs"]] == list(get_args(Datatype))
    assert [output["shape"] for output in response["outputs"]] == [[rows, 2]] * len(EVERY_TYPE)
    sizes = [
        output.get("parameters", {}).get("binary_data_size", 0) for output in response["outputs"]
    ]
    assert sum(sizes) == len(blobs)


@writers
def test_what_is_written_can_be_read_back(name: str) -> None:
    """An answer's tensors, sent as a request, are the same tensors."""
    codec = CODECS[name]
    tensors = NUMBERS if name == "raw" else EVERY_TYPE
    inputs = tuple(msgspec.structs.replace(tensor, shape=(3, 2)) for tensor in tensors)
    assert codec.encoder is not None
    assert codec.decoder is not None
    encode = codec.encoder(codec.options(), structs.replace(CONTEXT, outputs=tensors))
    body = encode(Step(None, "m-1", "payload", "a"), Prediction(tensors_of(3)), 5)
    # As long as before: the binary form counts the bytes of its JSON.
    request = body.replace(b'"outputs":[', b'"inputs":[ ')
    decoded = codec.decoder(codec.options(), DecoderContext(inputs))(request)
    for tensor in inputs:
        np.testing.assert_array_equal(decoded.arrays[tensor.name], tensors_of(3)[tensor.name])


def test_an_unfit_signature_is_refused_before_any_payload() -> None:
    text = (Tensor("s", "BYTES", (1,)),)
    two = (VECTOR, Tensor("y", "FP32", (1,)))
    for codec, inputs in [("raw", text), ("image", two), ("pcm", two), ("pcm", text)]:
        found = CODECS[codec]
        assert found.decoder is not None
        with pytest.raises(DocumentError):
            found.decoder(found.options(), DecoderContext(inputs))
