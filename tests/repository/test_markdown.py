"""The tools that check the documentation see what is there."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from pathlib import Path

import pytest

from tests.repository import sandbox
from tests.repository.commands import command_lines, complaint
from tests.repository.markdown import anchor, read

PAGE = """\
# A page, and more

Type `make test` or see [the rest](other.md#part-2).

```toml agent.toml
device_id = "x"
```

```sh
cat agent.toml   # a comment
echo mqtt://localhost:1883 > url
```

```sh checked
sudo apt-get install mosquitto
```
"""


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_a_page_is_taken_apart(page_file: Path) -> None:
    page = read(page_file, "page.md")
    assert [block.words for block in page.blocks] == [
        ("toml", "agent.toml"),
        ("sh",),
        ("sh", "checked"),
    ]
    assert page.blocks[0].where == "page.md:5"
    assert page.inline == (("page.md:3", "make test"),)
    assert page.links == (("page.md:3", "other.md#part-2"),)
    assert page.anchors == {"a-page-and-more"}


def test_a_block_without_an_end_is_told(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```sh\nls\n")
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        read(path, "page.md")


def test_a_page_runs_with_its_files_and_with_the_broker_of_the_test(
    page_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    script = sandbox.script_of(read(page_file, "page.md").blocks, broker_port=4321)
    done = sandbox.run(script, folder, within_s=20)
    assert done.returncode == 0, done.stdout
    assert 'device_id = "x"' in done.stdout
    assert (folder / "url").read_text() == "mqtt://127.0.0.1:4321\n"


def test_a_command_that_fails_fails_the_page_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```sh\ntrue\n```\n\n```sh\nfalse | true\nfalse\ntrue\n```\n")
    done = sandbox.run(sandbox.script_of(read(path, "p").blocks, 1), tmp_path, within_s=20)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "@ p:5"


def test_what_a_page_leaves_running_is_ended(tmp_path: Path) -> None:
    done = sandbox.run("tail -f /dev/null & echo $!", tmp_path, within_s=20)
    assert done.returncode == 0
    with suppress(ProcessLookupError):
        process = os.pidfd_open(int(done.stdout))
        # A kill is carried out a moment after it was asked for; the descriptor tells when.
        ended = select.poll()
        ended.register(process, select.POLLIN)
        assert ended.poll(20_000)
        os.close(process)


def test_a_page_that_does_not_end_is_ended(tmp_path: Path) -> None:
    assert sandbox.run("tail -f /dev/null", tmp_path, within_s=0.2).returncode == -1


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sudo sh install.sh --dry-run", [["sh", "install.sh", "--dry-run"]]),
        ("A=1 make \\\n  test", [["make", "test"]]),
        (
            "cd x && ls | tail -1; echo 'a;b' # make",
            [["cd", "x"], ["ls"], ["tail", "-1"], ["echo", "a;b"]],
        ),
        ("cat <<EOF\nmake nonsense\nEOF\nls", [["cat", "<<EOF"], ["ls"]]),
        ("sudo -u edgeward edgeward run", [["edgeward", "run"]]),
        ("edgeward run &", [["edgeward", "run"]]),
    ],
)
def test_command_lines_are_found(script: str, words: list[list[str]]) -> None:
    assert list(command_lines(script)) == words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["make", "test", "ARGS=-x"], ""),
        (["make", "coffee"], "coffee"),
        (["sh", "systemd/install.sh", "--dry-run"], ""),
        (["sh", "systemd/install.sh", "--now"], "--now"),
        (["sh", "requirements/absent.sh"], "absent.sh"),
        (["brew", "install"], "brew"),
    ],
)
def test_a_command_that_does_not_exist_is_told(words: list[str], said: str) -> None:
    assert (said in complaint(words)) if said else not complaint(words)


def test_anchors_are_those_of_the_renderer() -> None:
    assert anchor("What `make` does, in short") == "what-make-does-in-short"
