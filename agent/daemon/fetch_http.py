"""Files of a pack from an HTTP server, resumed where they were cut. Only in the fetch process.

Nothing secret is ever sent: requests carry no credentials, so a redirect cannot give them away.
What comes is not believed before its digest has been checked; here only sizes are.
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, ReadTimeoutError

from agent.documents.manifest import MAX_MANIFEST_BYTES
from agent.errors import FetchError, SourceRefused

CONNECT_S, READ_S = 10.0, 30.0
READ_BYTES = 64 * 1024
MAX_REDIRECTS = 3
# Attempts in a row that bring nothing; then the deployment itself waits and tries again.
MAX_FAILURES = 4
BACKOFF_FIRST_S, BACKOFF_LAST_S = 1.0, 30.0
RETRY_AFTER_MAX_S = 3600.0
# A server that sends less than this is treated as one that sends nothing.
SLOW_BYTES_PER_S, SLOW_WINDOW_S = 1024, 60.0
# The longest for the head of an answer, or for one read of its body: a server can drag both on for
# ever, with headers, `100 Continue` or trailers, and never be silent for long.
STEP_S = 60.0

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({408, 425, 429})
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

T = TypeVar("T")
Pieces = Iterator[tuple[int, bytes]]


class _Interrupted(Exception):
    """This attempt is over; another one may go on."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after_s = after_s


class _StartOver(Exception):
    """What the server has is not what the earlier part came from."""


@dataclass(frozen=True)
class Clock:
    """Time and chance, so that a test need not wait."""

    now: Callable[[], float] = time.monotonic
    wait: Callable[[float], object] = time.sleep
    chance: Callable[[], float] = random.random


