"""The chain of evidence: what was altered, dropped, exchanged or cut is found."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.control.evidence import (
    LINE_BYTES_MAX,
    NOTHING,
    Entry,
    Head,
    end_line,
    next_line,
    read_line,
    verify,
)

AT = "2026-11-24T10:00:00.000Z"


def chain(count: int, head: Head | None = None) -> list[bytes]:
    """An export of so many lines, as a file gives it."""
    at = head or Head()
    first = at.n + 1 if count else 0
    lines = []
    for number in range(count):
        line, at = next_line(Entry("activated", f"slot-{number}", "sha256:aa"), at, AT)
        lines.append(line + b"\n")
    return [*lines, end_line(first, at) + b"\n"]


@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_a_whole_export_verifies(count: int) -> None:
    verdict = verify(chain(count))
    assert (verdict.ok, verdict.lines, verdict.why) == (True, count, "")


def test_an_export_of_which_older_lines_were_given_up_for_room_verifies() -> None:
    verdict = verify(chain(5, Head(100, "ab" * 32)))
    assert (verdict.ok, verdict.first, verdict.lines) == (True, 101, 5)


def test_the_first_line_of_a_device_follows_from_none() -> None:
    verdict = verify(chain(3, Head(0, "ab" * 32)))
    assert (verdict.ok, verdict.broken_line) == (False, 1)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_change_of_any_byte_is_found(data: st.DataObject) -> None:
    content = b"".join(chain(6))
    at = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[at]))
    changed = content[:at] + bytes((byte,)) + content[at + 1 :]
    verdict = verify(changed.splitlines(keepends=True))
    assert not verdict.ok
    assert verdict.broken_line > 0


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_line_left_out_doubled_or_exchanged_is_found(data: st.DataObject) -> None:
    lines = chain(6)
    order = data.draw(st.lists(st.integers(0, 6), max_size=9).filter(lambda o: o != [*range(7)]))
    assert not verify([lines[at] for at in order]).ok


@given(st.integers(0, 2000), st.binary(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_cut_and_any_addition_is_found(at: int, more: bytes) -> None:
    content = b"".join(chain(6))
    cut = content[: at % len(content)]
    assert not verify(cut.splitlines(keepends=True)).ok
    if more:
        assert not verify((content + more).splitlines(keepends=True)).ok


def test_it_says_which_line_is_the_first_that_does_not_follow() -> None:
    lines = chain(6)
    lines[2] = lines[2].replace(b"slot-2", b"slot-9")
    verdict = verify(lines)
    assert (verdict.broken_line, verdict.lines) == (4, 3)
    assert "altered" in verdict.why


def test_a_chain_that_was_written_anew_does_not_go_on_from_the_head_that_was_kept() -> None:
    kept = verify(chain(3)).head
    assert verify(chain(6), kept).ok
    assert verify(chain(3, Head(3, kept)), kept).ok
    assert not verify(chain(6, Head(3, "cd" * 32)), kept).ok
    assert not verify(chain(2), kept).ok


def test_a_line_too_long_to_be_kept_is_shortened_and_still_says_what_it_is() -> None:
    serving = {f"slot-{number}": "sha256:" + "a" * 64 for number in range(200)}
    line, head = next_line(Entry("started", serving=serving), Head(), AT)
    assert len(line) <= LINE_BYTES_MAX
    found = read_line(line)
    assert found is not None
    assert (found.what.kind, found.n, found.prev, head.n) == ("started", 1, NOTHING, 1)


@pytest.mark.parametrize("line", [b"", b"[]", b"null", b"[" * 4000, b"x" * 10_000, b'{"n":0}'])
def test_what_is_no_line_is_named_as_such(line: bytes) -> None:
    lines = chain(3)
    verdict = verify([lines[0], line + b"\n", *lines[1:]])
    assert (verdict.broken_line, verdict.why) == (2, "this is no line of a chain")


def test_a_number_below_one_begins_no_chain() -> None:
    forged = msgspec.json.encode({"n": 0, "prev": NOTHING, "at": AT, "what": {"kind": "proven"}})
    assert verify([forged + b"\n"]).broken_line == 1
