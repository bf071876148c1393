"""The whole chain: ids, refusals, windows, states and settings, from message to answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.documents.manifest import Manifest, StatePair, Tensor, Variant, Window
from agent.errors import BadOutput, DocumentError, SelfTestFailed
from agent.pipeline.chain import Chain, Prediction, compile_chain
from agent.pipeline.message import RejectedMessage, Step
from agent.pipeline.tensors import Arrays
from tests.pipeline.support import PRODUCED_BY, incoming, make_chain, make_manifest, v2_request

X = Tensor("x", "FP32", (-1, 3))
Y = Tensor("y", "FP32", (-1, 2))


def simple(**fields: Any) -> Manifest:
    return make_manifest([X], [Y], **fields)


def x_of(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2.5, -3], **fields}


def run(chain: Chain, payload: bytes, scores: Sequence[float] = (0.25, 0.75), **fields: Any) -> Any:
    step = chain.accept(incoming(payload, **fields))
    prediction = chain.predict(step, {"y": np.array([scores], np.float32)})
    return json.loads(chain.encode(step, prediction, 12))


def rejection(chain: Chain, payload: bytes, **fields: Any) -> RejectedMessage:
    with pytest.raises(RejectedMessage) as caught:
        chain.accept(incoming(payload, **fields))
    return caught.value


def test_a_request_becomes_a_response_that_says_what_made_it() -> None:
    chain = make_chain(simple())
    step = chain.accept(incoming(v2_request(x_of(), id="m-1")))
    assert step.inputs is not None
    np.testing.assert_array_equal(step.inputs["x"], np.array([[1, 2.5, -3]], np.float32))
    prediction = chain.predict(step, {"y": np.array([[0.25, 0.75]], np.float32)})
    assert json.loads(chain.encode(step, prediction, 12)) == {
        "model_name": "tab",
        "model_version": "1.0.0",
        "id": "m-1",
        "outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [0.25, 0.75]}],
        "parameters": {
            "pack": "sha256:" + "1" * 64,
            "variant": "only",
            "runtime": "onnx",
            "provider": "CPUExecutionProvider",
            "slot": "vibration",
            "id_from": "payload",
            "run_us": 12,
        },
    }


def test_the_id_comes_from_payload_then_correlation_then_here() -> None:
    chain = make_chain(simple())
    with_id, without = v2_request(x_of(), id="m-1"), v2_request(x_of())
    found = [
        run(chain, with_id, correlation=b"c-1"),
        run(chain, without, correlation=b"c-1"),
        run(chain, without, correlation=b"\xff\0"),
        run(chain, without),
        run(chain, without, correlation=b"x" * 300),
        run(chain, v2_request(x_of(), id=""), correlation=b""),
    ]
    assert [(body["id"], body["parameters"]["id_from"]) for body in found] == [
        ("m-1", "payload"),
        ("c-1", "correlation"),
        ("ff00", "correlation"),
        ("boot-1", "agent"),
        ("boot-2", "agent"),
        ("boot-3", "agent"),
    ]


@pytest.mark.parametrize(
    ("payload", "sentence", "message_id"),
    [
        (v2_request(x_of(shape=[1, 2]), id="m"),
         "inputs[0].shape: expected [-1,3], got [1,2]", "m"),
        (v2_request(x_of(shape=[-1, 3]), id="m"),
         "inputs[0].shape: expected [-1,3], got [-1,3]", "m"),
        (v2_request(x_of(data=[1, 2]), id="m"), "inputs[0].data: expected 3 values, got 2", "m"),
        (v2_request(x_of(data=[1, "2", 3])), "inputs[0].data[1]: expected float, got str", None),
        (v2_request(x_of(data=[1, True, 3])), "inputs[0].data[1]: expected float, got bool", None),
        (v2_request(x_of(data=[1, None, 3])), "inputs[0].data[1]: expected float, got null", None),
        (v2_request(x_of(name="z")), "inputs[0].name: expected one of x, got 'z'", None),
        (v2_request(x_of(datatype="FP64")), "inputs[0].datatype: expected FP32, got 'FP64'", None),
        (v2_request(x_of(), x_of()), "inputs: expected each input once", None),
        (v2_request(id="m"), "inputs: expected x; missing x", "m"),
        (b'{"id":"m","inputs":[{"name":"x","shape":[1,3],"datatype":"FP32"}]}',
         "inputs[0].data: expected a list of 3 values, got none", "m"),
        (b'{"id":"m"}', "payload: object missing required field inputs", "m"),
        (b'{"id":"m","inputs":[NaN',
         "payload: JSON is malformed: invalid character (byte 20)", "m"),
        (b'{"inputs":3,"id":"m"}', "inputs: expected array, got int", "m"),
        (b'{"id":5,"inputs":[]}', "id: expected str | null, got int", None),
        (b"", "payload: input data was truncated", None),
        (b"\xff\xfe", "payload: JSON is malformed: invalid character (byte 0)", None),
        (v2_request(x_of(), id="i" * 300), "id: expected at most 256 characters, got 300", None),
        (v2_request(x_of(), outputs=[{"name": "q"}], id="m"),
         "outputs[0].name: expected one of y, got 'q'", "m"),
        (v2_request(x_of(parameters={"binary_data_size": 12})),
         "inputs[0]: announces 12 binary bytes, the payload holds 0", None),
    ],
)  # fmt: skip
def test_a_refusal_says_what_is_wrong_and_whose_it_is(
    payload: bytes, sentence: str, message_id: str | None
) -> None:
    error = rejection(make_chain(simple()), payload)
    assert error.message == sentence
    assert error.id == message_id
    assert error.code == "bad_input"
    assert error.released is None


@pytest.mark.parametrize(
    "value", [b"1e999", b"3.5e38", b"-1e39", b"NaN", b"Infinity", b"-Infinity", b"nan"]
)
def test_a_number_that_fp32_does_not_hold_is_refused(value: bytes) -> None:
    payload = v2_request(x_of(), id="m").replace(b"2.5", value)
    assert rejection(make_chain(simple()), payload).id == "m"


@pytest.mark.parametrize("depth", [50, 500, 5000, 50000])
@pytest.mark.parametrize("place", [b'"data": [', b'"more": [', b'"id": '])
def test_deep_nesting_is_refused_wherever_it_stands(depth: int, place: bytes) -> None:
    nested = b"[" * depth + b"]" * depth
    payload = b'{"more": [], ' + v2_request(x_of(), id="m")[1:]
    payload = payload.replace(place, place + nested + b",", 1)
    chain = make_chain(simple())
    if place == b'"more": [' and depth == 50:
        payload = payload.replace(b",]", b"]")
        chain.accept(incoming(payload))  # a field that is skipped may be nested, within reason
    else:
        rejection(chain, payload)


def test_an_oversized_payload_is_refused_unread() -> None:
    fixed = make_manifest([Tensor("x", "FP32", (1, 3))], [Y])
    error = rejection(make_chain(fixed), v2_request(x_of(), id="m", more="x" * 100_000))
    assert "expected at most" in error.message
    assert error.id == "m"
    # Here it stands behind what is not read.
    error = rejection(make_chain(fixed), v2_request(x_of(), more="x" * 100_000, id="m"))
    assert error.id is None


def test_the_answer_to_a_refused_message_is_the_protocols_error() -> None:
    chain = make_chain(simple())
    error = rejection(chain, v2_request(id="m"))
    assert json.loads(chain.encode_error(error.id, error)) == {
        "id": "m",
        "error": "inputs: expected x; missing x",
        "code": "bad_input",
    }


def test_a_refused_message_without_id_is_known_by_its_correlation_data() -> None:
    error = rejection(make_chain(simple()), b"{}", correlation=b"c-9")
    assert (error.id, error.id_kind) == ("c-9", "correlation")


@pytest.mark.parametrize("batch", [0, 1, 32])
def test_a_free_dimension_takes_any_batch(batch: int) -> None:
    chain = make_chain(simple())
    request = v2_request(x_of(shape=[batch, 3], data=[[1, 2, 3]] * batch))
    step = chain.accept(incoming(request))
    assert step.inputs is not None
    assert step.inputs["x"].shape == (batch, 3)
    prediction = chain.predict(step, {"y": np.zeros((batch, 2), np.float32)})
    (output,) = json.loads(chain.encode(step, prediction, 1))["outputs"]
    assert output["shape"] == [batch, 2]
    assert output["data"] == [0.0] * (2 * batch)


def test_nested_data_must_have_the_stated_shape() -> None:
    chain = make_chain(simple())
    assert chain.accept(incoming(v2_request(x_of(shape=[2, 3], data=[[1, 2, 3], [4, 5, 6]]))))
    for data in ([[1, 2], [3, 4, 5, 6]], [[1, 2, 3]], [[1, 2], [3, 4], [5, 6]]):
        rejection(chain, v2_request(x_of(shape=[2, 3], data=data)))


def test_int64_stays_exact_both_ways() -> None:
    tensor = Tensor("n", "INT64", (2,))
    chain = make_chain(make_manifest([tensor], [tensor]))
    numbers = [9007199254740993, -(1 << 63)]
    request = {"name": "n", "shape": [2], "datatype": "INT64", "data": numbers}
    step = chain.accept(incoming(v2_request(request)))
    assert step.inputs is not None
    body = chain.encode(step, chain.predict(step, dict(step.inputs)), 1)
    assert json.loads(body)["outputs"][0]["data"] == numbers
    for beyond in (1 << 63, 1 << 70, 1.5):
        rejection(chain, v2_request({**request, "data": [0, beyond]}))


def test_uint64_reaches_its_largest_value_and_no_further() -> None:
    tensor = Tensor("n", "UINT64", (1,))
    chain = make_chain(make_manifest([tensor], [tensor]))
    request = {"name": "n", "shape": [1], "datatype": "UINT64", "data": [(1 << 64) - 1]}
    step = chain.accept(incoming(v2_request(request)))
    assert step.inputs is not None
    assert int(step.inputs["n"][0]) == (1 << 64) - 1
    rejection(chain, v2_request({**request, "data": [1 << 64]}))
    rejection(chain, v2_request({**request, "data": [-1]}))


def test_null_means_missing_where_an_input_allows_it() -> None:
    tensor = msgspec.structs.replace(X, allow_nan=True)
    chain = make_chain(make_manifest([tensor], [Y]))
    step = chain.accept(incoming(v2_request(x_of(data=[1, None, 3]))))
    assert step.inputs is not None
    assert np.isnan(step.inputs["x"][0, 1])


def test_only_the_outputs_asked_for_are_answered() -> None:
    chain = make_chain(make_manifest([X], [Y, Tensor("z", "INT32", (1,))]))
    step = chain.accept(incoming(v2_request(x_of(), outputs=[{"name": "z"}])))
    raw = {"y": np.zeros((1, 2), np.float32), "z": np.array([4], np.int32)}
    body = json.loads(chain.encode(step, chain.predict(step, raw), 1))
    assert [output["name"] for output in body["outputs"]] == ["z"]


def test_reply_to_is_obeyed_only_where_the_slot_allows_it() -> None:
    payload = v2_request(x_of(), reply_to="answers/1", id="m")
    assert make_chain(simple()).accept(incoming(payload)).reply_to == ""
    obeying = make_chain(simple(), reply_to=True)
    assert obeying.accept(incoming(payload)).reply_to == "answers/1"
    assert rejection(obeying, v2_request(reply_to="answers/1", id="m")).reply_to == "answers/1"


@pytest.mark.parametrize("topic", ["a/+", "#", "$SYS/x", "a\0", "t" * 600])
def test_a_reply_topic_that_nobody_may_publish_to_is_refused(topic: str) -> None:
    error = rejection(make_chain(simple(), reply_to=True), v2_request(x_of(), reply_to=topic))
    assert error.message.startswith("reply_to: expected a topic name")
    assert error.reply_to == ""


def test_a_replayed_message_of_a_plain_model_is_only_absorbed() -> None:
    step = make_chain(simple()).accept(incoming(v2_request(x_of()), replay=True))
    assert step.inputs is None
    assert step.released is None


def test_the_class_is_the_largest_score_where_the_pack_has_labels() -> None:
    chain = make_chain(simple(labels=["ok", "worn"]))
    step = chain.accept(incoming(v2_request(x_of())))
    raw = {"y": np.array([[0.25, 0.75]], np.float32)}
    assert chain.class_labels[chain.predict(step, raw).class_index] == "worn"
    batch = {"y": np.array([[0.25, 0.75], [1, 0]], np.float32)}
    assert chain.predict(step, batch).class_index == -1


def test_without_labels_no_class_is_named() -> None:
    chain = make_chain(simple())
    step = chain.accept(incoming(v2_request(x_of())))
    assert chain.predict(step, {"y": np.array([[0, 1]], np.float32)}).class_index == -1
    assert chain.class_labels == ()


POST = [{"step": "threshold", "input": "y", "threshold": 0.5, "output": "alarm"}]


def test_settings_of_a_slot_win_over_the_packs_options() -> None:
    manifest = make_manifest([X], [Tensor("y", "FP32", (1,))], post=POST)
    for threshold, alarm in [(0.5, True), (0.7, False)]:
        chain = make_chain(manifest, {"threshold": threshold})
        step = chain.accept(incoming(v2_request(x_of())))
        prediction = chain.predict(step, {"y": np.array([0.6], np.float32)})
        assert prediction.tensors["alarm"].tolist() == [alarm]
        assert prediction.class_index == int(alarm)
        assert chain.class_labels == ("not alarm", "alarm")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"treshold": 0.7}, "settings.treshold"),
        ({"threshold": "high"}, "pipeline.post[0].threshold"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(given: Mapping[str, Any], path: str) -> None:
    manifest = make_manifest([X], [Tensor("y", "FP32", (1,))], post=POST)
    with pytest.raises(DocumentError) as caught:
        make_chain(manifest, given)
    assert caught.value.path.endswith(path)


@pytest.mark.parametrize(
    ("pipeline", "path"),
    [
        ({"decode": {"codec": "morse"}}, "manifest.pipeline.decode.codec"),
        ({"decode": {}}, "manifest.pipeline.decode.codec"),
        ({"decode": {"codec": "csv", "delimiter": "ab"}}, "manifest.pipeline.decode.delimiter"),
        ({"encode": {"codec": "image"}}, "manifest.pipeline.encode.codec"),
        ({"encode": {"codec": "raw", "outputs": ["q"]}}, "manifest.pipeline.encode.outputs[0]"),
        ({"pre": [{"step": "blur"}]}, "manifest.pipeline.pre[0].step"),
        ({"pre": [{"step": 5}]}, "manifest.pipeline.pre[0].step"),
        (
            {"pre": [{"step": "normalize"}, {"step": "normalize", "mean": [1, 2]}]},
            "manifest.pipeline.pre[1].mean",
        ),
        ({"pre": [{"step": "reorder", "axes": [0, 0]}]}, "manifest.pipeline.pre[0].axes"),
        ({"pre": [{"step": "reorder", "shape": [3, 2]}]}, "variant only: inputs.x.shape"),
    ],
)
def test_a_pipeline_that_does_not_fit_names_the_place(pipeline: dict[str, Any], path: str) -> None:
    with pytest.raises(DocumentError) as caught:
        make_chain(simple(**pipeline))
    assert caught.value.path == path


def test_outputs_that_the_steps_do_not_give_are_refused() -> None:
    manifest = msgspec.structs.replace(simple(post=[{"step": "argmax"}]), outputs=(Y,))
    with pytest.raises(DocumentError) as caught:
        make_chain(manifest)
    assert caught.value.path == "manifest.outputs"


def test_quantised_inputs_before_steps_are_refused() -> None:
    stored = Tensor("x", "INT8", (1, 3), scale=0.5, zero_point=0)
    with pytest.raises(DocumentError, match="real numbers"):
        make_chain(make_manifest([stored], [Y], pre=[{"step": "normalize"}]))


def test_variants_with_names_and_numbers_of_their_own_answer_alike() -> None:
    manifest = make_manifest(
        [Tensor("pixels", "FP32", (-1, 3))],
        [Tensor("scores", "FP32", (-1, 2))],
        post=[{"step": "argmax", "keep": True}],
        labels=["ok", "worn"],
    )
    (real,) = manifest.variants
    stored = msgspec.structs.replace(
        real,
        name="int8",
        inputs=(Tensor("pixels_int8", "INT8", (1, 3), scale=0.5, zero_point=-1),),
        outputs=(Tensor("scores_int8", "INT8", (1, 2), scale=0.25, zero_point=0),),
    )
    manifest = msgspec.structs.replace(manifest, variants=(real, stored))
    answers = []
    runs: list[tuple[Variant, Arrays]] = [
        (real, {"scores": np.array([[0.25, 0.75]], np.float32)}),
        (stored, {"scores_int8": np.array([[1, 3]], np.int8)}),
    ]
    for variant, raw in runs:
        chain = compile_chain(manifest, variant, produced_by=PRODUCED_BY)
        request = {"name": "pixels", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
        step = chain.accept(incoming(v2_request(request, id="m")))
        assert step.inputs is not None
        assert set(step.inputs) == {tensor.name for tensor in variant.inputs}
        body = json.loads(chain.encode(step, chain.predict(step, raw), 1))
        assert body["parameters"]["variant"] == variant.name
        answers.append(body["outputs"])
    assert answers[0] == answers[1]


# Windows through the chain.

READING = Tensor("v", "FP32", ())
SERIES = Tensor("series", "FP32", (-1, 3))


def windowed(window: Window, *, max_sources: int = 4, **fields: Any) -> Chain:
    return make_chain(
        make_manifest(
            [READING],
            [Y],
            file_inputs=[SERIES],
            window=window,
            decode={"codec": "features"},
            max_sources=max_sources,
            **fields,
        )
    )


def reading(value: float) -> bytes:
    return json.dumps({"v": value, "id": f"r-{value:g}"}).encode()


def test_a_window_gathers_each_source_for_itself() -> None:
    chain = windowed(Window("sliding", size=3))
    steps = [
        chain.accept(
            incoming(reading(10 * source + i), topic=str(source), sequence=10 * source + i)
        )
        for i in range(4)
        for source in (1, 2)
    ]
    ready = [step for step in steps if step.inputs is not None]
    assert [step.inputs["series"].tolist() for step in ready if step.inputs] == [
        [[10, 11, 12]], [[20, 21, 22]], [[11, 12, 13]], [[21, 22, 23]],
    ]  # fmt: skip
    assert [step.released for step in ready] == [(10,), (20,), (11,), (21,)]
    assert [step.id for step in ready] == ["r-12", "r-22", "r-13", "r-23"]
    assert sorted(chain.held()) == [12, 13, 22, 23]


def test_a_bad_reading_never_enters_a_window() -> None:
    chain = windowed(Window("tumbling", size=3))
    for i in (1, 2):
        assert chain.accept(incoming(reading(i), sequence=i)).inputs is None
    assert rejection(chain, b'{"v":"hot","id":"r"}', sequence=3).released is None
    step = chain.accept(incoming(reading(4), sequence=4))
    assert step.inputs is not None
    assert step.inputs["series"].tolist() == [[1, 2, 4]]
    assert step.released == (1, 2, 4)


def test_a_window_that_no_step_can_take_is_released_with_its_refusal() -> None:
    chain = windowed(Window("tumbling", size=3), pre=[{"step": "cast", "datatype": "INT8"}])
    for i in (1, 2):
        chain.accept(incoming(reading(1000 * i), sequence=i))
    error = rejection(chain, reading(3), sequence=3)
    assert error.released == (1, 2, 3)
    assert error.id == "r-3"
    assert chain.held() == ()


def test_the_source_silent_for_longest_gives_way() -> None:
    chain = windowed(Window("sliding", size=3), max_sources=2)
    for sequence, topic in enumerate(["a", "b", "a", "b"]):
        chain.accept(incoming(reading(0), topic=topic, sequence=sequence))
    step = chain.accept(incoming(reading(0), topic="c", sequence=4))
    assert step.released == (0, 2)
    assert chain.counters.evicted_sources == 1
    assert sorted(chain.held()) == [1, 3, 4]


def test_time_comes_from_a_field_of_the_reading() -> None:
    window = Window("tumbling", span_ms=10, time_field="t")
    chain = windowed(window)
    found = []
    for i, t in enumerate([0, 4, 8, 10]):
        payload = json.dumps({"v": i, "t": t}).encode()
        found.append(chain.accept(incoming(payload, sequence=i, now_ms=0)))
    assert found[-1].inputs is not None
    assert found[-1].inputs["series"].tolist() == [[0, 1, 2]]
    assert rejection(chain, b'{"v":1}').message == "t: expected a time in ms, got none"


def test_time_may_be_an_input_of_its_own() -> None:
    window = Window("tumbling", span_ms=10, time_field="t")
    manifest = make_manifest(
        [READING, Tensor("t", "INT64", (1,))], [Y], file_inputs=[SERIES], window=window
    )
    chain = make_chain(manifest)
    step = None
    for i, t in enumerate([0, 4, 8, 10]):
        v = {"name": "v", "shape": [1], "datatype": "FP32", "data": [i]}
        at = {"name": "t", "shape": [1], "datatype": "INT64", "data": [t]}
        step = chain.accept(incoming(v2_request(v, at), sequence=i))
    assert step is not None
    assert step.inputs is not None
    assert step.inputs["series"].tolist() == [[0, 1, 2]]


def test_a_time_that_is_no_number_is_refused() -> None:
    window = Window("tumbling", span_ms=10, time_field="t")
    inputs = [READING, Tensor("t", "BYTES", (1,))]
    with pytest.raises(DocumentError, match="time_field"):
        make_chain(make_manifest(inputs, [Y], file_inputs=[SERIES], window=window))
    missing = [READING, Tensor("t", "FP64", (1,), allow_nan=True)]
    chain = make_chain(make_manifest(missing, [Y], file_inputs=[SERIES], window=window))
    v = {"name": "v", "shape": [1], "datatype": "FP32", "data": [1]}
    at = {"name": "t", "shape": [1], "datatype": "FP64", "data": [None]}
    assert rejection(chain, v2_request(v, at)).message == "t: expected a time in ms, got nan"
    assert chain.held() == ()


def test_a_time_field_that_no_payload_can_hold_is_refused() -> None:
    manifest = make_manifest(
        [READING], [Y], file_inputs=[SERIES], window=Window("sliding", span_ms=5, time_field="t")
    )
    with pytest.raises(DocumentError, match="time_field"):
        make_chain(manifest)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["good", "bad", "worse"])), max_size=60
    ),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(["sliding", "tumbling"]),
)
def test_every_message_is_released_exactly_once_whatever_comes(
    messages: list[tuple[str, str]], max_sources: int, size: int, step: int, kind: str
) -> None:
    manifest = make_manifest(
        [READING],
        [Y],
        file_inputs=[Tensor("series", "INT8", (1, size))],
        window=Window(kind, size=size, step=step),  # type: ignore[arg-type]
        decode={"codec": "features"},
        pre=[{"step": "cast", "datatype": "INT8"}],
        max_sources=max_sources,
    )
    chain = make_chain(manifest)
    released: Counter[int] = Counter()
    for sequence, (topic, quality) in enumerate(messages):
        payload = {"good": b"[1]", "bad": b'["x"]', "worse": b"[1000]"}[quality]
        try:
            gone = chain.accept(incoming(payload, topic=topic, sequence=sequence)).released
        except RejectedMessage as error:
            gone = error.released
        released.update((sequence,) if gone is None else gone)
    assert all(count == 1 for count in released.values())
    assert set(released) | set(chain.held()) == set(range(len(messages)))
    assert not set(released) & set(chain.held())


# State that the model hands back.

COUNTER: dict[str, Any] = {
    "file_inputs": [Tensor("x", "FP32", (1,)), Tensor("h", "FP32", (-1, 2))],
    "file_outputs": [Tensor("y", "FP32", (1,)), Tensor("hn", "FP32", (-1, 2))],
}


def counting(max_sources: int = 8) -> Chain:
    """A model that adds what it gets to its state and gives the sum."""
    return make_chain(
        make_manifest(
            [Tensor("x", "FP32", (1,))],
            [Tensor("y", "FP32", (1,))],
            decode={"codec": "features"},
            state=[StatePair("h", "hn")],
            max_sources=max_sources,
            **COUNTER,
        )
    )


def count(chain: Chain, step: Step) -> Prediction:
    assert step.inputs is not None
    state = step.inputs["h"] + step.inputs["x"]
    return chain.predict(step, {"y": state[0, :1], "hn": state})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-9, 9)), max_size=50))
def test_the_state_of_a_source_is_its_own(messages: list[tuple[str, int]]) -> None:
    chain, sums = counting(), Counter[str]()
    for topic, value in messages:
        step = chain.accept(incoming(f"[{value}]".encode(), topic=topic))
        sums[topic] += value
        assert count(chain, step).tensors["y"].tolist() == [sums[topic]]


def test_a_replayed_message_rebuilds_the_state() -> None:
    chain = counting()
    step = chain.accept(incoming(b"[5]", replay=True))
    count(chain, step)
    assert count(chain, chain.accept(incoming(b"[2]"))).tensors["y"].tolist() == [7]


def test_an_evicted_source_starts_anew() -> None:
    chain = counting(max_sources=1)
    for topic, wanted in [("a", 5), ("a", 10), ("b", 5), ("a", 5)]:
        step = chain.accept(incoming(b"[5]", topic=topic))
        assert step.released is None
        assert count(chain, step).tensors["y"].tolist() == [wanted]


def test_a_bad_answer_does_not_poison_the_state() -> None:
    chain = counting()
    count(chain, chain.accept(incoming(b"[5]")))
    step = chain.accept(incoming(b"[1]"))
    bad: list[Arrays] = [
        {"y": np.zeros(1, np.float32), "hn": np.array([[np.nan, 0]], np.float32)},
        {"y": np.zeros(1, np.float32)},
    ]
    for raw in bad:
        with pytest.raises(BadOutput):
            chain.predict(step, raw)
        assert count(chain, chain.accept(incoming(b"[3]"))).tensors["y"].tolist() == [3]


def test_a_state_that_does_not_fit_its_input_is_refused() -> None:
    manifest = make_manifest(
        [Tensor("x", "FP32", (1,))], [Tensor("y", "FP32", (1,))],
        state=[StatePair("h", "lost")], **COUNTER,
    )  # fmt: skip
    with pytest.raises(DocumentError) as caught:
        make_chain(manifest)
    assert caught.value.path == "manifest.state[0].output"


# Self-test and warm-up.


def test_a_prediction_passes_its_own_self_test_and_no_other() -> None:
    chain = make_chain(simple())
    step = chain.accept(incoming(v2_request(x_of())))
    prediction = chain.predict(step, {"y": np.array([[0.25, 0.75]], np.float32)})
    case = chain.expected_from(prediction)
    assert chain.deviation(prediction, case) == 0.0
    near = chain.predict(step, {"y": np.array([[0.25, 0.75005]], np.float32)})
    assert chain.deviation(near, case) == pytest.approx(5e-5, rel=1e-2)
    far = chain.predict(step, {"y": np.array([[0.25, 0.76]], np.float32)})
    with pytest.raises(SelfTestFailed, match=r"output 'y'\[0,1\]: expected 0\.75, got 0\.76"):
        chain.deviation(far, case)
    batch = chain.predict(step, {"y": np.zeros((2, 2), np.float32)})
    with pytest.raises(SelfTestFailed, match=r"expected FP32 \[1,2\]"):
        chain.deviation(batch, case)


def test_texts_and_missing_values_are_compared_as_they_are() -> None:
    outputs = [Tensor("t", "BYTES", (-1,)), Tensor("n", "FP32", (-1,), allow_nan=True)]
    chain = make_chain(make_manifest([X], outputs))
    step = chain.accept(incoming(v2_request(x_of())))

    def predict(text: str, number: float) -> Prediction:
        raw = {"t": np.array([text], np.object_), "n": np.array([number], np.float32)}
        return chain.predict(step, raw)

    case = chain.expected_from(predict("é", np.nan))
    assert chain.deviation(predict("é", np.nan), case) == 0.0
    for text, number in [("e", np.nan), ("é", 1.0)]:
        with pytest.raises(SelfTestFailed):
            chain.deviation(predict(text, number), case)


def test_a_warm_up_has_every_tensor_of_the_file() -> None:
    zeros = counting().zeros()
    assert {name: array.shape for name, array in zeros.items()} == {"x": (1,), "h": (1, 2)}
