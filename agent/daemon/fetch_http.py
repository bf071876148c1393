"""Files of a pack from an HTTP server, resumed where they were cut. Only in the fetch process.

What an answer means is decided in `agent.wire.http_answers`, and how fast one may read in
`agent.control.traffic`; here are the connections, the waits and the loop over the attempts.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import partial
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

import msgspec
import urllib3
from msgspec.structs import replace
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util import SKIP_HEADER

from agent.control.traffic import Bucket, StallWatch
from agent.documents.manifest import MAX_MANIFEST_BYTES
from agent.errors import ClockWrong, FetchError, SourceRefused
from agent.wire.http_answers import (
    EXCERPT_BYTES,
    MAX_REDIRECTS,
    REDIRECTS,
    Again,
    Asked,
    Moved,
    Refused,
    Take,
    Verdict,
    Whole,
    headers_for,
    judge,
    redirected,
    same_origin,
    shown,
    validator_of,
)

CONNECT_S, READ_S = 10.0, 30.0
# Attempts in a row that bring nothing; then the deployment itself waits and tries again.
MAX_FAILURES = 4
BACKOFF_FIRST_S, BACKOFF_LAST_S = 1.0, 30.0
# The longest for the head of an answer, or for one read of its body: a server can drag both on for
# ever, with headers, `100 Continue` or trailers, and never be silent for long.
STEP_S = 60.0
MAX_CONNECTIONS = 4
# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL's x509_vfy.h.
_WRONG_TIMES = {9: "is not valid yet", 10: "is valid no longer"}
MAX_CAUSES = 8

T = TypeVar("T")
Pieces = Iterator[tuple[int, bytes]]


class _Interrupted(Exception):
    """This attempt is over; another one may go on."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after_s = after_s


class _StartOver(Exception):
    """What the server has is not what the earlier part came from."""


class Clock(msgspec.Struct, frozen=True):
    """Time and chance, so that a test need not wait."""

    now: Callable[[], float] = time.monotonic
    wait: Callable[[float], object] = time.sleep
    chance: Callable[[], float] = random.random


