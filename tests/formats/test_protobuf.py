"""The wire format, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ModelRejected
from agent.formats.bounds import Budget
from agent.formats.protobuf import MAX_KEPT, Message, fields, read, signed
from tests.formats.building import bytes_field, integer_field, varint


def parsed(data: bytes, *wanted: int) -> Message:
    return read([memoryview(data)], Budget(1_000_000, "test"), wanted)


def test_each_wire_type_is_read() -> None:
    data = integer_field(1, 300) + b"\x11" + bytes(8) + bytes_field(3, b"abc") + b"\x25" + bytes(4)
    found = list(fields(memoryview(data), Budget(10, "test")))
    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert found[0][1] == 300
    assert bytes(memoryview(found[2][1])) == b"abc"  # type: ignore[arg-type]


def test_of_a_singular_field_the_last_value_counts() -> None:
    assert parsed(integer_field(1, 5) + integer_field(1, 6), 1).integer(1) == 6


def test_a_field_of_another_wire_type_than_expected_is_passed_over() -> None:
    message = parsed(bytes_field(1, b"x") + integer_field(2, 1), 1, 2)
    assert message.integer(1, 9) == 9
    assert message.views(2) == []
    assert message.name(2) == ""


@given(st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=50, deadline=None)
def test_a_signed_number_survives(value: int) -> None:
    assert parsed(integer_field(1, value % 2**64), 1).integer(1) == value
    assert signed(value % 2**64, 64) == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x08", "ends inside a number"),
        (b"\x08\xff", "ends inside a number"),
        (b"\x08" + b"\xff" * 11, "a number has no end"),
        (b"\x0a\x05abc", "field 1 says 5 bytes where only 3 follow"),
        (b"\x0a" + varint(2**63), "where only 0 follow"),
        (b"\x0d\x00", "says 4 bytes"),
        (b"\x09\x00", "says 8 bytes"),
        (b"\x00\x00", "impossible number"),
        (varint(2**32 + 0x0A) + b"\x00", "impossible number"),
        (b"\x0b\x0c", "wire type 3"),
    ],
)
def test_bytes_that_are_not_this_format_are_refused_with_the_reason(
    data: bytes, reason: str
) -> None:
    with pytest.raises(ModelRejected, match=reason):
        parsed(data, 1)


def test_what_is_not_wanted_is_checked_all_the_same() -> None:
    with pytest.raises(ModelRejected, match="cut short"):
        parsed(integer_field(1, 1) + b"\x12\x05", 1)


def test_a_message_keeps_no_more_values_than_the_limit() -> None:
    assert len(parsed(bytes_field(1, b"") * MAX_KEPT, 1).views(1)) == MAX_KEPT
    with pytest.raises(ModelRejected, match="repeats its fields"):
        parsed(bytes_field(1, b"") * (MAX_KEPT + 1), 1)


def test_a_spent_budget_ends_the_reading() -> None:
    with pytest.raises(ModelRejected, match="more parts"):
        list(fields(memoryview(integer_field(1, 1) * 11), Budget(10, "test")))


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"a\x00b", b"a\nb", b"x" * 1025])
def test_a_name_must_survive_unchanged(raw: bytes) -> None:
    with pytest.raises(ModelRejected, match="name"):
        parsed(bytes_field(1, raw), 1).name(1)
    assert isinstance(parsed(bytes_field(1, raw), 1).text(1), str)