class HttpFiles:
    """The files below one base URL."""

    def __init__(
        self,
        base: str,
        *,
        environment: Mapping[str, str] = os.environ,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            base: Where the pack is; a query (a shared access signature, say) goes with each file.
            environment: `http_proxy` and its kin.

        Raises:
            SourceRefused: The URL holds a password, or none could be fetched from it.
        """
        self._base = urlsplit(base)
        if not self._base.hostname:
            raise SourceRefused(f"{shown(base)} names no host")
        if self._base.username is not None or self._base.password is not None:
            raise SourceRefused(
                f"{shown(base)} holds a user name or a password",
                hint="use a URL that is signed for a time, or a server inside your network",
            )
        self._pools = _Pools(environment)
        self._clock = clock or Clock()

    def pieces(self, name: str, start: int, size: int | None) -> Pieces:
        """Read one file, from `start` on.

        Args:
            name: Of the file, below the base URL.
            start: How many bytes are here already.
            size: Bytes of the whole file; None for a manifest, which may have up to 1 MiB.

        Yields:
            (offset, bytes). An offset of 0 in the middle means that what was here is worthless.

        Raises:
            FetchError: The source is away, slow, or says nothing useful.
            SourceRefused: It says no.
        """
        url = self._url(name)
        offset, failures, restarted, validator = start, 0, False, ""
        # What comes again from the beginning, and is cut again, is no progress.
        furthest = start
        while True:
            try:
                with _Answer(self._pools, url, offset, validator) as answer:
                    offset = answer.accept(offset, size)
                    validator = answer.validator
                    for data in answer.body(self._clock.now):
                        self._bound(url, offset + len(data), size)
                        yield offset, data
                        offset += len(data)
                        if offset > furthest:
                            furthest, failures = offset, 0
                if size is None or offset == size:
                    return
                raise _Interrupted(f"ended after {offset} of {size} bytes")
            except _StartOver:
                if restarted:
                    raise FetchError(f"{shown(url)} keeps changing while it is read") from None
                offset, restarted, validator = 0, True, ""
            except _Interrupted as cut:
                if offset == size:
                    return
                failures += 1
                if failures >= MAX_FAILURES:
                    raise FetchError(f"{shown(url)}: {cut.reason}") from None
                self._back_off(failures, cut.after_s)

    def _url(self, name: str) -> str:
        path = f"{self._base.path.rstrip('/')}/{quote(name)}"
        return self._base._replace(path=path, fragment="").geturl()

    def _bound(self, url: str, end: int, size: int | None) -> None:
        limit = MAX_MANIFEST_BYTES if size is None else size
        if end > limit:
            raise FetchError(
                f"{shown(url)} sends more than the {limit} bytes it may have",
                hint="is this the pack, or a page that stands in its place?",
            )

    def _back_off(self, failures: int, after_s: float | None) -> None:
        limit = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2.0 ** (failures - 1))
        chosen = limit * (0.5 + self._clock.chance() / 2)
        self._clock.wait(max(chosen, min(after_s or 0.0, RETRY_AFTER_MAX_S)))


class _Answer:
    """One request and its answer, redirects followed."""

    def __init__(self, pools: _Pools, url: str, offset: int, validator: str) -> None:
        self.url = url
        self._response: urllib3.BaseHTTPResponse
        headers = {"Accept-Encoding": "identity", "User-Agent": "edgeward"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if validator:
                headers["If-Range"] = validator
        for _ in range(MAX_REDIRECTS + 1):
            self._response = _guarded(partial(pools.get, self.url, headers))
            if self._response.status not in _REDIRECTS:
                return
            location = self._response.headers.get("Location", "")
            self._response.close()
            self.url = _next_url(self.url, location)
        raise SourceRefused(f"{shown(url)} redirects more than {MAX_REDIRECTS} times")

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: object) -> None:
        # Closed, not drained: the rest of a body may be endless.
        self._response.close()

    @property
    def validator(self) -> str:
        """A strong ETag; a weak one cannot guard a range (RFC 9110, 13.1.5)."""
        tag = self._response.headers.get("ETag", "")
        return "" if tag.startswith("W/") else tag

    def accept(self, offset: int, size: int | None) -> int:
        """Judge status and headers.

        Returns:
            The offset of the first byte of the body.
        """
        status = self._response.status
        if status == HTTPStatus.PARTIAL_CONTENT and offset:
            self._check_range(offset, size)
        elif status == HTTPStatus.OK:
            offset = 0
            self._check_length(size)
        elif status in (HTTPStatus.NOT_MODIFIED, HTTPStatus.PRECONDITION_FAILED) or (
            status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset
        ):
            raise _StartOver
        else:
            self._fail(status)
        encoding = self._response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise FetchError(
                f"{shown(self.url)} comes encoded as {encoding[:20]!r}, which was not asked for",
                hint="store and serve the pack's files uncompressed",
            )
        return offset

    def body(self, now: Callable[[], float]) -> Iterator[bytes]:
        """The body as it comes; too slow counts as cut."""
        began, received = now(), 0
        while data := _guarded(self._read):
            yield data
            received += len(data)
            if now() - began >= SLOW_WINDOW_S:
                if received < SLOW_BYTES_PER_S * SLOW_WINDOW_S:
                    raise _Interrupted(f"only {received} bytes in {SLOW_WINDOW_S:g} s")
                began, received = now(), 0

    def _read(self) -> bytes:
        assert isinstance(self._response, urllib3.HTTPResponse)
        # read1: whatever is there. `read` would wait for all of it, with no bound on the time.
        return self._response.read1(READ_BYTES, decode_content=False)

    def _check_range(self, offset: int, size: int | None) -> None:
        found = _RANGE.fullmatch(self._response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != offset or int(found[3]) != size:
            raise _StartOver

    def _check_length(self, size: int | None) -> None:
        length = self._response.headers.get("Content-Length", "")
        if size is not None and length.isdecimal() and int(length) != size:
            raise FetchError(
                f"{shown(self.url)} has {int(length)} bytes; the manifest promises {size}",
                hint="is this the pack, or a page that stands in its place?",
            )

    def _fail(self, status: int) -> NoReturn:
        said = f"{shown(self.url)}: the server answers {status} {self._response.reason or ''}"
        if status in _TRANSIENT or status >= 500:
            raise _Interrupted(said.partition(": ")[2], self._retry_after())
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            raise FetchError(said.strip(), hint="is the whole pack there, under its own names?")
        if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            # An object store says 403 for an expired URL and, without a right to list, for a
            # missing file too.
            hint = "has the URL expired, or is the file missing? deploy again with a fresh URL"
            raise SourceRefused(said.strip(), hint=hint)
        raise SourceRefused(said.strip())

    def _retry_after(self) -> float | None:
        text = self._response.headers.get("Retry-After", "")
        return float(text) if text.isdecimal() else None


class _Pools:
    """Connections, direct or through the proxy that the environment names."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._proxies = {
            name[:-6].lower(): url
            for name, url in environment.items()
            if name.lower().endswith("_proxy") and url
        }
        timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S)
        self._options: dict[str, Any] = {
            "timeout": timeout,
            "retries": False,
            "cert_reqs": "CERT_REQUIRED",
        }
        self._managers: dict[str, urllib3.PoolManager] = {}

    def get(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        parts = urlsplit(url)
        manager = self._manager(self._proxy_for(parts))
        # `redirect` off: where a redirect may lead is decided here.
        return manager.request(
            "GET",
            url,
            headers=dict(headers),
            preload_content=False,
            redirect=False,
            retries=False,
        )

    def _proxy_for(self, parts: SplitResult) -> str:
        proxy = self._proxies.get(parts.scheme, "")
        host = f".{parts.hostname}"
        exceptions = [name.strip().lstrip(".") for name in self._proxies.get("no", "").split(",")]
        direct = any(name == "*" or (name and host.endswith(f".{name}")) for name in exceptions)
        return "" if direct else proxy

    def _manager(self, proxy: str) -> urllib3.PoolManager:
        if proxy not in self._managers:
            self._managers[proxy] = (
                self._through(proxy) if proxy else urllib3.PoolManager(**self._options)
            )
        return self._managers[proxy]

    def _through(self, proxy: str) -> urllib3.PoolManager:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        headers = {}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers = urllib3.make_headers(proxy_basic_auth=login)
        bare = f"{parts.scheme}://{parts.hostname}:{parts.port or 80}"
        return urllib3.ProxyManager(bare, proxy_headers=headers, **self._options)


def shown(url: str) -> str:
    """A URL as a log may show it: what opens the door stands in its query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}{'?…' if parts.query else ''}"


def _next_url(url: str, location: str) -> str:
    target = urljoin(url, location)
    before, after = urlsplit(url), urlsplit(target)
    if not location or after.scheme not in ("http", "https") or not after.hostname:
        raise SourceRefused(f"{shown(url)} redirects to nowhere")
    if before.scheme == "https" and after.scheme != "https":
        raise SourceRefused(f"{shown(url)} redirects to {shown(target)}, which is not encrypted")
    return target


def _guarded(call: Callable[[], T]) -> T:
    try:
        with _at_most(STEP_S):
            return call()
    except ReadTimeoutError:
        raise _Interrupted(f"nothing came for {READ_S:g} s") from None
    except (HTTPError, OSError) as error:
        raise _Interrupted(_reason(error)) from None


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End what takes longer with a TimeoutError. Only a main thread, as here, can be ended so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> NoReturn:
        raise TimeoutError(f"no end of it within {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, late)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def _reason(error: Exception) -> str:
    # "HTTPSConnectionPool(host=…): …": the pool is of no interest to a person.
    text = re.sub(r"^<?\w+(?:\([^)]*\)|[^:]*>)?: ", "", str(error))
    return text or type(error).__name__
