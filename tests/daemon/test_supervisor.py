"""The supervisor against workers that misbehave, and templates that are no longer needed."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agent.daemon.supervisor import Supervisor
from agent.daemon.templates import Template
from agent.daemon.workers import NoWorkerNow, Worker
from agent.errors import (
    AgentError,
    MemoryLimit,
    RuntimeUnavailable,
    WorkerError,
    WorkerExited,
    WorkerTimedOut,
)
from agent.links.cgroups import WorkerGroups
from agent.links.spawn import CONTROL, spawn
from agent.links.template import TemplateProcess
from agent.wire.worker import Load

PROGRAM = Path(__file__).with_name("hostile_template.py")
LOAD = Load(directory="/nowhere", pack="p", variant="v")
WITHIN_S = 10.0


def start_hostile(how: str) -> TemplateProcess:
    command = [sys.executable, str(PROGRAM), how, str(CONTROL)]
    return TemplateProcess(spawn(how, command, dict(os.environ)))


def play(story: Callable[[Supervisor], Awaitable[None]], idle_s: float = 60.0) -> None:
    """Run a story with a supervisor of hostile templates."""

    async def whole() -> None:
        supervisor = Supervisor(start_hostile, idle_s=idle_s)
        try:
            await asyncio.wait_for(story(supervisor), 3 * WITHIN_S)
        finally:
            await supervisor.close()

    asyncio.run(whole())


async def a_template(supervisor: Supervisor, runtime: str) -> Template:
    return await supervisor._template(runtime)


async def has_no_worker(supervisor: Supervisor, runtime: str) -> None:
    """Wait until the template has reaped all its workers."""
    template = await a_template(supervisor, runtime)
    await asyncio.gather(*(worker._status for worker in template.workers.values()))
    assert not template.workers


def end_of(template: Template, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Return what is set once the supervisor has given the template up."""
    ended, close = asyncio.Event(), template.close

    def close_and_tell() -> None:
        close()
        ended.set()

    monkeypatch.setattr(template, "close", close_and_tell)
    return ended


def test_a_worker_whose_ready_cannot_be_read_is_killed() -> None:
    async def story(supervisor: Supervisor) -> None:
        with pytest.raises(WorkerError, match="cannot be read"):
            await supervisor.start("junk", LOAD, WITHIN_S)
        await has_no_worker(supervisor, "junk")

    play(story)


def test_a_worker_that_announces_too_much_is_killed() -> None:
    async def story(supervisor: Supervisor) -> None:
        worker = await supervisor.start("flood", LOAD, WITHIN_S)
        assert "more than it may" in str(await worker.gone)
        await has_no_worker(supervisor, "flood")

    play(story)


def test_what_a_worker_says_of_itself_is_cut() -> None:
    async def story(supervisor: Supervisor) -> None:
        worker = await supervisor.start("boast", LOAD, WITHIN_S)
        assert worker.ready is not None
        assert worker.ready.runtime == "r" * 64

    play(story)


def test_a_worker_that_ignores_the_end_of_its_stream_is_killed() -> None:
    async def story(supervisor: Supervisor) -> None:
        worker = await supervisor.start("deaf", LOAD, WITHIN_S)
        worker.stop()
        await has_no_worker(supervisor, "deaf")

    play(story)


def test_a_worker_that_closes_its_stream_and_stays_is_killed() -> None:
    async def story(supervisor: Supervisor) -> None:
        worker = await supervisor.start("leaver", LOAD, WITHIN_S)
        assert isinstance(await worker.gone, WorkerExited)
        await has_no_worker(supervisor, "leaver")

    play(story)


def test_a_worker_is_killed_also_when_its_process_id_comes_later() -> None:
    async def story(supervisor: Supervisor) -> None:
        with pytest.raises(WorkerTimedOut):
            await supervisor.start("mute", LOAD, 0.2)
        template = await a_template(supervisor, "mute")
        assert [worker.pid for worker in template.workers.values()] == [0]
        await has_no_worker(supervisor, "mute")

    play(story)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EAGAIN, errno.ENOBUFS])
