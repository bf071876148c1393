"""What an HTTP answer means for a file of which some bytes are here."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import FetchError, SourceExpired, SourceMissing, SourceRefused
from agent.wire.http_answers import (
    RETRY_AFTER_MAX_S,
    Again,
    Asked,
    Moved,
    Refused,
    StartOver,
    Take,
    Verdict,
    Whole,
    headers_for,
    judge,
    redirected,
    retry_after_s,
    same_origin,
    shown,
    validator_of,
)

URL = "https://models.example/p/model.onnx?sig=secret"
SIZE = 1000
REST = Asked(start=400, size=SIZE)
DATE = "Tue, 24 Nov 2026 10:00:00 GMT"


def said(status: int, asked: Asked = REST, body: bytes = b"", **headers: str) -> Verdict:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return judge(asked, status, named, url=URL, excerpt=body)


def refusal(status: int, asked: Asked = REST, body: bytes = b"", **headers: str) -> FetchError:
    verdict = said(status, asked, body, **headers)
    assert isinstance(verdict, Refused)
    return verdict.error


def test_the_first_request_has_no_range_and_asks_for_no_compression() -> None:
    assert headers_for(Asked(size=SIZE, validator='"v"')) == {
        "Accept-Encoding": "identity",
        "User-Agent": "edgeward",
    }


def test_a_part_is_asked_for_by_range_guarded_by_a_strong_etag() -> None:
    headers = headers_for(Asked(400, None, SIZE, '"v"'))
    assert (headers["Range"], headers["If-Range"]) == ("bytes=400-", '"v"')
    assert headers_for(Asked(0, 500, SIZE))["Range"] == "bytes=0-499"
    assert "If-Range" not in headers_for(Asked(400, None, SIZE))


def test_another_origin_is_told_only_what_it_must_know() -> None:
    headers = headers_for(Asked(400, None, SIZE, '"v"'), elsewhere=True)
    assert set(headers) == {"Accept-Encoding", "Range", "If-Range"}


@pytest.mark.parametrize(
    ("tag", "validator"),
    [
        ('"v1"', '"v1"'),
        ('W/"v1"', ""),
        ("v1", ""),
        ("", ""),
        ('"a"b"', ""),
        ('"' + "x" * 2000 + '"', ""),
        ('"a\r\nX: y"', ""),
    ],
)
def test_only_a_strong_etag_guards_a_range(tag: str, validator: str) -> None:
    assert validator_of({"ETag": tag}) == validator
    assert validator_of({"etag": tag}) == validator


@pytest.mark.parametrize(
    ("asked", "content_range", "verdict"),
    [
        (REST, "bytes 400-999/1000", Take(400, 1000)),
        (REST, "bytes 400-799/1000", Take(400, 800)),
        (Asked(400, 800, SIZE), "bytes 400-799/1000", Take(400, 800)),
        (Asked(400, 800, SIZE), "bytes 400-999/1000", StartOver()),
        (REST, "bytes 0-999/1000", StartOver()),
        (REST, "bytes 401-999/1000", StartOver()),
        (REST, "bytes 400-999/1001", StartOver()),
        (REST, "bytes 400-1000/1000", StartOver()),
        (REST, "bytes 400-399/1000", StartOver()),
        (REST, "bytes 400-999/*", StartOver()),
        (REST, "bytes */1000", StartOver()),
        (REST, "items 400-999/1000", StartOver()),
        (REST, "", StartOver()),
        (REST, "bytes 400-999/1000, bytes 400-999/1000", StartOver()),
        (REST, "bytes 400-999/" + "9" * 5000, StartOver()),
    ],
)
def test_a_part_must_be_the_one_asked_for(
    asked: Asked, content_range: str, verdict: Verdict
) -> None:
    assert said(206, asked, Content_Range=content_range) == verdict


def test_several_parts_in_one_body_are_not_taken() -> None:
    several = "multipart/byteranges; boundary=x"
    headers = {"Content_Range": "bytes 400-999/1000", "Content_Type": several}
    assert said(206, REST, b"", **headers) == StartOver()


def test_a_part_that_contradicts_its_own_length_is_asked_for_again() -> None:
    headers = {"Content_Range": "bytes 400-999/1000", "Content_Length": "5"}
    assert isinstance(said(206, REST, b"", **headers), Again)


def test_a_whole_file_in_answer_to_a_range_begins_again() -> None:
    assert said(200) == Take(0, SIZE)
    assert said(200, Content_Length="1000") == Take(0, SIZE)
    assert said(200, Asked()) == Take(0, None)


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e3", "٣", "1000, 1000", "x"])
def test_a_length_that_is_no_number_says_nothing(length: str) -> None:
    assert said(200, Content_Length=length) == Take(0, SIZE)


def test_a_file_of_another_size_is_named() -> None:
    error = refusal(200, Content_Length="19")
    assert "has 19 bytes; the manifest promises 1000" in error.message
    assert error.retryable


@pytest.mark.parametrize("status", [200, 206])
@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "x" * 500])
def test_a_body_that_was_encoded_is_refused(status: int, encoding: str) -> None:
    error = refusal(status, Content_Range="bytes 400-999/1000", Content_Encoding=encoding)
    assert "which was not asked for" in error.message
    assert len(error.message) < 200


def test_saying_that_a_body_is_not_encoded_is_no_encoding() -> None:
    assert said(200, Content_Encoding="Identity") == Take(0, SIZE)


@pytest.mark.parametrize("status", [304, 412])
def test_a_changed_file_begins_again(status: int) -> None:
    assert said(status) == StartOver()


def test_no_more_than_is_here_is_the_whole_only_where_the_sizes_agree() -> None:
    done = Asked(SIZE, None, SIZE)
    assert said(416, done, Content_Range="bytes */1000") == Whole()
    assert said(416, done, Content_Range="bytes */999") == StartOver()
    assert said(416, REST, Content_Range="bytes */1000") == StartOver()
    assert said(416, REST) == StartOver()
    assert isinstance(refusal(416, Asked(size=SIZE)), SourceRefused)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b""),
        (403, b"<Code>AuthenticationFailed</Code>"),
        (400, b"<Error><Code>ExpiredToken</Code></Error>"),
    ],
)
def test_an_address_that_is_no_longer_good_is_told_apart(status: int, body: bytes) -> None:
    error = refusal(status, body=body)
    assert isinstance(error, SourceExpired)
    assert "deploy again with a fresh URL" in error.hint
    # An object store without a right to list says the same of a file that is not there.
    assert "is the file missing" in error.hint


@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_file_may_still_come(status: int) -> None:
    error = refusal(status)
    assert isinstance(error, SourceMissing)
    assert error.retryable


@pytest.mark.parametrize("status", [100, 300, 305, 400, 402, 405, 407, 451])
def test_any_other_no_is_final(status: int) -> None:
    error = refusal(status)
    assert isinstance(error, SourceRefused)
    assert not error.retryable


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 599, 202, 204])
def test_a_passing_trouble_is_waited_out(status: int) -> None:
    assert said(status, Retry_After="7") == Again(f"the server answers {status}", 7.0)
    assert said(status) == Again(f"the server answers {status}", 0.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, 120.0),
        ({"Retry-After": "9" * 5000}, RETRY_AFTER_MAX_S),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "1e9"}, 0.0),
        ({"Retry-After": "²"}, 0.0),
        ({"Retry-After": "soon"}, 0.0),
        ({"Retry-After": "Tue, 24 Nov 2026 10:01:00 GMT", "Date": DATE}, 60.0),
        ({"Retry-After": "Tue, 24 Nov 2026 09:00:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Tue, 24 Nov 2099 10:01:00 GMT", "Date": DATE}, RETRY_AFTER_MAX_S),
        ({"Retry-After": "Tue, 24 Nov 2026 10:01:00 GMT"}, 0.0),
        ({}, 0.0),
    ],
)
def test_a_wish_to_be_left_alone_is_heard_and_bounded(
    headers: dict[str, str], seconds: float
) -> None:
    assert retry_after_s(headers) == seconds


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_told_as_one(status: int) -> None:
    assert said(status, Location="/else") == Moved("/else")


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b?x=1", "https://models.example/b?x=1"),
        ("other", "https://models.example/p/other"),
        ("https://cdn.example/b", "https://cdn.example/b"),
        ("//cdn.example/b", "https://cdn.example/b"),
    ],
)
def test_a_redirect_leads_on(location: str, target: str) -> None:
    assert redirected(URL, location) == target


@pytest.mark.parametrize(
    "location",
    [
        "",
        "file:///etc/passwd",
        "ftp://a/b",
        "gopher://a",
        "https://[::1",
        "https://a:99999/b",
        "data:,x",
        "javascript:alert(1)",
        "https://me:secret@a/b",
        "http://models.example/p",
    ],
)
def test_a_redirect_elsewhere_is_refused_and_shows_no_secret(location: str) -> None:
    with pytest.raises(SourceRefused) as caught:
        redirected(URL, location)
    assert "secret" not in str(caught.value)


def test_encryption_may_be_won_on_the_way_and_never_lost() -> None:
    assert redirected("http://a/x", "https://a/x") == "https://a/x"
    with pytest.raises(SourceRefused, match="which is not encrypted"):
        redirected("https://a/x", "http://a/x")


def test_an_origin_is_scheme_host_and_port() -> None:
    assert same_origin("https://a/x", "https://A:443/y")
    assert not same_origin("https://a/x", "https://a:8443/x")
    assert not same_origin("https://a/x", "http://a/x")
    assert not same_origin("https://a/x", "https://b/x")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://h:8443/a/b?sig=secret#x", "https://h:8443/a/b?…"),
        ("https://u:secret@h/a", "https://h/a"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("https://[secret", "a malformed URL"),
        ("https://h:secret/x", "a malformed URL"),
    ],
)
def test_a_shown_url_opens_no_door(url: str, text: str) -> None:
    assert shown(url) == text


@given(
    st.integers(100, 599),
    st.dictionaries(
        st.sampled_from(
            ["Content-Range", "Content-Length", "Content-Encoding", "Retry-After", "ETag", "Date"]
        ),
        st.one_of(
            st.text(max_size=40),
            st.integers(0, 2000).map(str),
            st.tuples(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 2000)).map(
                lambda n: f"bytes {n[0]}-{n[1]}/{n[2]}"
            ),
        ),
    ),
    st.integers(0, SIZE - 1),
    st.one_of(st.none(), st.integers(1, SIZE)),
    st.binary(max_size=40),
)
@settings(max_examples=300, deadline=None)
def test_whatever_a_server_says_only_bytes_that_were_asked_for_are_taken(
    status: int, headers: dict[str, str], start: int, end: int | None, body: bytes
) -> None:
    asked = Asked(start, end if end is not None and end > start else None, SIZE)
    verdict = judge(asked, status, headers, url=URL, excerpt=body)
    if isinstance(verdict, Take):
        assert verdict.start in (start, 0)
        assert verdict.end is not None
        assert verdict.start < verdict.end <= SIZE
    if isinstance(verdict, Refused):
        assert "secret" not in str(verdict.error)
    if isinstance(verdict, Again):
        assert 0 <= verdict.after_s <= RETRY_AFTER_MAX_S
