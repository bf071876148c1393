"""Worker processes: start them from their runtime's template, talk to them, know when they end.

Templates are started on first use and end a while after their last worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

import msgspec

from agent import errors
from agent.daemon.templates import Template, no_worker
from agent.daemon.workers import EXIT_DEADLINE_S, Worker
from agent.documents.device import RuntimeFacts
from agent.documents.report import Isolation
from agent.links.cgroups import WorkerGroups
from agent.links.template import TemplateProcess, start_template
from agent.links.worker import error_of
from agent.wire import frames
from agent.wire.worker import (
    Failed,
    Load,
    Measure,
    Measured,
    Probed,
    Ready,
    read,
)

log = logging.getLogger(__name__)

TEMPLATE_DEADLINE_S = 60.0
TEMPLATE_IDLE_S = 60.0
MAX_WORD_CHARACTERS = 64
MAX_REASON_CHARACTERS = 500
MAX_LAYERS = 16

StartTemplate = Callable[[str], TemplateProcess]


class Probe(msgspec.Struct, frozen=True):
    """A candidate that passed its self-test, in a process that waits to be measured."""

    worker: Worker
    probed: Probed

    async def measure(self, asked: Measure, deadline_s: float) -> Measured:
        """Have it run so often.

        Raises:
            AgentError: It died or was too slow; it is ended.
        """
        try:
            answer = await self.worker.ask(frames.MEASURE, asked, deadline_s)
            if answer.kind != frames.MEASURED:
                _refuse(answer)
            measured = read(answer.payload, Measured)
            if not measured.ms:
                raise errors.WorkerError("a probe measured nothing")
            return measured
        except errors.AgentError as error:
            self.worker.kill(error)
            raise

    def stop(self) -> None:
        self.worker.stop()


class Supervisor:
    """Starts workers and probes; owns the template processes.

    Args:
        start_template: Starts a runtime's template process.
        idle_s: How long a template without a worker is kept.
        groups: Control groups for workers, where the agent has been given some.
    """

    def __init__(
        self,
        start_template: StartTemplate = start_template,
        *,
        idle_s: float = TEMPLATE_IDLE_S,
        groups: WorkerGroups | None = None,
    ) -> None:
        self._start_template = start_template
        self._idle_s = idle_s
        self._groups = groups
        # Whether a runtime may be needed at any moment, though no worker of it runs now.
        self.is_spare: Callable[[str], bool] = lambda runtime: False
        self._templates: dict[str, asyncio.Future[Template]] = {}
        self._next = 1

    def prepare(self, runtime: str) -> None:
        """Begin to start a runtime's template, so that it is there when it is needed."""
        self._template(runtime).add_done_callback(_tell_failure)

    async def facts(self, runtime: str) -> RuntimeFacts:
        """What a runtime says of itself in its template process, which is started.

        Raises:
            AgentError: It does not start.
        """
        template = await asyncio.shield(self._template(runtime))
        event = template.first_event.result()
        return event.facts or RuntimeFacts(runtime, usable=True, version=event.version)

    async def start(self, runtime: str, load: Load, deadline_s: float) -> Worker:
        """Start a worker and let it load; returns when it is ready to serve.

        Raises:
            AgentError: The template, the worker or the model says why not.
        """
        worker, first = await self._begin(runtime, load, deadline_s)
        try:
            if first.kind != frames.READY:
                _refuse(first)
            worker.ready = _bounded(read(first.payload, Ready))
        except errors.AgentError as error:
            worker.kill(error)
            raise
        return worker

    async def probe(self, runtime: str, load: Load, deadline_s: float) -> Probe:
        """Qualify a candidate in a process of its own; stop it when it has been measured.

        Raises:
            AgentError: It did not pass, and why.
        """
        worker, first = await self._begin(runtime, load, deadline_s)
        try:
            if first.kind != frames.PROBED:
                _refuse(first)
            probed = read(first.payload, Probed)
        except errors.AgentError as error:
            worker.kill(error)
            raise
        return Probe(worker, msgspec.structs.replace(probed, ready=_bounded(probed.ready)))

    async def close(self) -> None:
        """End every template; their workers end with them."""
        templates, self._templates = self._templates, {}
        ends: list[asyncio.Future[errors.AgentError]] = []
        for future in templates.values():
            if future.done() and not future.cancelled() and future.exception() is None:
                ends += [worker.gone for worker in future.result().workers.values()]
                future.result().close()
            else:
                future.cancel()
        # One that was being started is ended by its own task.
        await asyncio.gather(*templates.values(), return_exceptions=True)
        if ends:
            await asyncio.wait(ends, timeout=EXIT_DEADLINE_S)

    async def _begin(
        self, runtime: str, load: Load, deadline_s: float
    ) -> tuple[Worker, frames.Frame]:
        template = await asyncio.shield(self._template(runtime))
        number, self._next = self._next, self._next + 1
        worker = Worker(number, runtime, load.memory_mb)
        await template.spawn(worker, load)
        try:
            return worker, await worker.ask(frames.LOAD, load, deadline_s)
        except BaseException:
            worker.kill(errors.WorkerTimedOut("no answer in time"))
            raise

    def _template(self, runtime: str) -> asyncio.Future[Template]:
        known = self._templates.get(runtime)
        broken = (
            known is not None
            and known.done()
            and (known.cancelled() or known.exception() is not None or known.result().closed)
        )
        if known is None or broken:
            known = asyncio.ensure_future(self._open_template(runtime))
            self._templates[runtime] = known
        return known

    async def _open_template(self, runtime: str) -> Template:
        try:
            process = self._start_template(runtime)
            template = Template(process, self._idle_s, self._groups, lambda: self.is_spare(runtime))
        except OSError as error:
            raise no_worker(f"the {runtime} template", error) from None
        try:
            event = await asyncio.wait_for(
                asyncio.shield(template.first_event), TEMPLATE_DEADLINE_S
            )
        except asyncio.TimeoutError:
            template.close()
            raise errors.RuntimeUnavailable(
                f"the {runtime} runtime did not import within {TEMPLATE_DEADLINE_S:g} s"
            ) from None
        except BaseException:
            template.close()
            raise
        if event.event == "failed":
            template.close()
            raise errors.RuntimeUnavailable(event.message, hint=event.hint)
        pid = template.process.pid
        log.info("runtime=%s version=%s template pid=%s", runtime, event.version, pid)
        return template


