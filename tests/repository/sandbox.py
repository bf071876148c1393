"""Runs the `sh` blocks of one page, in order, in a folder of their own beside a broker."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.repository.commands import REPOSITORY
from tests.repository.markdown import Block

# What a page may use as if it stood in a clone of the repository.
_SHOWN = ("device_profiles", "docs", "examples", "requirements", "systemd")
_BROKER = re.compile(r"\b(?:127\.0\.0\.1|localhost):1883\b")


def is_run(block: Block) -> bool:
    """A block marked `sh` and nothing more is run; `sh checked` is only looked up."""
    return block.words == ("sh",)


def script_of(blocks: tuple[Block, ...], broker_port: int) -> str:
    """One script of a page: its files written and its commands run where they stand.

    A page writes the broker's address as 127.0.0.1:1883 or localhost:1883; the test's own broker
    takes its place.
    """
    text = "\n".join(_parts(blocks))
    return _BROKER.sub(f"127.0.0.1:{broker_port}", text)


def _parts(blocks: tuple[Block, ...]) -> Iterator[str]:
    yield "set -eu"
    for block in blocks:
        if block.file_name:
            yield f"printf %s {shlex.quote(block.text)} > {shlex.quote(block.file_name)}"
        elif is_run(block):
            # The last of these lines is where a failure happened.
            yield f"echo {shlex.quote('@ ' + block.where)} >&2"
            yield block.text


def run(script: str, folder: Path, within_s: float) -> subprocess.CompletedProcess[str]:
    """Run a page's script; whatever it leaves running is ended."""
    for name in _SHOWN:
        if (REPOSITORY / name).exists():
            (folder / name).symlink_to(REPOSITORY / name)
    environment = {
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    output = folder / "output.txt"
    with output.open("wb") as sink:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
        try:
            code = shell.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            _end(shell.pid)
            shell.wait()
    return subprocess.CompletedProcess(script, code, output.read_text(errors="replace"))


def _end(group: int) -> None:
    """End everything that the page started: all of it is in the shell's process group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
