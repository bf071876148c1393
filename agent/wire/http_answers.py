"""What an HTTP answer means for a file of which some bytes are here: status and headers, judged.

Nothing secret is ever sent: requests carry no credentials, so a redirect cannot give them away.
What an answer says is not believed before the digest has been checked; here only sizes are.
Source: RFC 9110, sections 10.2.3 (Retry-After), 13.1.5 (If-Range), 14 (ranges) and 15 (status).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from urllib.parse import urljoin, urlsplit

import msgspec

from agent.errors import FetchError, SourceExpired, SourceMissing, SourceRefused

MAX_REDIRECTS = 3
RETRY_AFTER_MAX_S = 3600.0
# As much of the body of a refusal as is looked at.
EXCERPT_BYTES = 4096
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_LATER = frozenset({408, 425, 429})
_CHANGED = frozenset({304, 412})
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_DECIMAL = re.compile(r"[0-9]{1,18}")
_TOTAL = re.compile(r"bytes \*/([0-9]{1,18})")
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_EXPIRED_WORDS = (b"ExpiredToken", b"RequestExpired", b"TokenExpired")
_HTTP_DATE = "%a, %d %b %Y %H:%M:%S GMT"


class Asked(msgspec.Struct, frozen=True):
    """The bytes of one file that a request is for.

    Attributes:
        start: The first byte.
        end: Behind the last byte; None: to the file's end.
        size: Bytes of the whole file; None where nobody knows, as of a manifest.
        validator: A strong ETag of what the bytes before came from.
    """

    start: int = 0
    end: int | None = None
    size: int | None = None
    validator: str = ""

    @property
    def ranged(self) -> bool:
        """Whether only a part is asked for; the first request for a file has no range."""
        return self.start > 0 or self.end is not None


class Take(msgspec.Struct, frozen=True):
    """The body is worth reading.

    Attributes:
        start: Where its first byte belongs; 0 where more was asked for: what is here is worthless.
        end: Behind the last byte that it may have; None where nobody knows.
    """

    start: int
    end: int | None


class Whole(msgspec.Struct, frozen=True):
    """All bytes are here already."""


class StartOver(msgspec.Struct, frozen=True):
    """What the server has is not what the bytes here came from."""


class Again(msgspec.Struct, frozen=True):
    """The same request may succeed later, not before so many seconds where the server says so."""

    reason: str
    after_s: float = 0.0


class Moved(msgspec.Struct, frozen=True):
    """The file is elsewhere."""

    location: str


class Refused(msgspec.Struct, frozen=True):
    """The same request will not help."""

    error: FetchError


Verdict = Take | Whole | StartOver | Again | Moved | Refused


def headers_for(asked: Asked, *, elsewhere: bool = False) -> dict[str, str]:
    """The headers of a request.

    Args:
        asked: What it is for.
        elsewhere: A redirect has led to another origin, which is told nothing that it need not
            know.
    """
    headers = {"Accept-Encoding": "identity"}
    if not elsewhere:
        headers["User-Agent"] = "edgeward"
    if asked.ranged:
        last = "" if asked.end is None else str(asked.end - 1)
        headers["Range"] = f"bytes={asked.start}-{last}"
        if asked.validator:
            headers["If-Range"] = asked.validator
    return headers


def validator_of(headers: Mapping[str, str]) -> str:
    """A strong ETag, or nothing: a weak one cannot guard a range (RFC 9110, 13.1.5)."""
    tag = _lower(headers).get("etag", "").strip()
    return tag if _STRONG_ETAG.fullmatch(tag) and len(tag) <= 1024 else ""


def judge(
    asked: Asked, status: int, headers: Mapping[str, str], *, url: str, excerpt: bytes = b""
) -> Verdict:
    """Say what an answer means.

    Args:
        asked: What the request was for.
        status: The status code.
        headers: Of the answer; the case of their names does not matter.
        url: What was asked, for messages.
        excerpt: The beginning of the body; looked at only where the status is 400.
    """
    given = _lower(headers)
    if status in (200, 206):
        encoding = given.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            return _encoded(encoding, url)
        return _part(asked, given) if status == 206 else _all(asked, given, url)
    if status in REDIRECTS:
        return Moved(given.get("location", ""))
    if status in _CHANGED:
        return StartOver()
    if status == 416 and asked.ranged:
        found = _TOTAL.fullmatch(given.get("content-range", ""))
        whole = found is not None and int(found[1]) == asked.start == asked.size
        return Whole() if whole else StartOver()
    if status in _LATER or status >= 500 or 200 < status < 300:
        return Again(f"the server answers {status}", retry_after_s(given))
    return Refused(_refusal(status, shown(url), excerpt))


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait, clamped to an hour; 0 where it says nothing useful.

    A date is compared with the server's own, since the clock here may be unset.
    """
    given = _lower(headers)
    text = given.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), RETRY_AFTER_MAX_S)
    try:
        until, now = _date(text), _date(given.get("date", ""))
    except ValueError:
        return 0.0
    return min(max((until - now).total_seconds(), 0.0), RETRY_AFTER_MAX_S)


