"""What each codec makes of a payload, by example."""

from __future__ import annotations

import io
import json
import struct
import wave
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.documents.manifest import Tensor
from agent.errors import BadInput, DocumentError, RuntimeUnavailable
from agent.pipeline.codecs import image
from agent.pipeline.codecs.api import Decode, DecoderContext
from agent.pipeline.codecs.registry import CODECS
from agent.pipeline.message import Decoded
from agent.pipeline.options import read_options

VECTOR = Tensor("x", "FP32", (-1, 2))
AGE, CITY = Tensor("age", "INT64", (-1, 1)), Tensor("city", "BYTES", (-1, 1))


def decoder(codec: str, *inputs: Tensor, reply_to: bool = False, **options: Any) -> Decode:
    found = CODECS[codec]
    assert found.decoder is not None
    checked = read_options(options, found.options, "codec", path="decode")
    return found.decoder(checked, DecoderContext(inputs, reply_to=reply_to, path="decode"))


def x_of(decoded: Decoded) -> list[Any]:
    found: list[Any] = decoded.arrays["x"].tolist()
    return found


def refusal(decode: Decode, payload: bytes) -> BadInput:
    with pytest.raises(BadInput) as caught:
        decode(payload)
    return caught.value


# V2 with binary tensors.


def v2_binary(*blobs: bytes, sizes: list[int] | None = None, **fields: Any) -> bytes:
    inputs = [
        {
            "name": "x",
            "shape": [1, 2],
            "datatype": "FP32",
            "parameters": {"binary_data_size": size},
            **fields,
        }
        for size in (sizes if sizes is not None else [len(blob) for blob in blobs])
    ]
    text = json.dumps({"id": "m", "inputs": inputs}).encode()
    return struct.pack("<I", len(text)) + text + b"".join(blobs)


EIGHT = struct.pack("<2f", 1.5, -2)


def test_binary_tensors_stand_behind_their_json() -> None:
    decoded = decoder("v2_binary", VECTOR)(v2_binary(EIGHT))
    assert x_of(decoded) == [[1.5, -2]]
    assert decoded.id == "m"


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (b"\1\0", "payload: expected 4 to 16777216 bytes, got 2"),
        (b"\xff\xff\xff\xff{}", "payload: announces 4294967295 bytes of JSON, holds 2"),
        (v2_binary(EIGHT, sizes=[4]), "inputs[0]: expected 8 binary bytes, got 4"),
        (v2_binary(EIGHT[:4], sizes=[8]),
         "inputs[0]: announces 8 binary bytes, the payload holds 4"),
        (v2_binary(EIGHT + b"\0"), "inputs[0]: expected 8 binary bytes, got 9"),
        (v2_binary(EIGHT) + b"\0", "payload: the inputs announce 8 binary bytes, it holds 9"),
        (v2_binary(EIGHT, shape=[1 << 62, 2]),
         "inputs[0]: expected 36893488147419103232 binary bytes, got 8"),
        (v2_binary(struct.pack("<2f", 1, np.nan)),
         "inputs[0]: expected finite numbers, got NaN or infinity"),
        (v2_binary(EIGHT, sizes=[-8]), "inputs[0].parameters.binary_data_size: expected int >= 0"),
    ],
)  # fmt: skip
def test_binary_sizes_that_contradict_each_other_are_refused(payload: bytes, sentence: str) -> None:
    assert refusal(decoder("v2_binary", VECTOR), payload).message == sentence


def test_binary_texts_carry_their_length() -> None:
    tensor = Tensor("x", "BYTES", (2,))
    blob = b"\2\0\0\0\xc3\xa9\0\0\0\0"
    fields: dict[str, Any] = {"shape": [2], "datatype": "BYTES"}
    decode = decoder("v2_binary", tensor)
    assert x_of(decode(v2_binary(blob, **fields))) == ["é", ""]
    for broken in (blob[:-1], b"\xff" * 10, b"\1\0\0\0\xff\0\0\0\0", blob[:6]):
        refusal(decode, v2_binary(broken, **fields))


# Features.