def _refuse(frame: frames.Frame) -> NoReturn:
    """Raise what a worker says in place of the answer that was wanted."""
    if frame.kind != frames.FAILED:
        raise errors.WorkerError(f"a worker answered with a frame of kind {frame.kind}")
    raise error_of(read(frame.payload, Failed))


def _bounded(ready: Ready) -> Ready:
    """What a worker says of itself, cut to what a report can carry."""
    return msgspec.structs.replace(
        ready,
        runtime=_word(ready.runtime),
        runtime_version=_word(ready.runtime_version),
        placement=msgspec.structs.replace(
            ready.placement,
            wanted=_word(ready.placement.wanted),
            got=_word(ready.placement.got),
            why=ready.placement.why[:MAX_REASON_CHARACTERS],
        ),
        variant=_word(ready.variant),
        compiled=_word(ready.compiled),
        isolation=_words(ready.isolation),
        owner=_words(ready.owner) if ready.owner is not None else None,
    )


def _words(isolation: Isolation) -> Isolation:
    layers, missing = (
        {_word(name): _word(how) for name, how in list(table.items())[:MAX_LAYERS]}
        for table in (isolation.layers, isolation.missing)
    )
    return Isolation(isolation.level, _word(isolation.policy), layers, missing)


def _word(text: str) -> str:
    return text[:MAX_WORD_CHARACTERS]


def _tell_failure(template: asyncio.Future[Template]) -> None:
    error = None if template.cancelled() else template.exception()
    if error is not None:
        log.warning("no template: %s", error)
