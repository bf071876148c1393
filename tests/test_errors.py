"""The documented errors are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent import errors

TABLE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (yes|no) \|", re.MULTILINE)


def _all(kind: type[errors.AgentError]) -> list[type[errors.AgentError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _all(child))]


def _own() -> list[type[errors.AgentError]]:
    return [kind for kind in _all(errors.AgentError) if kind.__module__ == "agent.errors"]


def test_the_page_lists_every_error_with_its_code_and_whether_it_is_retried() -> None:
    listed = {
        name: (code, retried == "yes") for code, name, retried in ROW.findall(TABLE.read_text())
    }
    assert listed == {kind.__name__: (kind.code, kind.retryable) for kind in _own()}


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in _own()]
    assert len(codes) == len(set(codes))


def test_an_error_shows_its_hint() -> None:
    error = errors.NoSpace("needed 5 bytes, free 3", hint="raise limits.store_mb")
    assert str(error) == "needed 5 bytes, free 3 (raise limits.store_mb)"


def test_a_document_error_names_path_expected_and_got() -> None:
    with pytest.raises(errors.AgentError, match=r"a\.b: expected int, got 'x'"):
        raise errors.DocumentError("a.b", "int", "'x'")