@pytest.mark.parametrize(
    ("payload", "rows"),
    [
        (b'{"b":2,"a":1,"other":{"deep":[1]}}', [[1, 2]]),
        (b" [1, 2]", [[1, 2]]),
        (b'[ {"a":1,"b":2}, {"a":3,"b":4}]', [[1, 2], [3, 4]]),
        (b"[[1,2],\n[3,4],[5,6]]", [[1, 2], [3, 4], [5, 6]]),
    ],
)
def test_features_come_as_object_array_or_rows_of_either(
    payload: bytes, rows: list[list[float]]
) -> None:
    assert x_of(decoder("features", VECTOR, fields=["a", "b"])(payload)) == rows


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (b'{"a":1,"id":"r"}', "payload: object missing required field b"),
        (b'{"a":1,"b":"2"}', "b: expected float, got str"),
        (b'{"a":1,"b":null}', "b: expected float, got null"),
        (b'{"a":1,"b":true}', "b: expected float, got bool"),
        (b"[1,2,3]", "payload: expected rows of 2 numbers"),
        (b"[[1,2],[3]]", "payload: expected FP32 values in lists of equal length"),
        (b"7", "payload: expected an object of features or an array of features or an array of "
               "arrays or an array of objects"),
        (b'{"a":1,"b":1e39}', "b: expected float <= 3.4028234663852886e+38"),
    ],
)  # fmt: skip
def test_features_that_do_not_fit_are_named(payload: bytes, sentence: str) -> None:
    assert refusal(decoder("features", VECTOR, fields=["a", "b"]), payload).message == sentence


def test_columns_of_several_types_each_fill_their_own_input() -> None:
    decode = decoder("features", AGE, CITY)
    arrays = decode(b'[{"age":1,"city":"Ulm"},{"city":"Bonn","age":2}]').arrays
    assert arrays["age"].tolist() == [[1], [2]]
    assert arrays["city"].tolist() == [["Ulm"], ["Bonn"]]
    assert decode(b'[9007199254740993,"Ulm"]').arrays["age"].tolist() == [[9007199254740993]]
    refusal(decode, b'["Ulm",1]')
    refusal(decode, b'{"age":1.5,"city":"Ulm"}')


def test_an_object_may_carry_its_id_and_reply_topic() -> None:
    decode = decoder("features", VECTOR, fields=["a", "b"], reply_to=True)
    decoded = decode(b'{"a":1,"b":2,"id":17,"reply_to":"answers"}')
    assert (decoded.id, decoded.reply_to) == ("17", "answers")
    assert decode(b'{"a":1,"b":2,"id":null}').id is None
    refusal(decode, b'{"a":1,"b":2,"reply_to":"a/#"}')
    # A feature of that name is a feature.
    assert decoder("features", VECTOR, fields=["id", "b"])(b'{"id":1,"b":2}').id is None


def test_a_missing_feature_is_nan_where_the_input_allows_it() -> None:
    decode = decoder("features", Tensor("x", "FP32", (2,), allow_nan=True), fields=["a", "b"])
    for payload in (b'{"a":1}', b'{"a":1,"b":null}', b"[1,null]"):
        array = decode(payload).arrays["x"]
        assert array[0] == 1
        assert np.isnan(array[1])


def test_one_value_needs_no_name_but_its_inputs() -> None:
    decode = decoder("features", Tensor("t", "FP32", ()))
    for payload in (b'{"t":7}', b"[7]"):
        array = decode(payload).arrays["t"]
        assert array.shape == ()
        assert array == 7


def test_an_input_of_any_length_takes_an_array_of_any_length() -> None:
    decode = decoder("features", Tensor("x", "FP32", (1, -1)))
    assert x_of(decode(b"[1,2,3]")) == [[1, 2, 3]]
    assert x_of(decode(b"[]")) == [[]]
    refusal(decode, b'{"x":1}')


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ([VECTOR], {"fields": ["a"]}),
        ([VECTOR], {"fields": ["a", "a"]}),
        ([AGE, CITY], {"fields": ["age", "city"]}),
        ([AGE, Tensor("v", "FP32", (1, 2))], {}),
        ([Tensor("x", "FP32", (2, -1, -1))], {}),
    ],
)
def test_fields_that_cannot_fill_the_inputs_are_refused_at_once(
    inputs: list[Tensor], options: dict[str, Any]
) -> None:
    with pytest.raises(DocumentError):
        decoder("features", *inputs, **options)


# CSV.


def test_a_line_of_csv_is_one_reading() -> None:
    assert x_of(decoder("csv", VECTOR)(b"1.5, -2e1\r\n")) == [[1.5, -20]]
    named = decoder("csv", VECTOR, columns=["t", "b", "a"], fields=["a", "b"])
    assert x_of(named(b"2013-12-02 21:15:00,2,1")) == [[1, 2]]


