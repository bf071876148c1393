"""Text of others, before it reaches a terminal or a log."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.documents.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("spalt 4 µm · ok", "spalt 4 µm · ok"),
        ("a\nERROR b", "a\\nERROR b"),
        ("\x1b[2J\x9b2J", "\\x1b[2J\\x9b2J"),
        ("a\u202eb\u2028c", "a\\u202eb\\u2028c"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_does_not_print_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@settings(max_examples=200, deadline=None)
@given(st.text(), st.integers(1, 20))
def test_any_text_is_bounded_and_prints(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    shown.encode()
