"""The end of a log, and what is added to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cli import tail
from agent.cli.main import run


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.text(alphabet="abé", max_size=9), max_size=30),
    count=st.integers(0, 40),
    chunk=st.integers(1, 50),
)
def test_the_last_lines_are_those_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], count: int, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "agent.log"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail, "CHUNK_BYTES", chunk)
        assert tail.last_lines(path, count) == (lines[-count:] if count else [])


def test_added_lines_are_followed_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    path.write_text("old\n")
    steps = iter(["one\ntw", "o\n", "rotate", "three\n"])

    def wait(seconds: float) -> None:
        step = next(steps)
        if step == "rotate":
            path.rename(tmp_path / "agent.log.1")
            path.write_text("")
        else:
            with path.open("a") as log:
                log.write(step)

    with closing(tail.follow(path, wait)) as following:
        assert [next(following) for _ in range(3)] == ["one", "two", "three"]


def test_a_log_that_vanishes_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    path.write_text("")
    steps: Iterator[Callable[[], object]] = iter(
        [path.unlink, lambda: None, lambda: path.write_text("back\n")]
    )
    with closing(tail.follow(path, lambda seconds: next(steps)())) as following:
        assert next(following) == "back"


def test_logs_shows_the_end_of_the_agents_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWARD_STATE_DIR", str(tmp_path))
    assert run(["logs"]) == 2
    assert "there is no log at" in capsys.readouterr().err
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "agent.log").write_text("".join(f"{i}\n" for i in range(100)))
    assert run(["logs", "-n", "2"]) == 0
    assert capsys.readouterr().out == "98\n99\n"