class HttpFiles:
    """The files below one base URL. `pieces` may be called from several threads at once."""

    def __init__(
        self,
        base: str,
        *,
        environment: Mapping[str, str] = os.environ,
        max_kib_s: int = 0,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            base: Where the pack is; a query (a shared access signature, say) goes with each file.
            environment: `http_proxy` and its kin.
            max_kib_s: Most that is read in a second, by all threads together; 0: no limit.

        Raises:
            SourceRefused: The URL holds a password, or none could be fetched from it.
        """
        self._base = _checked(base)
        self._clock = clock or Clock()
        self._kib_s = max_kib_s
        self._bucket = Bucket(max_kib_s, self._clock.now())
        self._lock = threading.Lock()
        self._pools = _Pools(environment, self._bucket.socket_bytes)

    def pieces(self, name: str, start: int, size: int | None, end: int | None = None) -> Pieces:
        """Read one file, or a part of it.

        Args:
            name: Of the file, below the base URL.
            start: The first byte that is wanted.
            size: Bytes of the whole file; None for a manifest, which may have up to 1 MiB.
            end: Behind the last byte that is wanted; None: to the file's end.

        Yields:
            (offset, bytes). An offset of 0 in the middle means that what was here is worthless;
            the whole file follows then.

        Raises:
            FetchError: The source is away, slow, or says nothing useful.
            SourceRefused: It says no.
        """
        url = self._url(name)
        asked = Asked(start, None if end == size else end, size)
        failures, restarted = 0, False
        # What comes again from the beginning, and is cut again, is no progress.
        furthest = start
        while True:
            try:
                with _Answer(self._pools, url, asked) as answer:
                    take = answer.take()
                    if take is None:
                        return
                    if take.start != asked.start:
                        asked = Asked(size=size)
                    asked = replace(asked, validator=answer.validator)
                    for data in self._body(answer, take):
                        yield asked.start, data
                        asked = replace(asked, start=asked.start + len(data))
                        if asked.start > furthest:
                            furthest, failures = asked.start, 0
                if size is None or _is_done(asked):
                    return
                raise _Interrupted(f"ended after {asked.start} of {size} bytes")
            except _StartOver:
                if restarted:
                    raise FetchError(f"{shown(url)} keeps changing while it is read") from None
                asked, restarted = Asked(size=size), True
            except _Interrupted as cut:
                if _is_done(asked):
                    return
                failures += 1
                if failures >= MAX_FAILURES:
                    raise FetchError(f"{shown(url)}: {cut.reason}") from None
                self._back_off(failures, cut.after_s)

    def _url(self, name: str) -> str:
        path = f"{self._base.path.rstrip('/')}/{quote(name)}"
        return self._base._replace(path=path, fragment="").geturl()

    def _body(self, answer: _Answer, take: Take) -> Iterator[bytes]:
        """The body as it comes; too slow counts as cut."""
        at, limit = take.start, MAX_MANIFEST_BYTES if take.end is None else take.end
        watch = StallWatch(self._clock.now(), self._kib_s)
        while data := self._read(answer):
            at += len(data)
            if at > limit:
                raise FetchError(
                    f"{shown(answer.url)} sends more than the {limit} bytes it may have",
                    hint="is this the pack, or a page that stands in its place?",
                )
            yield data
            few = watch.received(len(data), self._clock.now())
            if few is not None:
                raise _Interrupted(f"only {few} bytes in a minute")

    def _read(self, answer: _Answer) -> bytes:
        count = self._bucket.read_bytes
        with self._lock:
            wait_s = self._bucket.take(count, self._clock.now())
        # Before the read: what the kernel has taken in has used the line already.
        if wait_s:
            self._clock.wait(wait_s)
        data = answer.read(count)
        with self._lock:
            self._bucket.give_back(count - len(data))
        return data

    def _back_off(self, failures: int, after_s: float) -> None:
        limit = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2.0 ** (failures - 1))
        chosen = limit * (0.5 + self._clock.chance() / 2)
        self._clock.wait(max(chosen, after_s))


class _Answer:
    """One request and its answer, redirects followed."""

    def __init__(self, pools: _Pools, url: str, asked: Asked) -> None:
        self._asked = asked
        self.url = url
        for _ in range(MAX_REDIRECTS + 1):
            headers = headers_for(asked, elsewhere=not same_origin(url, self.url))
            headers.setdefault("User-Agent", SKIP_HEADER)
            self._response = _guarded(partial(pools.get, self.url, headers))
            if self._response.status not in REDIRECTS:
                return
            self._response.close()
            verdict = self._judge()
            assert isinstance(verdict, Moved)
            self.url = redirected(self.url, verdict.location)
        raise SourceRefused(f"{shown(url)} redirects more than {MAX_REDIRECTS} times")

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: object) -> None:
        # Closed, not drained: the rest of a body may be endless.
        self._response.close()

    @property
    def validator(self) -> str:
        return validator_of(self._response.headers)

    def take(self) -> Take | None:
        """What to take of the body; None where all bytes are here.

        Raises:
            FetchError: The answer says no.
        """
        verdict = self._judge()
        if isinstance(verdict, Refused):
            raise verdict.error
        if isinstance(verdict, Again):
            raise _Interrupted(verdict.reason, verdict.after_s)
        if isinstance(verdict, Whole):
            return None
        if isinstance(verdict, Take):
            return verdict
        raise _StartOver

    def read(self, count: int) -> bytes:
        """Whatever is there, at most so much; nothing at the end."""
        return _guarded(partial(self._read1, count))

    def _judge(self) -> Verdict:
        status, excerpt = self._response.status, b""
        if status == HTTPStatus.BAD_REQUEST:
            with suppress(_Interrupted):
                excerpt = self.read(EXCERPT_BYTES)
        headers = self._response.headers
        return judge(self._asked, status, headers, url=self.url, excerpt=excerpt)

    def _read1(self, count: int) -> bytes:
        assert isinstance(self._response, urllib3.HTTPResponse)
        # read1: `read` would wait for all of it, with no bound on the time.
        return self._response.read1(count, decode_content=False)


class _Pools:
    """Connections, direct or through the proxy that the environment names."""

    def __init__(self, environment: Mapping[str, str], socket_bytes: int) -> None:
        """
        Args:
            socket_bytes: How much the kernel may take in on its own; 0: as much as it likes.
        """
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
            "maxsize": MAX_CONNECTIONS,
        }
        if socket_bytes:
            buffer = (socket.SOL_SOCKET, socket.SO_RCVBUF, socket_bytes)
            self._options["socket_options"] = [*HTTPConnection.default_socket_options, buffer]
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


def _checked(base: str) -> SplitResult:
    parts = urlsplit(base)
    if not parts.hostname:
        raise SourceRefused(f"{shown(base)} names no host")
    if parts.username is not None or parts.password is not None:
        raise SourceRefused(
            f"{shown(base)} holds a user name or a password",
            hint="use a URL that is signed for a time, or a server inside your network",
        )
    return parts


def _is_done(asked: Asked) -> bool:
    """Whether nothing is left of what was asked for."""
    goal = asked.size if asked.end is None else asked.end
    return asked.start == goal


def _guarded(call: Callable[[], T]) -> T:
    try:
        with _at_most(STEP_S):
            return call()
    except ReadTimeoutError:
        raise _Interrupted(f"nothing came for {READ_S:g} s") from None
    except (HTTPError, OSError) as error:
        _blame_the_clock(error)
        raise _Interrupted(_reason(error)) from None


def _blame_the_clock(error: BaseException) -> None:
    """Raise where a certificate is out of date by this device's clock, which may be the reason."""
    causes: list[object] = [error]
    while causes and not isinstance(causes[-1], ssl.SSLCertVerificationError):
        last = causes[-1]
        inner = (*last.args, last.__cause__) if isinstance(last, BaseException) else ()
        found = [cause for cause in inner if isinstance(cause, BaseException)]
        if not found or len(causes) > MAX_CAUSES:
            return
        causes.append(found[0])
    code = getattr(causes[-1], "verify_code", 0)
    if code in _WRONG_TIMES:
        today = datetime.now(timezone.utc)
        raise ClockWrong(
            f"the server's certificate {_WRONG_TIMES[code]} on {today:%Y-%m-%d}, which this "
            "device believes it is",
            hint="set the device's clock, or let it reach a time server; else the certificate is "
            "to be renewed",
        ) from None


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