def test_csv_columns_of_several_types_each_fill_their_own_input() -> None:
    decode = decoder("csv", AGE, CITY, delimiter=";", columns=["city", "age"])
    arrays = decode(b'"Ulm; ""Donau""";42').arrays
    assert arrays["city"].tolist() == [['Ulm; "Donau"']]
    assert arrays["age"].tolist() == [[42]]


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (b"1", "payload: expected 2 columns, got 1"),
        (b"1,2,3", "payload: expected 2 columns, got 3"),
        (b"1,hot", "column 2: expected a number, got 'hot'"),
        (b"1,", "column 2: expected a number, got ''"),
        (b"1,nan", "column 2: expected a number, got 'nan'"),
        (b"1,inf", "column 2: expected a number, got 'inf'"),
        (b"1,1_000", "column 2: expected a number, got '1_000'"),
        ("1,١".encode(), "column 2: expected a number, got '١'"),
        (b"1,1e999", "column 2: expected a number, got '1e999'"),
        (b"1,1e39", "column 2: expected FP32, got '1e39'"),
        (b"1,2\n3,4", "payload: expected one line of CSV"),
        (b"", "payload: expected 2 columns, got 0"),
        (b"\xff", "payload: expected one line of CSV"),
    ],
)
def test_csv_that_does_not_fit_is_named(payload: bytes, sentence: str) -> None:
    assert refusal(decoder("csv", VECTOR), payload).message.startswith(sentence)


def test_an_empty_cell_is_nan_where_the_input_allows_it() -> None:
    array = decoder("csv", Tensor("x", "FP32", (2,), allow_nan=True))(b"1,").arrays["x"]
    assert np.isnan(array[1])


@pytest.mark.parametrize(
    "options",
    [
        {"delimiter": "\n"},
        {"delimiter": "1"},
        {"columns": ["a", "b"], "fields": ["a", "c"]},
        {"columns": ["a", "a"]},
        {"columns": ["a"]},
    ],
)
def test_csv_columns_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DocumentError):
        decoder("csv", VECTOR, **options)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_numbers_survive_as_json_and_as_csv(row: list[float]) -> None:
    assert x_of(decoder("csv", VECTOR)(",".join(map(repr, row)).encode())) == [row]
    assert x_of(decoder("features", VECTOR)(json.dumps(row).encode())) == [row]


# Pictures.


def picture(
    kind: str = "png", mode: str = "RGB", size: tuple[int, int] = (4, 5), **more: Any
) -> bytes:
    pillow = pytest.importorskip("PIL.Image")
    target = io.BytesIO()
    pillow.new(mode, size).save(target, kind, **more)
    return target.getvalue()


