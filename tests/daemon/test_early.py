"""What is started before the agent is imported, and by which hint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.control.state import DeviceState
from agent.daemon import early
from agent.daemon.warm import Hint
from agent.links.spawn import Spawned
from agent.links.template import TemplateProcess
from agent.store.files import Files


@pytest.fixture
def started() -> Iterator[list[Spawned]]:
    """What `early` has started; ended afterwards."""
    found: list[Spawned] = []
    yield found
    for spawned in found:
        TemplateProcess(spawned).kill()


def configure(folder: Path, hint: str, text: str = "") -> list[str]:
    state = folder / "state"
    state.mkdir()
    (state / early.HINT_NAME).write_text(hint)
    config = folder / "agent.toml"
    config.write_text(text or f'device_id = "press-7"\nstate_dir = "{state}"  # here\n[link]\n')
    return ["--config", str(config)]


def test_what_served_last_is_started(tmp_path: Path, started: list[Spawned]) -> None:
    early.start(configure(tmp_path, "reference\n"))
    started += early.take()
    assert [spawned.runtime for spawned in started] == ["reference"]
    assert early.take() == []


@pytest.mark.parametrize("option", ["--check", "--help", "-h"])
def test_nothing_is_started_for_who_does_not_run(tmp_path: Path, option: str) -> None:
    early.start([*configure(tmp_path, "reference\n"), option])
    assert early.take() == []


@pytest.mark.parametrize(
    "hint", ["", "../../bin/sh", "a b\0c", "-c", "x" * 65, "\N{SNOWMAN}", "REFERENCE"]
)
def test_a_hint_that_names_no_runtime_starts_nothing(tmp_path: Path, hint: str) -> None:
    arguments = configure(tmp_path, hint)
    early.start(arguments)
    spawned = early.take()
    names = [one.runtime for one in spawned]
    for one in spawned:
        TemplateProcess(one).kill()
    # A word of the right letters is tried: its template says that there is no such runtime.
    assert set(names) <= {"a", "-c"}


def test_a_hint_is_looked_for_only_where_the_configuration_plainly_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[Spawned]
) -> None:
    arguments = configure(tmp_path, "reference\n", '[link]\nstate_dir = "elsewhere"\n')
    early.start(arguments)
    assert early.take() == []
    monkeypatch.setenv("EDGEWARD_STATE_DIR", str(tmp_path / "state"))
    early.start([f"--config={arguments[1]}"])
    started += early.take()
    assert [spawned.runtime for spawned in started] == ["reference"]


def test_a_configuration_that_is_a_device_or_absent_holds_nothing_up(tmp_path: Path) -> None:
    early.start(["--config", "/dev/zero"])
    early.start(["--config", str(tmp_path / "absent.toml")])
    assert early.take() == []


def test_it_costs_next_to_no_import() -> None:
    code = "import sys; from agent.daemon import early; early.start([]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"msgspec", "asyncio", "re", "json", "typing", "pathlib", "subprocess", "dataclasses"}
    assert heavy.isdisjoint(done.stdout.split())


def test_a_hint_that_is_right_already_is_not_written_again(tmp_path: Path) -> None:
    class Counting(Files):
        replaced = 0

        def replace(self, path: Path, data: bytes, mode: int = 0o600) -> None:
            self.replaced += 1
            super().replace(path, data, mode)

    files, state = Counting(), DeviceState()
    for _ in range(2):
        Hint(files, tmp_path).follow(state)
    assert files.replaced == 1
    assert (tmp_path / early.HINT_NAME).read_bytes() == b""
