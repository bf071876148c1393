"""Takes one file the way to a device: read in a child, proven in a probe, served by a worker.

This process stands for the daemon: it lives through all of it, and so do its templates.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agent.author import reading as real_reading
from agent.author.pack_child import Described
from agent.documents.manifest import Variant
from agent.errors import AgentError, ModelRejected
from agent.links.template import TemplateProcess, describe_status, start_template
from agent.links.worker import BlockingWorker
from agent.wire import frames
from agent.wire.worker import Load
from tests.campaign import outcome, reading
from tests.campaign.mutations import Mutated
from tests.campaign.outcome import Outcome, Stage
from tests.campaign.sources import Source, forced

# An accelerator's runtime serves more than one format; those named otherwise serve their own.
RUNTIMES = {"ort": "onnx"}
LOAD_DEADLINE_S, ASK_DEADLINE_S, MEMORY_MB = 8.0, 4.0, 512
# What a deadline may cost beyond itself, on a machine that does other things too.
SLACK_S = 4.0
ALL_DEADLINES_S = reading.DEADLINE_S + 2 * LOAD_DEADLINE_S + 4 * ASK_DEADLINE_S + 10 * SLACK_S
_GONE_DEADLINE_S = 5.0
_READY_DEADLINE_S = 60.0
_EACH = 25  # Of so many files one is also read by the real command.
_ABSOLUTE, _RELATIVE = 1e-4, 1e-3
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Have processes whose parent ends become children of this one, so that they are seen."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER)")


class Known(NamedTuple):
    """A valid model, the folder for packs made of it, and its answer to its own golden sample."""

    source: Source
    folder: Path
    payload: bytes
    answer: Any


class Course:
    """The templates and folders of one process, and what it does with each file."""

    def __init__(self, sources: Sequence[Source], folder: Path) -> None:
        self._sources = {source.name: source for source in sources}
        self._folder = folder
        self._templates: dict[str, TemplateProcess] = {}
        self._standing: dict[str, set[int]] = {}
        self._known: dict[str, Known] = {}
        self._count = 0

    def close(self) -> None:
        """End all that was started."""
        for template in self._templates.values():
            template.kill()

    def take(self, name: str, file: Mutated) -> Outcome:
        """Take one file its way, and look at what is left behind."""
        self._count += 1
        known = self._know(file.source)
        digest = f"sha256:{hashlib.sha256(file.data).hexdigest()}"
        path, variant = forced(known.source, known.folder, file.data, digest)
        offences: list[str] = []
        seconds: dict[str, float] = {}
        read = self._read(path, offences)
        seconds["inspect"] = read.took_s
        last, trial = read, None
        if not read.end:
            last = self._stage(known, variant, offences, "probe", _probe)
            seconds["probe"] = last.took_s
        if not last.end:
            last = self._stage(known, variant, offences, "serve", _serve)
            seconds["serve"] = last.took_s
        elif last.end in (outcome.INSPECT, outcome.SELF_TEST):
            trial = self._stage(known, variant, offences, "force", _serve)
            seconds["force"] = trial.took_s
        self._look_round(variant, known, (last, trial), offences)
        return Outcome(
            id=name,
            source=file.source,
            format=variant.format,
            mutation=file.mutation,
            bytes=len(file.data),
            digest=digest,
            end=last.end,
            code=last.code,
            reason=last.reason,
            forced=trial.end if trial else "",
            forced_reason=trial.reason if trial else "",
            seconds={stage: round(took, 3) for stage, took in seconds.items()},
            offences=tuple(offences),
        )

    def _read(self, path: Path, offences: list[str]) -> Stage:
        told = reading.read_model(path)
        if told.status is None:
            offences.append(f"inspect: no answer within {reading.DEADLINE_S:g} s")
        elif told.described is None:
            how = describe_status(told.status)
            offences.append(f"inspect: the reader ended with {how}: {told.words[-600:]}")
        described = told.described or Described(code=ModelRejected.code, message="no answer")
        if self._count % _EACH == 0:
            offences += _same_as_real(path, described)
        if described.description is not None:
            return Stage("", took_s=told.took_s)
        reason = str(AgentError(described.message, hint=described.hint))
        offences += outcome.offences_of(
            described.code, described.message, described.hint, "inspect"
        )
        if described.code != ModelRejected.code:
            offences.append(f"inspect: the code {described.code!r}")
        return Stage(outcome.INSPECT, described.code, reason, told.took_s)

    def _stage(
        self,
        known: Known,
        variant: Variant,
        offences: list[str],
        stage: str,
        act: Callable[[BlockingWorker, Known], Stage],
    ) -> Stage:
        """Let a new worker do something, within its deadlines."""
        started = time.monotonic()
        try:
            with self._worker(variant, known.folder) as worker:
                done = act(worker, known)
        except AgentError as error:
            offences += outcome.offences_of(error.code, error.message, error.hint, stage)
            done = Stage(outcome.end_of(error), error.code, str(error))
        except Exception as error:
            offences.append(f"{stage}: {type(error).__name__} outside the error tree: {error!r}")
            done = Stage(outcome.LOAD, type(error).__name__, repr(error))
        if done.end == outcome.REFUSED_ANSWER:
            offences += outcome.offences_of(done.code, done.reason, "", stage)
        took_s = time.monotonic() - started
        if took_s > LOAD_DEADLINE_S + ASK_DEADLINE_S + SLACK_S:
            offences.append(f"{stage}: took {took_s:.1f} s, past every deadline")
        return Stage(done.end, done.code, done.reason, took_s)

    def _worker(self, variant: Variant, folder: Path) -> BlockingWorker:
        load = Load(
            directory=str(folder),
            pack="sha256:" + "0" * 64,
            variant=variant.name,
            memory_mb=MEMORY_MB,
        )
        return BlockingWorker(
            _runtime(variant),
            load,
            template=self._template(_runtime(variant)),
            load_deadline_s=LOAD_DEADLINE_S,
            deadline_s=ASK_DEADLINE_S,
        )

    def _template(self, runtime: str) -> TemplateProcess:
        """Return the template of a runtime; a new one is waited for."""
        if runtime not in self._templates:
            template = self._templates[runtime] = start_template(runtime)
            poll = select.poll()
            poll.register(template.control, select.POLLIN)
            while not template.is_ready and poll.poll(_READY_DEADLINE_S * 1000):
                if template.read_events() is None:
                    raise template.failure()
            # The first process of its workers' namespace stays as long as it does.
            self._standing[runtime] = set(_children(template.pid))
        return self._templates[runtime]

    def _know(self, name: str) -> Known:
        """Prepare a folder for packs of a model, and have the model itself answer once."""
        if name not in self._known:
            source = self._sources[name]
            folder = self._folder / name
            shutil.copytree(source.directory, folder)
            known = Known(source, folder, source.case().payloads[0], None)
            self._known[name] = known._replace(answer=self._answer_of(known))
        return self._known[name]

    def _answer_of(self, known: Known) -> Any:
        try:
            with self._worker(known.source.variant(), Path(known.source.directory)) as worker:
                worker.load()
                return json.loads(worker.ask("t", known.payload).payload)
        except AgentError:
            # Compiled for an accelerator that is not here.
            return None

    def _look_round(
        self,
        variant: Variant,
        known: Known,
        stages: Sequence[Stage | None],
        offences: list[str],
    ) -> None:
        """Check that the template lives, that no process is left, and that work can go on."""
        runtime = _runtime(variant)
        template = self._template(runtime)
        left = _await_no_workers(template, self._standing[runtime])
        if left:
            offences.append(f"the template still has {len(left)} workers")
        if _is_gone(template.pid):
            offences.append(f"the template ended: {template.wait_reason()}")
            template.kill()
            del self._templates[runtime]
        strangers = set(_children(os.getpid())) - {t.pid for t in self._templates.values()}
        for pid in strangers:
            offences.append(f"process {pid} was left behind")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        hurt = {outcome.DIED, outcome.MEMORY, outcome.DEADLINE}
        if known.answer is not None and any(stage and stage.end in hurt for stage in stages):
            again = self._answer_of(known)
            if not _alike(again, known.answer):
                offences.append("the worker that replaced it does not answer as before")


def _runtime(variant: Variant) -> str:
    return RUNTIMES.get(variant.format, variant.format)


def _probe(worker: BlockingWorker, known: Known) -> Stage:
    worker.probe()
    return Stage("")


def _serve(worker: BlockingWorker, known: Known) -> Stage:
    """Load, and answer the golden sample twice, the second time to look at the same worker."""
    worker.load()
    answers = [worker.ask("t", known.payload) for _ in range(2)]
    for answer in answers:
        body = json.loads(answer.payload)
        if answer.outcome != frames.PREDICTION:
            return Stage(outcome.REFUSED_ANSWER, "bad_output", str(body.get("error", "")))
    same = _alike(json.loads(answers[0].payload), known.answer)
    return Stage(outcome.RIGHT if same else outcome.OTHER)


def _alike(one: Any, other: Any) -> bool:
    """Return whether two predictions have the same outputs, within what kernels may differ."""
    if one is None or other is None:
        return False
    ones, others = one["outputs"], other["outputs"]
    if [_kind(o) for o in ones] != [_kind(o) for o in others]:
        return False
    return all(
        _close(a, b)
        for mine, theirs in zip(ones, others, strict=True)
        for a, b in zip(mine["data"], theirs["data"], strict=True)
    )


def _kind(output: dict[str, Any]) -> tuple[str, str, list[int], int]:
    return output["name"], output["datatype"], output["shape"], len(output["data"])


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    return bool(one == other)


def _same_as_real(path: Path, described: Described) -> list[str]:
    """Hold the child's answer against that of the real command's own process."""
    try:
        real = real_reading.read_model(path)
    except AgentError as error:
        wanted = f"{path.name}: {described.message}"
        same = described.description is None and error.message == wanted
        return [] if same else [f"inspect: the command says {error.message!r}"]
    return [] if real == described.description else ["inspect: the command describes it otherwise"]


def _children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _await_no_workers(template: TemplateProcess, standing: set[int]) -> set[int]:
    """Wait until a template has reaped its workers; return those that it has not."""
    deadline = time.monotonic() + _GONE_DEADLINE_S
    poll = select.poll()
    poll.register(template.control, select.POLLIN)
    while (left := set(_children(template.pid)) - standing) and time.monotonic() < deadline:
        if poll.poll(100) and template.read_events() is None:
            return set()
    return left
