"""What an HTTP server may answer, and what is made of it."""

from __future__ import annotations

import random
import select
import socket
import threading
from contextlib import suppress

import pytest

from agent.control import traffic
from agent.daemon import fetch_http
from agent.daemon.fetch_http import Clock, HttpFiles
from agent.errors import FetchError, SourceExpired, SourceRefused
from agent.wire.http_answers import shown
from tests.brokers import free_port
from tests.daemon.http_source import Answer, Asked, HttpSource, Play, ranged

DATA = random.Random(3).randbytes(300_000)
SIZE = len(DATA)


class Waits:
    """A clock that stands still and notes how long it was asked to wait."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.clock = Clock(now=lambda: 0.0, wait=self.seconds.append, chance=lambda: 1.0)


def read(
    source: HttpSource,
    start: int = 0,
    size: int | None = SIZE,
    *,
    waits: Waits | None = None,
    base: str = "",
) -> bytes:
    """Read one file as the receiver does; what was here before stands for itself."""
    files = HttpFiles(base or source.url, environment={}, clock=(waits or Waits()).clock)
    received = DATA[:start]
    for offset, data in files.pieces("model.onnx", start, size):
        assert offset in (len(received), 0)
        received = received[:offset] + data
    return received


def played(*answers: Answer) -> Play:
    """Answers in this order; the last one again and again."""
    left = list(answers)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


def test_a_file_is_read_without_a_range_and_without_compression() -> None:
    with HttpSource(lambda asked: ranged(DATA, asked)) as source:
        assert read(source) == DATA
    assert [asked.path for asked in source.asked] == ["/model.onnx"]
    headers = source.asked[0].headers
    assert headers["Accept-Encoding"] == "identity"
    assert "Range" not in headers
    assert not {"Authorization", "Cookie"} & set(headers)


def test_names_are_quoted_and_the_signature_goes_with_each_file() -> None:
    with HttpSource(lambda asked: ranged(DATA, asked)) as source:
        files = HttpFiles(f"{source.url}/packs/v 1/?sig=a%2Fb", environment={})
        assert b"".join(data for _, data in files.pieces("data/a+b.bin", 0, SIZE)) == DATA
    assert source.asked[0].path == "/packs/v%201/data/a%2Bb.bin?sig=a%2Fb"


def test_a_cut_file_is_resumed_where_it_was_cut() -> None:
    cuts = iter(sorted(random.Random(5).sample(range(1, SIZE), 19)))

    def play(asked: Asked) -> Answer:
        answer = ranged(DATA, asked, ETag='"v1"')
        start = SIZE - len(answer.body)
        end = next(cuts, SIZE)
        length = {**answer.headers, "Content-Length": str(len(answer.body))}
        return Answer(answer.status, answer.body[: end - start], length)

    with HttpSource(play) as source:
        assert read(source) == DATA
    assert len(source.asked) == 20
    assert source.sent_bytes == SIZE
    assert {asked.headers.get("If-Range") for asked in source.asked[1:]} == {'"v1"'}


def test_a_part_of_an_earlier_life_is_resumed_without_a_validator() -> None:
    with HttpSource(lambda asked: ranged(DATA, asked, ETag='"v1"')) as source:
        assert read(source, start=1000) == DATA
    assert source.asked[0].headers["Range"] == "bytes=1000-"
    assert "If-Range" not in source.asked[0].headers


def test_a_weak_validator_guards_no_range() -> None:
    cut = Answer(200, DATA[:1000], {"ETag": 'W/"v1"', "Content-Length": str(SIZE)})
    seen: list[Asked] = []

    def play(asked: Asked) -> Answer:
        seen.append(asked)
        return cut if len(seen) == 1 else ranged(DATA, asked)

    with HttpSource(play) as source:
        assert read(source) == DATA
    assert seen[1].headers["Range"] == "bytes=1000-"
    assert "If-Range" not in seen[1].headers


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, DATA),
        Answer(206, DATA[500:], {"Content-Range": f"bytes 500-{SIZE - 1}/{SIZE}"}),
        Answer(206, DATA[1000:], {"Content-Range": f"bytes 1000-{SIZE - 1}/{SIZE + 1}"}),
        Answer(206, DATA[1000:], {"Content-Type": "multipart/byteranges; boundary=x"}),
        Answer(412),
        Answer(304),
        Answer(416, b"", {"Content-Range": "bytes */7"}),
    ],
    ids=["200", "other start", "other size", "multipart", "412", "304", "416"],
)
def test_an_answer_that_does_not_go_on_begins_again_once(answer: Answer) -> None:
    def play(asked: Asked) -> Answer:
        return answer if "Range" in asked.headers else Answer(200, DATA)

    with HttpSource(play) as source:
        assert read(source, start=1000) == DATA
    assert len(source.asked) <= 2


def test_a_file_that_keeps_changing_is_given_up() -> None:
    answers = [Answer(412), Answer(200, DATA[:100], {"Content-Length": str(SIZE)}), Answer(412)]
    with HttpSource(played(*answers)) as source, pytest.raises(FetchError, match="keeps changing"):
        read(source, start=1000)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_a_passing_trouble_is_waited_out_with_growing_waits(status: int) -> None:
    waits = Waits()
    with HttpSource(played(Answer(status), Answer(status), Answer(200, DATA))) as source:
        assert read(source, waits=waits) == DATA
    assert waits.seconds == [1.0, 2.0]


def test_retry_after_is_honoured_and_bounded() -> None:
    waits = Waits()
    answers = [
        Answer(503, b"", {"Retry-After": "7"}),
        Answer(503, b"", {"Retry-After": "999999"}),
        Answer(200, DATA),
    ]
    with HttpSource(played(*answers)) as source:
        assert read(source, waits=waits) == DATA
    assert waits.seconds == [7.0, 3600.0]


def test_trouble_that_stays_is_a_failure_worth_a_retry() -> None:
    with HttpSource(played(Answer(503))) as source:
        with pytest.raises(FetchError, match="the server answers 503") as caught:
            read(source)
        assert caught.value.retryable
    assert len(source.asked) == fetch_http.MAX_FAILURES


@pytest.mark.parametrize("status", [400, 405, 451])
def test_a_no_is_final_and_shows_no_signature(status: int) -> None:
    with HttpSource(played(Answer(status))) as source:
        with pytest.raises(SourceRefused, match=f"answers {status}") as caught:
            read(source, base=f"{source.url}/p?sig=secret")
        assert not caught.value.retryable
        assert "secret" not in str(caught.value)
        assert "/p/model.onnx?…" in str(caught.value)
    assert len(source.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [Answer(401), Answer(403), Answer(400, b"<Error><Code>ExpiredToken</Code></Error>")],
    ids=["401", "403", "400"],
)
def test_an_expired_address_is_told_apart_and_asked_once(answer: Answer) -> None:
    with HttpSource(played(answer)) as source:
        with pytest.raises(SourceExpired, match="the server answers 40") as caught:
            read(source, start=1000, base=f"{source.url}/p?sig=secret")
        assert "secret" not in str(caught.value)
        assert "fresh URL" in caught.value.hint
    assert len(source.asked) == 1


@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_file_may_still_come(status: int) -> None:
    with HttpSource(played(Answer(status))) as source:
        with pytest.raises(FetchError, match=f"answers {status}") as caught:
            read(source)
        assert caught.value.retryable


def test_a_redirect_to_another_server_is_followed_with_the_range_alone() -> None:
    with HttpSource(lambda asked: ranged(DATA, asked)) as target:
        moved = {"Location": f"{target.url}/elsewhere?sig=x"}
        with HttpSource(played(Answer(302, b"", moved))) as source:
            assert read(source, start=1000) == DATA
    assert [asked.path for asked in target.asked] == ["/elsewhere?sig=x"]
    assert target.asked[0].headers["Range"] == "bytes=1000-"
    allowed = {"Host", "Range", "If-Range", "Accept-Encoding"}
    assert set(target.asked[0].headers) <= allowed
    assert source.asked[0].headers["User-Agent"] == "edgeward"


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("/again", "redirects more than 3 times"),
        ("ftp://127.0.0.1/x", "redirects to nowhere"),
        ("file:///etc/passwd", "redirects to nowhere"),
        ("", "redirects to nowhere"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_refused(location: str, said: str) -> None:
    with (
        HttpSource(played(Answer(302, b"", {"Location": location}))) as source,
        pytest.raises(SourceRefused, match=said),
    ):
        read(source)
    assert len(source.asked) <= 4


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(200, b"<html>log in</html>"), "has 19 bytes; the manifest promises 300000"),
        (Answer(200, DATA + b"x", lengthless=True), "sends more than the 300000 bytes"),
        (Answer(200, DATA, {"Content-Encoding": "gzip"}), "comes encoded as 'gzip'"),
    ],
    ids=["portal", "longer", "compressed"],
)
def test_a_body_that_cannot_be_the_file_is_not_taken(answer: Answer, said: str) -> None:
    with HttpSource(played(answer)) as source, pytest.raises(FetchError, match=said):
        read(source)


def test_a_body_without_a_length_that_ends_early_is_resumed() -> None:
    seen: list[Asked] = []

    def play(asked: Asked) -> Answer:
        seen.append(asked)
        if len(seen) == 1:
            return Answer(200, DATA[:5000], lengthless=True)
        return ranged(DATA, asked)

    with HttpSource(play) as source:
        assert read(source) == DATA
    assert seen[1].headers["Range"] == "bytes=5000-"


def test_a_manifest_is_bounded_although_nobody_knows_its_size() -> None:
    with (
        HttpSource(played(Answer(200, bytes(2 << 20), lengthless=True))) as source,
        pytest.raises(FetchError, match="more than the 1048576 bytes"),
    ):
        read(source, size=None)
    with HttpSource(played(Answer(200, b"{}", lengthless=True))) as source:
        assert read(source, size=None) == b"{}"


def test_a_server_that_trickles_counts_as_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 100_000, 40))
    clock = Clock(now=lambda: float(next(seconds)), wait=lambda s: None)
    monkeypatch.setattr(traffic, "READ_BYTES", 1000)
    with HttpSource(lambda asked: ranged(DATA, asked)) as source:
        files = HttpFiles(source.url, environment={}, clock=clock)
        received = b"".join(data for _, data in files.pieces("model.onnx", 0, SIZE))
    assert received == DATA
    assert len(source.asked) > 10


def test_the_same_beginning_again_and_again_is_no_progress() -> None:
    cut = Answer(body=DATA[:1000], headers={"Content-Length": str(SIZE)})
    with HttpSource(lambda asked: cut) as source, pytest.raises(FetchError):
        read(source)
    assert len(source.asked) <= 5


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", b"T: x\r\n"),
    ],
)
def test_an_answer_that_never_ends_counts_as_cut(
    begins: bytes, goes_on: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_http, "STEP_S", 0.3)
    server = socket.create_server(("127.0.0.1", 0))

    def drag(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(begins)
            while True:
                connection.sendall(goes_on)
                select.select([], [], [], 0.005)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=drag, args=server.accept()[:1], daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    port = server.getsockname()[1]
    files = HttpFiles(f"http://127.0.0.1:{port}", environment={}, clock=Waits().clock)
    try:
        with pytest.raises(FetchError, match=r"manifest\.json"):
            list(files.pieces("manifest.json", 0, None))
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def test_nobody_there_is_a_failure_worth_a_retry() -> None:
    waits = Waits()
    files = HttpFiles(f"http://127.0.0.1:{free_port()}", environment={}, clock=waits.clock)
    with pytest.raises(FetchError, match="efused") as caught:
        list(files.pieces("model.onnx", 0, SIZE))
    assert caught.value.retryable
    assert waits.seconds == [1.0, 2.0, 4.0]


def test_a_certificate_that_nobody_vouches_for_is_not_trusted() -> None:
    # Whatever answers in clear there: a TLS hello is met by no TLS.
    with HttpSource(played(Answer(200, DATA))) as source:
        files = HttpFiles(
            source.url.replace("http:", "https:"), environment={}, clock=Waits().clock
        )
        with pytest.raises(FetchError, match=r"(?i)ssl|record"):
            list(files.pieces("model.onnx", 0, SIZE))


def test_a_url_with_a_password_is_refused() -> None:
    with pytest.raises(SourceRefused, match="holds a user name or a password") as caught:
        HttpFiles("https://user:secret@host/p")
    assert "secret" not in str(caught.value)


def test_the_proxy_of_the_environment_is_used_and_its_exceptions_kept() -> None:
    with HttpSource(lambda asked: ranged(DATA, asked)) as proxy:
        by_proxy = {"http_proxy": proxy.url.replace("http://", "http://me:secret@")}
        files = HttpFiles("http://models.example/p", environment=by_proxy)
        assert b"".join(data for _, data in files.pieces("m", 0, SIZE)) == DATA
        assert proxy.asked[0].path == "http://models.example/p/m"
        assert proxy.asked[0].headers["Proxy-Authorization"].startswith("Basic ")
        with HttpSource(lambda asked: ranged(DATA, asked)) as source:
            near = {**by_proxy, "no_proxy": "127.0.0.1"}
            files = HttpFiles(source.url, environment=near)
            assert b"".join(data for _, data in files.pieces("m", 0, SIZE)) == DATA
            assert "Proxy-Authorization" not in source.asked[0].headers
    assert len(proxy.asked) == 1


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://h:8443/a/b?sig=secret#x", "https://h:8443/a/b?…"),
        ("https://u:secret@h/a", "https://h/a"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
    ],
)
def test_a_shown_url_opens_no_door(url: str, text: str) -> None:
    assert shown(url) == text


def test_pieces_are_bounded() -> None:
    with HttpSource(lambda asked: ranged(DATA, asked)) as source:
        files = HttpFiles(source.url, environment={})
        sizes = [len(data) for _, data in files.pieces("m", 0, SIZE)]
    assert max(sizes) <= traffic.READ_BYTES
