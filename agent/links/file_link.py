"""A folder as a link: a deployment is a file that somebody places, reports are files to fetch.

What is desired is looked at once a second: a look costs a few system calls, works on every file
system and over every mount, and needs no watch that could be lost.

A file that is written in place is seen half written. No beginning of a JSON object is a JSON
document, so what is none is given time to become one; and whatever was told of it, the file is
looked at again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from agent import __version__
from agent.clouds.dialect import Command
from agent.documents.deployment import MAX_DEPLOYMENT_BYTES
from agent.errors import AgentError, LinkError, QueueFull, StoreError
from agent.links.api import Disk, Done, Owner, Phase, Standing, Stream
from agent.links.file_folder import OutFolder, read_inside

log = logging.getLogger(__name__)
T = TypeVar("T")

DESIRED, REPORTED, STATUS = "desired.json", "reported.json", "status.json"
LINES: Mapping[Stream, str] = {
    "events": "events.jsonl",
    "telemetry": "telemetry.jsonl",
    "dead-letter": "dead-letter.jsonl",
}
# Documents that may wait to be written.
MAX_WAITING = 64


class Presence(msgspec.Struct, frozen=True):
    """Whether the agent is there: `status.json`.

    Attributes:
        schema: The version of this document.
        status: `online` while it runs, `offline` after an orderly end.
        device: The device's id.
        agent: The agent's version.
        ts: When this was written, RFC 3339.
        every_s: How often it is written anew while the agent runs; one that is much older is of an
            agent that was killed, or of a device without power.
    """

    schema: Literal[1]
    status: Literal["online", "offline"]
    device: str
    agent: str
    ts: str
    every_s: float


class Pace(msgspec.Struct, frozen=True):
    """How often something is done, in seconds.

    Attributes:
        look: Between two looks at what is desired.
        settle: How long that must stay as it is before it is taken.
        patience: The same for what is no JSON document, and so perhaps half written.
        report: Between two reports that are written.
        lines: Between two writes of telemetry, events and dead letters.
        alive: Between two signs of life.
        retry: The first wait after a write that failed; the next are twice as long each.
        retry_last: The longest such wait.
    """

    look: float = 1.0
    settle: float = 0.25
    patience: float = 5.0
    report: float = 1.0
    lines: float = 0.1
    alive: float = 60.0
    retry: float = 1.0
    retry_last: float = 60.0


class _Job(msgspec.Struct, frozen=True):
    """One file to be written, and who is told."""

    write: Callable[[str, bytes], None]
    name: str
    data: bytes
    dones: tuple[Done, ...] = ()


class FileLink:
    """A `Link` over a folder. See `agent.links.api`.

    It stands as long as reports can be written: what is desired is read in any case. The disk is
    used in a thread, since a slow one must not hold up predictions.
    """

    def __init__(
        self,
        owner: Owner,
        disk: Disk,
        *,
        device: str,
        folder: Path,
        report_folder: Path,
        makes_folder: bool = False,
        lines_bytes: int = 4 << 20,
        pace: Pace | None = None,
    ) -> None:
        """
        Args:
            owner: Who is told.
            disk: What writes.
            device: The device's id.
            folder: Where `desired.json` is placed.
            report_folder: Where everything is written.
            makes_folder: `folder` is the agent's own: it is made where it is absent.
            lines_bytes: How large a file of lines may become; two of each stream are kept.
            pace: How often what is done.
        """
        self._owner = owner
        self._disk = disk
        self._device = device
        self._folder = folder
        self._makes_folder = makes_folder
        self._out = OutFolder(disk, report_folder, lines_bytes)
        self._lines_bytes = lines_bytes
        self._pace = pace or Pace()

        self._loop: asyncio.AbstractEventLoop
        self._state = Standing("stopped")
        self._running = False
        self._tidied = False
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self._wake = asyncio.Event()

        # What was seen last and since when, and what the owner was told last; None: tell it again.
        self._seen = b""
        self._since = 0.0
        self._told: bytes | None = b""
        self._trouble: str | None = None

        self._report: _Job | None = None
        self._lines: list[tuple[Stream, bytes, Done]] = []
        # When each may be written next.
        self._report_at = self._lines_at = self._alive_at = self._retry_at = 0.0
        self._failures = 0

    # -- what the owner does --------------------------------------------------------------------

    @property
    def state(self) -> Standing:
        return self._state

    @property
    def blocks(self) -> None:
        return None

    def report(self, document: bytes, done: Done) -> None:
        earlier = self._report.dones if self._report is not None else ()
        if len(earlier) >= MAX_WAITING:
            raise QueueFull(f"{len(earlier)} reports wait to be written to {REPORTED}")
        self._report = _Job(self._out.replace, REPORTED, document, (*earlier, done))
        self._wake.set()

    def send(self, stream: Stream, document: bytes, done: Done, *, slot: str = "") -> None:
        if len(document) >= self._lines_bytes:
            raise LinkError(
                f"a document of {len(document):,} bytes is above the {self._lines_bytes:,} bytes "
                f"of {LINES[stream]}"
            )
        if len(self._lines) >= MAX_WAITING:
            raise QueueFull(f"{len(self._lines)} documents wait to be written")
        self._lines.append((stream, document, done))
        self._wake.set()

    def answer(self, command: Command, document: bytes) -> None:
        """No commands come this way: a person on the device has the local socket."""

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running = True
        both: list[asyncio.Future[None]] = []
        try:
            self._enter("connecting")
            # Before the first look, which would find nothing.
            with contextlib.suppress(StoreError):
                await self._in_thread(self._make_folder)
            both += map(asyncio.ensure_future, (self._watch(), self._keep_written()))
            await asyncio.gather(*both)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            self._end_run()

    async def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._running:
            await self._stopped.wait()

    def _end_run(self) -> None:
        self._running = False
        report, self._report = self._report, None
        lines, self._lines = self._lines, []
        for done in (*(report.dones if report else ()), *(done for _, _, done in lines)):
            done(False, "the link was stopped before it was written")
        self._enter("stopped")
        self._stopped.set()

    # -- what is desired ------------------------------------------------------------------------

    async def _watch(self) -> None:
        while not self._stopping.is_set():
            settled = await self._look()
            pause_s = self._pace.look if settled else self._pace.settle
            await _within(self._stopping.wait(), pause_s)

    async def _look(self) -> bool:
        """Look once, and tell what is new; False where that may still be being written."""
        try:
            found = await self._in_thread(
                lambda: read_inside(self._folder, DESIRED, MAX_DEPLOYMENT_BYTES)
            )
        except LinkError as error:
            self._troubled(error)
            return True
        self._troubled(None)
        return self._take(found or b"", self._loop.time())

    def _take(self, found: bytes, now: float) -> bool:
        if found != self._seen:
            self._seen, self._since = found, now
        if found == self._told:
            return True
        if now - self._since < (self._pace.settle if _is_whole(found) else self._pace.patience):
            return False
        self._told = found
        saved = self._owner.desired(found)
        if saved is not None:
            saved.add_done_callback(self._after_saving)
        return True

    def _after_saving(self, saved: asyncio.Future[None]) -> None:
        if saved.cancelled() or saved.exception() is not None:
            self._told = None

    def _troubled(self, error: LinkError | None) -> None:
        told = str(error) if error is not None else None
        if told == self._trouble:
            return
        self._trouble = told
        if error is not None:
            log.warning("link: %s", error)
        self._owner.trouble(error)
        # The folder may have gone, or be back: see at once whether it can be written to.
        self._alive_at = self._retry_at = 0.0
        self._wake.set()

    # -- what is written ------------------------------------------------------------------------

    async def _keep_written(self) -> None:
        while True:
            self._wake.clear()
            last = self._stopping.is_set()
            if last or self._loop.time() >= self._due():
                await self._write(last=last)
            if last:
                return
            await _within(self._wake.wait(), max(0.0, self._due() - self._loop.time()))

    def _due(self) -> float:
        """When there is something to write, on the loop's clock."""
        due = self._alive_at
        if self._report is not None:
            due = min(due, self._report_at)
        if self._lines:
            due = min(due, self._lines_at)
        return max(due, self._retry_at)

    async def _write(self, *, last: bool) -> None:
        now = self._loop.time()
        report, lines = self._report, self._lines
        if report is not None and (last or now >= self._report_at):
            self._report = None
        else:
            report = None
        self._lines = []
        jobs = [*([report] if report is not None else []), *self._lines_in_files(lines)]
        if last or now >= self._alive_at or self._state.phase != "connected":
            jobs.insert(len(jobs) if last else 0, self._sign_of_life(last))
        written, error = await self._in_thread(lambda: self._perform(jobs))
        self._put_back(report, lines, jobs[written:])
        self._written(jobs[:written])
        if error is None:
            self._succeeded()
        else:
            self._failed(error)
        for done in (done for job in jobs[:written] for done in job.dones):
            done(True, "")

    def _lines_in_files(self, lines: Sequence[tuple[Stream, bytes, Done]]) -> Iterator[_Job]:
        for stream, name in LINES.items():
            own = [(document, done) for kind, document, done in lines if kind == stream]
            data = b"".join(document + b"\n" for document, _ in own)
            if own:
                yield _Job(self._out.append, name, data, tuple(done for _, done in own))

    def _sign_of_life(self, last: bool) -> _Job:
        presence = Presence(
            schema=1,
            status="offline" if last else "online",
            device=self._device,
            agent=__version__,
            ts=datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
            every_s=self._pace.alive,
        )
        return _Job(self._out.replace, STATUS, msgspec.json.encode(presence))

    def _perform(self, jobs: Sequence[_Job]) -> tuple[int, AgentError | None]:
        """Write in order as far as possible; in a thread."""
        for number, job in enumerate(jobs):
            try:
                self._make_folder()
                if not self._tidied:
                    self._out.tidy((REPORTED, STATUS, *LINES.values()))
                    self._tidied = True
                job.write(job.name, job.data)
            except AgentError as error:
                return number, error
        return len(jobs), None

    def _make_folder(self) -> None:
        if self._makes_folder:
            self._disk.make_folder(self._folder, 0o750)

    def _put_back(
        self,
        report: _Job | None,
        lines: list[tuple[Stream, bytes, Done]],
        unwritten: Sequence[_Job],
    ) -> None:
        if report is not None and report in unwritten:
            newer = self._report
            data, dones = (newer.data, newer.dones) if newer is not None else (report.data, ())
            self._report = _Job(report.write, report.name, data, (*report.dones, *dones))
        left = {job.name for job in unwritten}
        self._lines = [line for line in lines if LINES[line[0]] in left] + self._lines

    def _written(self, jobs: Sequence[_Job]) -> None:
        now, names = self._loop.time(), {job.name for job in jobs}
        if REPORTED in names:
            self._report_at = now + self._pace.report
        if STATUS in names:
            self._alive_at = now + self._pace.alive
        self._lines_at = now + self._pace.lines

    def _succeeded(self) -> None:
        self._failures, self._retry_at = 0, 0.0
        if self._state.phase != "connected":
            log.info("link: files are written to %s", self._out.folder)
            self._enter("connected")

    def _failed(self, error: AgentError) -> None:
        doubled = self._pace.retry * 2.0 ** min(self._failures, 20)
        self._failures += 1
        self._retry_at = self._loop.time() + min(self._pace.retry_last, doubled)
        if self._state != Standing("waiting", str(error)):
            log.warning("link: waiting: %s", error)
            self._enter("waiting", str(error))

    def _enter(self, phase: Phase, error: str | None = None) -> None:
        self._state = Standing(phase, error)
        self._owner.state(self._state)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(None, call)


def _is_whole(data: bytes) -> bool:
    """Whether these bytes can be a document, right or wrong, and not the beginning of one."""
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    except RecursionError:
        return True
    return True


async def _within(waiting: Coroutine[Any, Any, Any], timeout_s: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(waiting, timeout_s)