def test_no_room_for_one_more_worker_leaves_the_others_alone(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(supervisor: Supervisor) -> None:
        first = await supervisor.start("deaf", LOAD, WITHIN_S)
        template = await a_template(supervisor, "deaf")

        def refuse(*_: object) -> socket.socket:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(template.process, "request_worker", refuse)
            with pytest.raises(NoWorkerNow) as caught:
                await supervisor.start("deaf", LOAD, WITHIN_S)
        assert caught.value.retryable
        assert caught.value.code == WorkerError.code
        assert not first.gone.done()
        second = await supervisor.start("deaf", LOAD, WITHIN_S)
        assert await a_template(supervisor, "deaf") is template
        assert second.pid != first.pid

    play(story)


def test_no_room_for_a_template_can_be_tried_again() -> None:
    async def story() -> None:
        def refuse(runtime: str) -> TemplateProcess:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

        supervisor = Supervisor(refuse)
        supervisor.prepare("deaf")
        with pytest.raises(NoWorkerNow, match="deaf template cannot be started now"):
            await supervisor.start("deaf", LOAD, WITHIN_S)
        supervisor._start_template = start_hostile
        await supervisor.start("deaf", LOAD, WITHIN_S)
        await supervisor.close()

    asyncio.run(story())


def test_the_end_of_a_template_is_told_and_a_new_one_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(supervisor: Supervisor) -> None:
        first = await supervisor.start("deaf", LOAD, WITHIN_S)
        template = await a_template(supervisor, "deaf")
        ended = end_of(template, monkeypatch)
        os.kill(first.pid, signal.SIGKILL)
        os.kill(template.process.pid, signal.SIGKILL)
        assert isinstance(await first.gone, AgentError)
        await ended.wait()
        second = await supervisor.start("deaf", LOAD, WITHIN_S)
        assert second.pid != first.pid

    play(story)


def test_a_template_ends_some_time_after_its_last_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(supervisor: Supervisor) -> None:
        worker: Worker = await supervisor.start("deaf", LOAD, WITHIN_S)
        template = await a_template(supervisor, "deaf")
        ended = end_of(template, monkeypatch)
        worker.kill(WorkerExited("the test wants it so"))
        await ended.wait()
        again = await supervisor.start("deaf", LOAD, WITHIN_S)
        assert again.pid != worker.pid

    play(story, idle_s=0.1)


def test_a_runtime_that_is_not_there_is_told_where_it_is_prepared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        supervisor = Supervisor()
        supervisor.prepare("nothing")
        with pytest.raises(RuntimeUnavailable):
            await supervisor.start("nothing", LOAD, WITHIN_S)
        await asyncio.sleep(0)
        await supervisor.close()

    asyncio.run(story())
    assert "no template" in caplog.text


def test_a_worker_lives_in_its_control_group_and_is_told_apart_when_that_was_full(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        supervisor = Supervisor(start_hostile, groups=WorkerGroups(tmp_path))
        try:
            worker = await supervisor.start("deaf", LOAD, WITHIN_S)
            group = tmp_path / f"worker-{worker.number}"
            assert int((group / "memory.max").read_text()) > LOAD.memory_mb << 20
            # What the kernel writes there when it ends a process of the group.
            (group / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
            os.kill(worker.pid, signal.SIGKILL)
            assert isinstance(await asyncio.wait_for(worker.gone, WITHIN_S), MemoryLimit)
        finally:
            await supervisor.close()

    asyncio.run(story())


def test_a_worker_without_room_for_a_control_group_is_started_all_the_same(tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "worker-1").write_text("in the way")
        supervisor = Supervisor(start_hostile, groups=WorkerGroups(tmp_path))
        try:
            assert (await supervisor.start("deaf", LOAD, WITHIN_S)).pid
        finally:
            await supervisor.close()

    asyncio.run(story())