def redirected(url: str, location: str) -> str:
    """Where a redirect leads.

    Raises:
        SourceRefused: To nowhere, to another scheme, or away from encryption.
    """
    try:
        target = urljoin(url, location)
        before, after = urlsplit(url), urlsplit(target)
        usable = bool(location) and after.scheme in ("http", "https") and bool(after.hostname)
        _ = after.port
    except ValueError:
        usable = False
    if not usable:
        raise SourceRefused(f"{shown(url)} redirects to nowhere")
    if before.scheme == "https" and after.scheme != "https":
        raise SourceRefused(f"{shown(url)} redirects to {shown(target)}, which is not encrypted")
    if after.username is not None or after.password is not None:
        raise SourceRefused(f"{shown(url)} redirects to a URL with a user name or a password")
    return target


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs have scheme, host and port in common (RFC 6454, section 4)."""
    return _origin(one) == _origin(other)


def shown(url: str) -> str:
    """A URL as a log may show it: what opens the door stands in its query."""
    try:
        parts = urlsplit(url)
        host, number = parts.hostname or "", parts.port
    except ValueError:
        return "a malformed URL"
    host = f"[{host}]" if ":" in host else host
    port = f":{number}" if number else ""
    return f"{parts.scheme}://{host}{port}{parts.path}{'?…' if parts.query else ''}"


def _date(text: str) -> datetime:
    return datetime.strptime(text, _HTTP_DATE).replace(tzinfo=timezone.utc)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _length(given: Mapping[str, str]) -> int | None:
    text = given.get("content-length", "").strip()
    return int(text) if _DECIMAL.fullmatch(text) else None


def _encoded(encoding: str, url: str) -> Refused:
    return Refused(
        FetchError(
            f"{shown(url)} comes encoded as {encoding[:20]!r}, which was not asked for",
            hint="store and serve the pack's files uncompressed",
        )
    )


def _part(asked: Asked, given: Mapping[str, str]) -> Verdict:
    found = _CONTENT_RANGE.fullmatch(given.get("content-range", "").strip())
    if found is None or given.get("content-type", "").lower().startswith("multipart/"):
        return StartOver()
    first, end, total = int(found[1]), int(found[2]) + 1, int(found[3])
    # A server may send less than was asked for, and nothing else.
    beyond = asked.end if asked.end is not None else total
    if first != asked.start or total != asked.size or not first < end <= min(beyond, total):
        return StartOver()
    length = _length(given)
    if length not in (None, end - first):
        return Again(f"an answer of {end - first} bytes says that it has {length}")
    return Take(first, end)


def _all(asked: Asked, given: Mapping[str, str], url: str) -> Verdict:
    length = _length(given)
    if length is not None and asked.size not in (None, length):
        return Refused(
            FetchError(
                f"{shown(url)} has {length} bytes; the manifest promises {asked.size}",
                hint="is this the pack, or a page that stands in its place?",
            )
        )
    return Take(0, asked.size)


def _refusal(status: int, where: str, excerpt: bytes) -> FetchError:
    said = f"{where}: the server answers {status}"
    expired = any(word in excerpt[:EXCERPT_BYTES] for word in _EXPIRED_WORDS)
    if status in (401, 403) or (status == 400 and expired):
        # An object store says 403 for an expired URL and, without a right to list, for a missing
        # file too.
        return SourceExpired(
            said,
            hint="has the URL expired, or is the file missing? what has come is kept; deploy again "
            "with a fresh URL",
        )
    if status in (404, 410):
        return SourceMissing(said, hint="is the whole pack there, under its own names?")
    if status == 407:
        return SourceRefused(said, hint="the proxy wants a login: see [fetch] proxy")
    return SourceRefused(said)


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return parts.scheme, parts.hostname or "", port
