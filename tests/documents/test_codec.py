"""Documents are decoded strictly, within bounds, and an error names the value."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.documents import codec
from agent.documents.deployment import MAX_DEPLOYMENT_BYTES, Deployment
from agent.documents.manifest import Manifest
from agent.errors import DocumentError

SLOT: dict[str, Any] = {
    "pack": "sha256:" + "a" * 64,
    "from": "mqtt:",
    "input": {"topic": "sensors/+/accel", "qos": 1},
    "output": {"topic": "predictions/{slot}/{1}"},
}


def document(**changes: Any) -> bytes:
    base: dict[str, Any] = {"schema": 1, "deployment": "line-7", "slots": {"vib": SLOT}}
    return json.dumps({**base, **changes}).encode()


def decode(data: bytes) -> codec.Decoded[Deployment]:
    return codec.decode(data, Deployment, name="desired", max_bytes=MAX_DEPLOYMENT_BYTES)


def test_unknown_fields_are_ignored_and_counted() -> None:
    slot = {**SLOT, "colour": "red", "input": {"topic": "a", "mood": 1}}
    decoded = decode(document(slots={"vib": slot}, extra=[1]))
    assert decoded.unknown_fields == 3
    assert decoded.value.slots["vib"].input.topic == "a"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"schema": 2}, "desired.schema: expected 1, got 2"),
        ({"slots": []}, "desired.slots: expected object, got []"),
        (
            {"slots": {"vib": {**SLOT, "pack": "latest"}}},
            "desired.slots.vib.pack: expected str matching regex '^sha256:[0-9a-f]{64}$', "
            "got 'latest'",
        ),
        (
            {"slots": {"vib": {**SLOT, "input": {"topic": "a", "qos": 2}}}},
            "desired.slots.vib.input.qos: expected one of 0, 1, got 2",
        ),
        (
            {"slots": {"vib": {"pack": SLOT["pack"]}}},
            "desired.slots.vib: expected a field 'input', got none",
        ),
        (
            {"slots": {"Bad.Key": SLOT}},
            "desired.slots key 'Bad.Key': expected str matching regex '^[a-z0-9_-]{1,64}$', "
            "got 'Bad.Key'",
        ),
    ],
)
def test_an_error_names_the_value_what_was_expected_and_what_was_there(
    changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(DocumentError) as caught:
        decode(document(**changes))
    assert str(caught.value).startswith(text)


def test_an_error_text_stays_short_and_prints_whatever_the_keys_and_values_are() -> None:
    cases: list[tuple[str, Any]] = [("k" * 5000, {}), ("\x1b[2J\n", {}), ("a", "v" * 5000)]
    for key, value in cases:
        settings = {key: value}
        with pytest.raises(DocumentError) as caught:
            decode(document(slots={"vib": {**SLOT, "settings": settings, "input": value}}))
        with pytest.raises(DocumentError) as within:
            decode(document(slots={"vib": {**SLOT, "settings": settings}}, telemetry=value))
        with pytest.raises(DocumentError) as below:
            decode(document(slots={key: {**SLOT, "input": {"topic": "a", "qos": value}}}))
        for error in (caught, within, below):
            assert len(str(error.value)) < 300
            assert str(error.value).isprintable()


def test_a_document_beyond_its_bound_is_refused_unread() -> None:
    with pytest.raises(DocumentError, match="at most 8192 bytes, got 9000 bytes"):
        decode(b" " * 9000)


def test_deep_nesting_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(DocumentError, match="levels of nesting"):
        decode(b'{"a":' * 100 + b"1" + b"}" * 100)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(DocumentError, match="a JSON document"):
        decode(b"{nope")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.from_regex(rb'\{"schema":1,[\x20-\x7e]{0,80}\}'))
def test_no_bytes_raise_anything_but_a_document_error(data: bytes) -> None:
    for kind in (Deployment, Manifest):
        with suppress(DocumentError):
            codec.decode(data, kind, name="it", max_bytes=1000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["schema", "slots", "vib", "input", "topic", "pack", "pipeline"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_no_json_raises_anything_but_a_document_error(value: Any) -> None:
    for kind in (Deployment, Manifest):
        with suppress(DocumentError):
            codec.convert(value, kind, name="it")


def test_what_is_encoded_is_decoded_to_the_same() -> None:
    value = decode(document()).value
    assert decode(codec.encode(value)).value == value


def test_a_string_that_never_ends_is_refused_at_once() -> None:
    hostile = b'"' + b'\\"' * 100_000 + b"\\"
    began = time.process_time()
    with pytest.raises(DocumentError, match="expected a JSON document"):
        codec.decode(hostile, Manifest, name="manifest", max_bytes=1 << 20)
    # Looked at once, not once from each quote: that took minutes.
    assert time.process_time() - began < 5


def test_only_brackets_outside_of_strings_count_as_nesting() -> None:
    assert decode(document(deployment='"\\[' * 30)).value.deployment == '"\\[' * 30