def test_a_png_comes_out_pixel_by_pixel() -> None:
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    target = io.BytesIO()
    pillow.fromarray(pixels).save(target, "png")
    decoded = decoder("image", Tensor("x", "UINT8", (-1, -1, 3)))(target.getvalue())
    np.testing.assert_array_equal(decoded.arrays["x"], pixels)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16", "LA"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [((5, 4, 3), {}), ((1, -1, -1, 3), {}), ((-1, -1), {"mode": "L"}), ((5, 4, 1), {"mode": "L"})],
)
def test_every_kind_of_colour_becomes_the_one_asked_for(
    mode: str, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    array = decoder("image", Tensor("x", "UINT8", shape), **options)(picture(mode=mode)).arrays["x"]
    assert array.dtype == np.uint8
    assert len(array.shape) == len(shape)


def test_a_picture_of_too_many_pixels_is_refused_by_its_header() -> None:
    decode = decoder("image", Tensor("x", "UINT8", (-1, -1, 3)), max_pixels=19)
    assert "at most 19 pixels, got 4 x 5" in refusal(decode, picture()).message
    bomb = picture(mode="1", size=(6000, 6000))
    assert len(bomb) < 20_000
    usual = decoder("image", Tensor("x", "UINT8", (-1, -1, 3)))
    assert "got 6000 x 6000" in refusal(usual, bomb).message


def test_a_picture_is_refused_where_it_is_broken_or_of_another_kind() -> None:
    decode = decoder("image", Tensor("x", "UINT8", (-1, -1, 3)))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    target = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(noise).save(target, "jpeg")
    whole = target.getvalue()
    assert decode(whole)
    for payload in (b"", b"\xff\xd8\xff", whole[:-200], picture("gif"), picture("bmp")):
        assert refusal(decode, payload).message.startswith("picture: expected jpeg or png: ")
    fixed = decoder("image", Tensor("x", "UINT8", (5, 5, 3)))
    assert refusal(fixed, picture()).message == "picture.shape: expected [5,5,3], got [5,4,3]"


def test_the_lack_of_pillow_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(RuntimeUnavailable, match=r"edgeward\[image\]"):
        image._import_pillow()


@pytest.mark.parametrize("tensor", [Tensor("x", "INT8", (1, 2, 3)), Tensor("x", "UINT8", (4,))])
def test_an_input_that_is_no_picture_is_refused_at_once(tensor: Tensor) -> None:
    with pytest.raises(DocumentError):
        decoder("image", tensor)


# Sound.

FLAT = Tensor("x", "FP32", (-1,))


def wav(samples: NDArray[Any], channels: int = 1, rate: int = 16000) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(samples.itemsize)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return target.getvalue()


@pytest.mark.parametrize(
    ("encoding", "payload", "samples"),
    [
        ("s16le", struct.pack("<3h", -32768, 0, 16384), [-1, 0, 0.5]),
        ("s8", b"\x80\0\x40", [-1, 0, 0.5]),
        ("u8", b"\0\x80\xc0", [-1, 0, 0.5]),
        ("s24le", b"\0\0\x80\0\0\0\0\0\x40", [-1, 0, 0.5]),
        ("s32le", struct.pack("<3i", -(1 << 31), 0, 1 << 30), [-1, 0, 0.5]),
        ("f32le", struct.pack("<3f", -1, 0, 0.5), [-1, 0, 0.5]),
    ],
)
def test_full_scale_is_one_in_every_encoding(
    encoding: str, payload: bytes, samples: list[float]
) -> None:
    assert x_of(decoder("pcm", FLAT, encoding=encoding)(payload)) == samples


def test_a_wav_file_says_its_own_encoding() -> None:
    samples = np.array([-32768, 0, 16384], "<i2")
    for encoding in ("s16le", "f32le"):
        assert x_of(decoder("pcm", FLAT, encoding=encoding)(wav(samples))) == [-1, 0, 0.5]


def test_channels_are_mixed_or_kept() -> None:
    samples = np.array([[16384, 0], [-16384, -16384]], "<i2")
    mixed = decoder("pcm", FLAT, channels=2)
    assert x_of(mixed(samples.tobytes())) == [0.25, -0.5]
    assert x_of(decoder("pcm", FLAT)(wav(samples, 2))) == [0.25, -0.5]
    kept = decoder("pcm", Tensor("x", "INT16", (-1, 2)), channels=2, mix=False)
    assert x_of(kept(samples.tobytes())) == samples.tolist()
    refusal(kept, wav(samples, 1))
    # 3 bytes are no whole frame of two channels.
    refusal(mixed, samples.tobytes()[:3])


@pytest.mark.parametrize(
    "payload",
    [
        wav(np.zeros(3, "<i2"), rate=8000),
        wav(np.zeros(3, "<i2"))[:30],
        b"RIFF\0\0\0\0WAVE",
        wav(np.zeros(3, "<i2")).replace(struct.pack("<HH", 1, 1), struct.pack("<HH", 85, 1)),
        wav(np.zeros(3, "<i2")).replace(struct.pack("<HH", 1, 1), struct.pack("<HH", 1, 0)),
    ],
)
def test_a_wav_file_that_is_not_as_agreed_is_refused(payload: bytes) -> None:
    assert refusal(decoder("pcm", FLAT, sample_rate_hz=16000), payload).message.startswith("WAV: ")


def test_sound_takes_the_shape_of_its_input() -> None:
    decode = decoder("pcm", Tensor("x", "FP32", (1, 4, 1)))
    assert decode(bytes(8)).arrays["x"].shape == (1, 4, 1)
    refusal(decode, bytes(6))


# Raw tensors.


def test_raw_tensors_follow_each_other() -> None:
    decode = decoder("raw", Tensor("a", "FP32", (1, 2)), Tensor("b", "BOOL", (2,)))
    arrays = decode(EIGHT + b"\1\0").arrays
    assert arrays["a"].tolist() == [[1.5, -2]]
    assert arrays["b"].tolist() == [True, False]
    assert refusal(decode, EIGHT).message == "payload: expected 10 bytes, got 8"


def test_the_length_of_raw_bytes_tells_a_free_dimension() -> None:
    decode = decoder("raw", VECTOR)
    assert decode(EIGHT * 3).arrays["x"].shape == (3, 2)
    assert decode(b"").arrays["x"].shape == (0, 2)
    for payload in (EIGHT + b"\0", EIGHT + b"\0\0\0\0"):
        refusal(decode, payload)
    refusal(decode, struct.pack("<2f", np.inf, 0))


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=8, max_size=8))
def test_no_bytes_of_a_bool_are_anything_but_true_or_false(payload: bytes) -> None:
    array = decoder("raw", Tensor("x", "BOOL", (8,)))(payload).arrays["x"]
    assert array.tolist() == [byte != 0 for byte in payload]
