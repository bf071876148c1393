"""A template process from the daemon's side, and the workers that it has forked.

It has imported one runtime and holds no model; forking it makes a worker in a few milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from agent import errors
from agent.daemon.workers import NoWorkerNow, Worker
from agent.links.cgroups import WorkerGroups
from agent.links.template import TemplateProcess, memory_limit
from agent.wire.worker import Load, TemplateEvent

log = logging.getLogger(__name__)


class Template:
    """A running template process and the workers forked from it."""

    def __init__(
        self,
        process: TemplateProcess,
        idle_s: float,
        groups: WorkerGroups | None,
        is_spare: Callable[[], bool],
    ) -> None:
        self.process = process
        self._groups = groups
        self._is_spare = is_spare
        self.closed = False
        self.workers: dict[int, Worker] = {}
        self._loop = asyncio.get_running_loop()
        self._idle_s = idle_s
        self._idle: asyncio.TimerHandle | None = None
        self.first_event: asyncio.Future[TemplateEvent] = self._loop.create_future()
        self._loop.add_reader(process.control.fileno(), self._readable)

    async def spawn(self, worker: Worker, load: Load) -> None:
        """Have a worker forked.

        Raises:
            WorkerExited: The template is gone.
            NoWorkerNow: The machine has no room for one more at this moment.
        """
        group = self._open_group(worker)
        try:
            stream = self.process.request_worker(worker.number, load, group)
        except ConnectionError as error:
            self.close()
            raise errors.WorkerExited(f"the {worker.runtime} template is gone: {error}") from None
        except OSError as error:
            # The workers that it has serve on.
            raise no_worker(f"a {worker.runtime} worker", error) from None
        finally:
            if group is not None:
                os.close(group)
        self._be_busy()
        self.workers[worker.number] = worker
        worker.on_kill = self._kill
        worker.last_words = self.process.take_last_words
        try:
            await self._loop.create_unix_connection(lambda: worker, sock=stream)
        except OSError as error:
            # It ends when its stream does.
            stream.close()
            raise no_worker(f"a {worker.runtime} worker", error) from None

    def _open_group(self, worker: Worker) -> int | None:
        if self._groups is None:
            return None
        try:
            return self._groups.open(worker.number, worker.memory_mb)
        except OSError as error:
            # Its other limits hold, and its report says that this one is missing.
            log.warning("worker %d gets no control group: %s", worker.number, error)
            return None

    def _close_group(self, worker: Worker) -> None:
        if self._groups is not None:
            if self._groups.ran_out_of_memory(worker.number):
                worker.why_killed = worker.why_killed or memory_limit(worker.memory_mb)
            self._groups.remove(worker.number)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._be_busy()
        self._loop.remove_reader(self.process.control.fileno())
        self.process.kill()
        workers, self.workers = self.workers, {}
        for worker in workers.values():
            worker.orphaned()
            self._close_group(worker)

    def _be_busy(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _be_idle(self) -> None:
        if not self.closed and not self.workers:
            self._be_busy()
            self._idle = self._loop.call_later(self._idle_s, self._end_idle)

    def _end_idle(self) -> None:
        if self._is_spare():
            self._be_idle()
            return
        log.info("template pid=%s ends: no slot needs it", self.process.pid)
        self.close()

    def _kill(self, worker: Worker) -> None:
        if worker.number not in self.workers or self.closed:
            return
        if worker.pid:
            self.process.kill_worker(worker.pid)
        else:
            worker.doomed = True

    def _readable(self) -> None:
        try:
            events = self.process.read_events()
        except (OSError, errors.WorkerError) as error:
            events = None
            log.warning("template of %s: %s", self.process.runtime, error)
        if events is None:
            self._ended()
            return
        for event in events:
            self._happened(event)

    def _happened(self, event: TemplateEvent) -> None:
        if event.event in ("ready", "failed"):
            if not self.first_event.done():
                self.first_event.set_result(event)
                self._be_idle()
            return
        worker = self.workers.get(event.worker)
        if worker is None:
            return
        if event.event == "started":
            worker.pid, worker.owner_pid = event.pid, event.owner
            if worker.doomed:
                self._kill(worker)
        elif event.event == "exited":
            del self.workers[event.worker]
            # With a code: it was not even forked, and the message says why.
            if event.code:
                worker.why_killed = NoWorkerNow(event.message)
            self._close_group(worker)
            worker.exited(event.status)
            self._be_idle()

    def _ended(self) -> None:
        self.close()
        if not self.first_event.done():
            error = self.process.failure()
            self.first_event.set_result(
                TemplateEvent("failed", code=error.code, message=error.message, hint=error.hint)
            )


def no_worker(what: str, error: OSError) -> NoWorkerNow:
    return NoWorkerNow(
        f"{what} cannot be started now: {error.strerror or error}",
        hint="the machine, or the service, has too many processes or open files",
    )
