"""Packs by a fetch process: `http:`, `https:` and `file:` sources, as the daemon sees them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from agent import errors
from agent.daemon.fetch_messages import MAX_LINE_BYTES, Ask, Job, Told
from agent.daemon.fetch_source import OnBytes, Wanted, to_the_end
from agent.documents.pack_names import SIGNATURE
from agent.documents.report import Failure
from agent.documents.settings import Settings
from agent.wire.blocks import MANIFEST_FILE

STOP_WITHIN_S = 5.0
# OpenSSL's own names for where trusted certificates are; nothing else of ours is needed there.
_PASSED_ON = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")

_ERRORS: Mapping[str, type[errors.AgentError]] = {
    kind.code: kind
    for kind in (
        errors.FetchError,
        errors.SourceRefused,
        errors.SourceExpired,
        errors.SourceMissing,
        errors.ClockWrong,
        errors.PackError,
        errors.DigestMismatch,
        errors.StoreError,
        errors.NoSpace,
        errors.StoreCorrupt,
    )
}


class ChildSource:
    """One pack by one process, started when first needed. See `fetch_source.Source`."""

    def __init__(
        self,
        pack: str,
        source: str,
        settings: Settings,
        environment: Mapping[str, str] = os.environ,
        *,
        max_kib_s: int = 0,
    ) -> None:
        """
        Args:
            max_kib_s: Most that it may read over a network in a second; 0: no limit.
        """
        self._pack = pack
        self._environment = environment
        self._job = Job(
            source=source,
            store=settings.state_dir,
            quota_bytes=settings.limits.store_mb << 20,
            roots=settings.fetch.roots,
            proxies=_proxies(settings.fetch.proxy, environment),
            parent_pid=os.getpid(),
            max_kib_s=max_kib_s,
            connections=settings.fetch.connections,
        )
        self._process: asyncio.subprocess.Process | None = None
        self._ending: asyncio.Future[None] | None = None

    async def manifest(self) -> bytes:
        told = await self._ask(Ask(self._pack, MANIFEST_FILE), lambda here: None)
        return told.data

    async def signature(self) -> bytes | None:
        told = await self._ask(Ask(self._pack, SIGNATURE), lambda here: None)
        return None if told.missing else told.data

    async def file(self, wanted: Wanted, on_bytes: OnBytes) -> None:
        await self._ask(Ask(wanted.pack, wanted.name, wanted.digest, wanted.size), on_bytes)

    async def close(self) -> None:
        """End the process; it makes durable what it has received. Safe to call twice."""
        if self._process is not None:
            self._ending = asyncio.ensure_future(_end(self._process))
            self._process = None
        if self._ending is not None:
            await to_the_end(self._ending)

    async def _ask(self, ask: Ask, on_bytes: OnBytes) -> Told:
        process = self._process or await self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(ask) + b"\n")
            while True:
                told = await self._next(process, process.stdout)
                if told.kind == "done":
                    return told
                if told.kind == "failed":
                    raise _error(told.failure)
                on_bytes(told.here_bytes)
        except BaseException:
            # Also when cancelled: nobody may touch the file before the process has let it go.
            await self.close()
            raise

    async def _next(self, process: asyncio.subprocess.Process, lines: asyncio.StreamReader) -> Told:
        try:
            line = await lines.readline()
        except ValueError:
            raise errors.FetchError("the fetch process said more than it may") from None
        if not line:
            status = await process.wait()
            raise errors.FetchError(f"the fetch process ended with status {status}")
        return msgspec.json.decode(line, type=Told)

    async def _start(self) -> asyncio.subprocess.Process:
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
        passed = {name: self._environment[name] for name in _PASSED_ON if name in self._environment}
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "agent.daemon.fetcher"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            env={**environment, **passed},
            cwd="/",
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(self._job) + b"\n")
        return self._process


def _proxies(proxy: str, environment: Mapping[str, str]) -> dict[str, str]:
    """By variable; what the settings say goes before the environment, but for its exceptions."""
    found = {n.lower(): value for n, value in environment.items() if n.lower() in _PROXIES}
    if proxy:
        found.update(dict.fromkeys(_PROXIES[:2], "" if proxy == "none" else proxy))
    return found


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    waiting = asyncio.ensure_future(process.wait())
    done, _ = await asyncio.wait((waiting,), timeout=STOP_WITHIN_S)
    if not done:
        with suppress(ProcessLookupError):
            process.kill()
        await waiting


def _error(failure: Failure | None) -> errors.AgentError:
    if failure is None:
        return errors.FetchError("the fetch process failed and did not say why")
    kind = _ERRORS.get(failure.code, errors.FetchError)
    return kind(failure.message, hint=failure.hint)
