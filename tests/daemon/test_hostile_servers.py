"""Servers that lie, stall, cut and flood, each met by the real fetch process.

Whatever they do, the store holds the right bytes or none, and neither memory nor what is asked for
grows with what they send.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import signal
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.daemon.fetch import Fetcher
from agent.documents.settings import FetchSettings, Settings
from agent.errors import (
    AgentError,
    ClockWrong,
    DigestMismatch,
    FetchError,
    SourceExpired,
    SourceRefused,
)
from agent.store.files import Files
from agent.store.packs import PackStore
from agent.store.parts import FLUSH_BYTES
from tests.certificates import make_certificates
from tests.daemon.http_source import Answer, Asked, HttpSource, ranged
from tests.daemon.packs import Pack, assert_installed, digest_of
from tests.daemon.test_fetch_child import children_of

MIB = 1 << 20
DATA = random.Random(21).randbytes(3 * MIB + 17)
OTHER = random.Random(22).randbytes(len(DATA))
# Interpreter, TLS, urllib3 and msgspec, and a little more.
MEMORY_MIB = 64


class Site:
    """One device, one pack and a server that plays what a test says for its model."""

    def __init__(self, folder: Path, data: bytes = DATA, **fetch: Any) -> None:
        self.data = data
        self.pack = Pack({"model.onnx": data})
        self.settings = Settings(
            device_id="press-7", state_dir=str(folder / "state"), fetch=FetchSettings(**fetch)
        )
        self.store = PackStore(Files(), Path(self.settings.state_dir), 1 << 30)
        self.model: Callable[[Asked], Answer] = lambda asked: ranged(self.data, asked, ETag='"1"')
        self.peak_mib = 0

    def play(self, asked: Asked) -> Answer:
        self._look_at_memory()
        if asked.path.startswith("/manifest.json"):
            return Answer(200, self.pack.manifest)
        return self.model(asked)

    def _look_at_memory(self) -> None:
        for child in children_of(os.getpid()):
            status = Path(f"/proc/{child}/status").read_text()
            kib = next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)
            self.peak_mib = max(self.peak_mib, int(kib) // 1024)

    def watched(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for number, piece in enumerate(pieces):
            if number % 16 == 0:
                self._look_at_memory()
            yield piece

    def fetcher(self) -> Fetcher:
        return Fetcher(self.store, self.settings, blocks=None, roots=lambda: ())

    def fetch(self, source: HttpSource, query: str = "") -> None:
        run(self.fetcher().fetch(self.pack.id, source.url + query))

    def fails(self, source: HttpSource, kind: type[AgentError], match: str) -> None:
        with pytest.raises(kind, match=match):
            self.fetch(source)
        assert not self.store.has_blob(digest_of(self.data))
        assert self.peak_mib < MEMORY_MIB

    def assert_installed(self) -> None:
        assert_installed(self.store, self.pack)
        assert self.peak_mib < MEMORY_MIB


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, timeout=50))


def outcome(site: Site, source: HttpSource, query: str) -> str:
    try:
        site.fetch(source, query)
    except AgentError as error:
        return f"{error} {error.hint}"
    return "it came"


def for_ever(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


def test_a_process_killed_at_twenty_places_asks_again_for_no_more_than_a_flush_each(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path, random.Random(23).randbytes(20 * MIB))
    places = sorted(random.Random(24).sample(range(1, len(site.data)), 20))
    reached, release = threading.Event(), threading.Event()

    def stop_at(place: int, answer: Answer, start: int) -> Answer:
        def hold() -> Iterator[bytes]:
            reached.set()
            release.wait(40)
            yield from ()

        length = {**answer.headers, "Content-Length": str(len(answer.body))}
        return Answer(answer.status, answer.body[: max(0, place - start)], length, more=hold())

    def model(asked: Asked) -> Answer:
        answer = ranged(site.data, asked, ETag='"1"')
        start = len(site.data) - len(answer.body)
        return stop_at(places.pop(0), answer, start) if places else answer

    async def story(source: HttpSource) -> None:
        fetcher = site.fetcher()
        while places:
            reached.clear()
            fetching = asyncio.ensure_future(fetcher.fetch(site.pack.id, source.url))
            await asyncio.to_thread(reached.wait, 20)
            (child,) = children_of(os.getpid())
            os.kill(child, signal.SIGKILL)
            with pytest.raises(FetchError, match="ended with status -9"):
                await fetching
        await fetcher.fetch(site.pack.id, source.url)

    site.model = model
    with HttpSource(site.play) as source:
        run(story(source))
        release.set()
    site.assert_installed()
    assert source.sent_bytes <= len(site.data) + 20 * FLUSH_BYTES


def test_a_file_that_changes_in_the_middle_is_not_put_together_from_two(tmp_path: Path) -> None:
    site = Site(tmp_path)

    def model(asked: Asked) -> Answer:
        if "Range" not in asked.headers:
            return Answer(200, DATA[:MIB], {"ETag": '"1"', "Content-Length": str(len(DATA))})
        # A server that does not know If-Range.
        return ranged(OTHER, asked, ETag='"2"')

    site.model = model
    with HttpSource(site.play) as source:
        site.fails(source, DigestMismatch, "the bytes received are")
    # Not even from its beginning is it the file: that was tried once.
    assert len(source.asked) <= 6


def test_a_server_that_knows_if_range_gives_the_changed_file_from_its_beginning(
    tmp_path: Path,
) -> None:
    site, first = Site(tmp_path), True

    def model(asked: Asked) -> Answer:
        nonlocal first
        if first:
            first = False
            return Answer(200, OTHER[:MIB], {"ETag": '"1"', "Content-Length": str(len(OTHER))})
        assert asked.headers["If-Range"] == '"1"'
        return Answer(200, DATA, {"ETag": '"2"'})

    site.model = model
    with HttpSource(site.play) as source:
        site.fetch(source)
    site.assert_installed()


@pytest.mark.parametrize(
    ("answer", "kind", "match"),
    [
        (Answer(200, b"<html>sign in</html>"), FetchError, "the manifest promises"),
        (Answer(200, DATA + b"x", lengthless=True), FetchError, "sends more than"),
        (Answer(200, DATA + b"x"), FetchError, "the manifest promises"),
        (Answer(200, DATA[:-1]), FetchError, "the manifest promises"),
        (Answer(200, gzip.compress(DATA), {"Content-Encoding": "gzip"}), FetchError, "encoded"),
        (Answer(200, OTHER), DigestMismatch, "the bytes received are"),
        (Answer(206, DATA, {"Content-Range": "bytes 5-9/7"}), FetchError, "keeps changing"),
        (Answer(206, DATA), FetchError, "keeps changing"),
        (Answer(403), SourceExpired, "403"),
        (Answer(302, b"", {"Location": "file:///etc/passwd"}), SourceRefused, "to nowhere"),
        (Answer(302, b"", {"Location": "//["}), SourceRefused, "to nowhere"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "",
)
def test_what_cannot_be_the_file_is_refused(
    tmp_path: Path, answer: Answer, kind: type[AgentError], match: str
) -> None:
    site = Site(tmp_path)
    site.model = lambda asked: answer
    with HttpSource(site.play) as source:
        site.fails(source, kind, match)
    assert len(source.asked) <= 6


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    site = Site(tmp_path)
    bomb = gzip.compress(bytes(200 * MIB), compresslevel=1)
    site.model = lambda asked: Answer(200, bomb, {"Content-Encoding": "gzip"})
    with HttpSource(site.play) as source:
        site.fails(source, FetchError, "which was not asked for")
    # Also one that does not say so.
    site.model = lambda asked: Answer(200, bomb[: len(DATA)], lengthless=True)
    with HttpSource(site.play) as source, pytest.raises(AgentError):
        site.fetch(source)
    assert site.peak_mib < MEMORY_MIB


@pytest.mark.parametrize("where", ["model", "manifest"])
def test_a_body_without_end_is_cut_off_at_what_it_may_have(tmp_path: Path, where: str) -> None:
    site = Site(tmp_path)
    zeros = bytes(64 * 1024)

    def endless(asked: Asked) -> Answer:
        return Answer(200, b"", lengthless=True, more=site.watched(for_ever(zeros)))

    site.model = endless
    play = endless if where == "manifest" else site.play
    with HttpSource(play) as source:
        site.fails(source, FetchError, "sends more than")
    # What the kernels of both sides hold comes on top.
    assert source.sent_bytes < len(DATA) + 16 * MIB


def test_a_refusal_without_end_is_not_read(tmp_path: Path) -> None:
    site = Site(tmp_path)
    junk = b"junk " * 10_000
    site.model = lambda asked: Answer(400, lengthless=True, more=site.watched(for_ever(junk)))
    with HttpSource(site.play) as source:
        site.fails(source, SourceRefused, "400")
    assert source.sent_bytes < 16 * MIB


def test_headers_without_end_are_not_read(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.model = lambda asked: Answer(200, DATA, {f"X-{n}": "x" * 1000 for n in range(500)})
    with HttpSource(site.play) as source:
        site.fails(source, FetchError, "headers")


def test_a_limit_holds_over_five_seconds(tmp_path: Path) -> None:
    kib_s, seconds = 64, 5
    site = Site(tmp_path, bytes(kib_s * 1024 * seconds), max_kib_s=kib_s)
    begun: list[float] = []

    def model(asked: Asked) -> Answer:
        begun.append(time.monotonic())
        return ranged(site.data, asked)

    site.model = model
    with HttpSource(site.play) as source:
        site.fetch(source)
        took = time.monotonic() - begun[0]
    site.assert_installed()
    # A busy machine may add to it, and nothing may take from it.
    assert took > 0.9 * seconds
    assert took < 1.1 * seconds + 2.0


@pytest.mark.parametrize("ranges", ["all", "none", "one at a time", "cut"])
def test_a_large_file_may_come_over_several_connections(tmp_path: Path, ranges: str) -> None:
    site = Site(tmp_path, random.Random(25).randbytes(40 * MIB), connections=4)
    lock, at_once, most = threading.Lock(), 0, 0

    def model(asked: Asked) -> Answer:
        answer = ranged(site.data, asked, ETag='"1"')
        if ranges == "none":
            return Answer(200, site.data)
        if ranges == "cut" and len(answer.body) > 3 * MIB:
            length = {**answer.headers, "Content-Length": str(len(answer.body))}
            return Answer(answer.status, answer.body[: 3 * MIB], length)
        body, answer.body = answer.body, b""
        answer.headers = {**answer.headers, "Content-Length": str(len(body))}

        def paced() -> Iterator[bytes]:
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            try:
                for at in range(0, len(body), MIB):
                    yield body[at : at + MIB]
            finally:
                with lock:
                    at_once -= 1

        if ranges == "one at a time" and at_once:
            return Answer(503)
        answer.more = site.watched(paced())
        return answer

    site.model = model
    with HttpSource(site.play) as source:
        site.fetch(source)
    site.assert_installed()
    if ranges in ("all", "cut"):
        parts = [asked for asked in source.asked if "Range" in asked.headers]
        assert len(parts) >= 4
        assert source.sent_bytes <= len(site.data) + len(site.pack.manifest)
    if ranges == "all":
        assert most > 1


@pytest.mark.parametrize(
    ("days", "said"), [((1, 2), "is not valid yet"), ((-2, -1), "is valid no longer")]
)
def test_a_clock_that_may_be_wrong_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: tuple[float, float], said: str
) -> None:
    made = make_certificates(tmp_path, days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made / "server.pem", made / "server.key")
    monkeypatch.setenv("SSL_CERT_FILE", str(made / "ca.pem"))
    site = Site(tmp_path)
    with HttpSource(site.play, tls=context) as source, pytest.raises(ClockWrong, match=said) as no:
        site.fetch(source)
    assert no.value.retryable
    assert "set the device's clock" in no.value.hint


def test_with_a_good_certificate_a_pack_comes_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made / "server.pem", made / "server.key")
    monkeypatch.setenv("SSL_CERT_FILE", str(made / "ca.pem"))
    site = Site(tmp_path)
    with HttpSource(site.play, tls=context) as source:
        site.fetch(source)
    site.assert_installed()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(403),
        Answer(500),
        Answer(200, b"x"),
        Answer(302, b"", {"Location": "/else?sig=s3cr3t"}),
        Answer(302, b"", {"Location": "https://127.0.0.1:1/else?sig=s3cr3t"}),
        Answer(200, DATA, {"Bad Header": "x", "": "y"}),
    ],
    ids=["403", "500", "short", "again", "elsewhere", "malformed"],
)
def test_what_opens_the_door_is_neither_in_an_error_nor_in_what_the_process_writes(
    tmp_path: Path, answer: Answer, capfd: pytest.CaptureFixture[str]
) -> None:
    site = Site(tmp_path)
    site.model = lambda asked: answer
    with HttpSource(site.play) as source:
        told = outcome(site, source, "/?sig=s3cr3t")
    written = capfd.readouterr()
    assert "s3cr3t" not in told + written.out + written.err


def test_the_proxy_of_the_settings_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    site = Site(tmp_path)

    def through(asked: Asked) -> Answer:
        assert asked.path.startswith("http://models.example/p/")
        asked.path = asked.path.removeprefix("http://models.example/p")
        return site.play(asked)

    with HttpSource(through) as proxy:
        site.settings = Settings(
            device_id="press-7",
            state_dir=site.settings.state_dir,
            fetch=FetchSettings(proxy=proxy.url),
        )
        run(site.fetcher().fetch(site.pack.id, "http://models.example/p"))
    site.assert_installed()


def test_no_proxy_at_all_may_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    site = Site(tmp_path, proxy="none")
    with HttpSource(site.play) as source:
        site.fetch(source)
    site.assert_installed()
