"""The log cannot be forged, and a disk that takes none stops nothing."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.daemon.logs import start_logging

RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ \S+ ")
FORGED = "x\n2026-01-01 00:00:00,000 ERROR agent forged\x1b[2J"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, raising = logging.getLogger(), logging.raiseExceptions
    before, level = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)
    logging.raiseExceptions = raising


def lines_of(folder: Path) -> list[str]:
    return (folder / "agent.log").read_text().splitlines()


def test_a_record_is_one_line_whatever_is_in_it(tmp_path: Path) -> None:
    start_logging("info", tmp_path)
    logging.getLogger("agent").warning("topic %s", FORGED)
    (line,) = lines_of(tmp_path)
    assert line.endswith("topic x\\n2026-01-01 00:00:00,000 ERROR agent forged\\x1b[2J")


def test_no_line_of_a_traceback_looks_like_a_record(tmp_path: Path) -> None:
    start_logging("info", tmp_path)
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("agent").exception("failed")
    first, *rest = lines_of(tmp_path)
    assert RECORD.match(first)
    assert rest
    assert not [line for line in rest if RECORD.match(line) or not line.isprintable()]


def test_a_folder_that_cannot_be_made_leaves_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    start_logging("info", tmp_path / "file" / "log")
    logging.getLogger("agent").warning("told")
    assert "told" in capsys.readouterr().err
