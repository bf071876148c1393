"""Looks at a process that owes an answer, as the daemon makes them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import pytest

from agent.control.hangs import Patience
from agent.daemon.watching import Watcher
from agent.daemon.workers import Worker
from agent.links import process

JUDGES = Patience(judges_sleep=True, cpu_s=0.05)
DEADLINE_S = 1.0
SLEEPS = "import time; print('on', flush=True); time.sleep(1000)"
SPINS = "print('on', flush=True)\nwhile True: pass"


def play(code: str, story: Callable[[Worker], Awaitable[None]]) -> None:
    """Tell a story about a worker that does this."""

    async def whole() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with (
            theirs,
            subprocess.Popen(
                [sys.executable, "-I", "-c", code],
                stdout=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
            ) as child,
        ):
            assert child.stdout is not None
            child.stdout.readline()
            theirs.close()
            worker = Worker(1, "r", 64)
            worker.pid = child.pid
            await loop.create_unix_connection(lambda: worker, sock=ours)
            try:
                await story(worker)
            finally:
                child.kill()
                child.wait()
                worker.exited(-signal.SIGKILL)
                await worker.gone

    asyncio.run(whole())


async def hangs(watcher: Watcher, within_s: float = 20.0, since: float | None = None) -> str:
    """Look when it is time to, and return why it is taken for hung; nothing: not so soon."""
    loop = asyncio.get_running_loop()
    began = loop.time() if since is None else since
    while loop.time() < began + within_s:
        now = loop.time()
        why = watcher.look(now, began, 0)
        if why:
            return why
        await asyncio.sleep(max(0.001, watcher.next_look_at(began, within_s) - now))
    return ""


def test_one_that_sleeps_and_one_that_spins_are_seen() -> None:
    async def sleeps(worker: Worker) -> None:
        assert "asleep" in await hangs(Watcher(worker, JUDGES))

    async def spins(worker: Worker) -> None:
        assert "processor time" in await hangs(Watcher(worker, JUDGES))

    play(SLEEPS, sleeps)
    play(SPINS, spins)


def test_one_that_is_stopped_is_left_to_its_deadline() -> None:
    async def story(worker: Worker) -> None:
        os.kill(worker.pid, signal.SIGSTOP)
        assert await hangs(Watcher(worker, JUDGES), within_s=0.3) == ""

    play(SLEEPS, story)


def test_an_answer_begins_it_anew() -> None:
    async def story(worker: Worker) -> None:
        watcher, loop = Watcher(worker, JUDGES), asyncio.get_running_loop()
        ends = loop.time() + 0.3
        while loop.time() < ends:
            # Each of these is too short to tell anything.
            assert await hangs(watcher, within_s=0.02) == ""

    play(SLEEPS, story)


def test_one_whose_stream_has_ended_is_not_looked_at() -> None:
    async def story(worker: Worker) -> None:
        watcher = Watcher(worker, JUDGES)
        os.kill(worker.pid, signal.SIGKILL)
        ends = time.monotonic() + 20
        while worker.is_connected and time.monotonic() < ends:
            await asyncio.sleep(0)
        # Whatever has its process id by now.
        worker.pid = os.getpid()
        assert await hangs(watcher, within_s=0.1) == ""

    play(SLEEPS, story)


@pytest.mark.parametrize("hidden", ["cpu_s", "is_asleep"])
def test_what_the_system_hides_is_told_and_left_to_the_deadline(
    hidden: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def hide(pid: int) -> NoReturn:
        raise PermissionError(1, "Operation not permitted")

    async def story(worker: Worker) -> None:
        monkeypatch.setattr(process, hidden, hide)
        watcher = Watcher(worker, JUDGES)
        monkeypatch.undo()
        assert await hangs(watcher, within_s=0.2) == ""
        (record,) = caplog.records
        assert "Operation not permitted" in record.message
        assert "deadline" in record.message

    with caplog.at_level(logging.INFO, "agent.daemon.watching"):
        play(SLEEPS, story)


def test_where_nothing_is_judged_nothing_is_looked_at_before_the_deadline() -> None:
    async def story(worker: Worker) -> None:
        watcher = Watcher(worker, Patience())
        assert watcher.first_look_s(DEADLINE_S) == DEADLINE_S
        assert watcher.next_look_at(5.0, DEADLINE_S) == 5.0 + DEADLINE_S
        assert await hangs(watcher, within_s=0.1) == ""

    play(SLEEPS, story)


def test_a_short_deadline_is_looked_at_in_time() -> None:
    async def story(worker: Worker) -> None:
        watcher = Watcher(worker, JUDGES)
        assert watcher.first_look_s(0.001) == 0.001
        assert watcher.next_look_at(5.0, 0.001) == 5.001

    play(SLEEPS, story)
