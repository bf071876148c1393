"""A chain of lines, each of which holds the SHA-256 of the one before: what happened, in order.

A line is one JSON object. `n` counts the lines of the device from 1 on, `prev` is the SHA-256 of
the line before without its newline (64 zeros for the first), so nobody can change, drop or exchange
a line without changing all that follow. An export ends with a line of its own that says where it
begins and ends, so that it cannot lose lines at its ends either. What no chain can tell: that all
of it was written anew by somebody with the rights of the agent. An operator who has kept the hash
of an earlier export finds that too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, TypeVar

import msgspec

L = TypeVar("L", bound=msgspec.Struct)

LINE_BYTES_MAX = 8192
TEXT_MAX = 500
NOTHING = "0" * 64

Kind = Literal[
    "started",
    "deployment",
    "refused",
    "trust",
    "activated",
    "proven",
    "failed",
    "returned",
    "override",
    "damaged",
    "removed",
    "missed",
]


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one line tells.

    Attributes:
        kind: docs/operations.md says what each means.
        slot: The slot it is about.
        pack: The pack it is about.
        before: The pack that served before.
        deployment: The deployment it belongs to.
        document: Digest of the desired document.
        state: Of `trust`: who vouches, as the report says it.
        key: Of `trust`: the id of the key that signed.
        subject: Of `trust`: whose certificate that is.
        settings: Of `started`: digest of `[trust]` and the files it names; another one means that
            another trust was configured.
        unsigned: Of `started`: what `[trust] unsigned` says.
        serving: Of `started`: what serves, by slot.
        agent: Of `started`: the agent's version.
        code: Why not, as in docs/errors.md.
        why: The sentence to it.
        count: Of `missed`: how many lines could not be kept.
    """

    kind: Kind
    slot: str = ""
    pack: str = ""
    before: str = ""
    deployment: str = ""
    document: str = ""
    state: str = ""
    key: str = ""
    subject: str = ""
    settings: str = ""
    unsigned: str = ""
    serving: dict[str, str] = {}
    agent: str = ""
    code: str = ""
    why: str = ""
    count: int = 0


class Head(msgspec.Struct, frozen=True):
    """The end of a chain: how many lines there are, and the SHA-256 of the last."""

    n: int = 0
    digest: str = NOTHING


class Line(msgspec.Struct, frozen=True):
    """One line of the chain.

    Attributes:
        n: Its number, from 1 on.
        prev: SHA-256 of the line before, 64 hex digits.
        at: The device's clock, RFC 3339 in UTC; it may be wrong, the order is not.
        what: What happened.
    """

    n: int
    prev: str
    at: str
    what: Entry


class End(msgspec.Struct, frozen=True):
    """The last line of an export: its first and last number, and the SHA-256 of that last line."""

    first: int
    last: int
    sha256: str


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of verifying an export.

    Attributes:
        ok: Whether it is whole.
        lines: Lines of the chain that follow from one another, from the first on.
        first: The number of the first; later than 1 where older ones were given up for room.
        head: SHA-256 of the last good line: worth keeping, to hold a later export against.
        broken_line: The line of the file, from 1 on, at which it breaks; 0: nowhere.
        why: What is wrong there.
    """

    ok: bool
    lines: int
    first: int
    head: str
    broken_line: int = 0
    why: str = ""


def digest_of(line: bytes) -> str:
    """SHA-256 of a line without its newline, 64 hex digits."""
    return hashlib.sha256(line).hexdigest()


def next_line(entry: Entry, head: Head, at: str) -> tuple[bytes, Head]:
    """The next line of a chain, without its newline, and the chain's end with it.

    Args:
        entry: What happened; shortened where its line would be longer than 8 KiB.
        head: Where the chain ends so far.
        at: RFC 3339.
    """
    line = msgspec.json.encode(Line(head.n + 1, head.digest, at, entry))
    if len(line) > LINE_BYTES_MAX:
        short = Entry(entry.kind, entry.slot[:TEXT_MAX], entry.pack[:TEXT_MAX], code=entry.code)
        line = msgspec.json.encode(Line(head.n + 1, head.digest, at, short))
    return line, Head(head.n + 1, digest_of(line))


def read_line(data: bytes) -> Line | None:
    """A line without its newline; None where it is no line of a chain."""
    line = _decoded(data, Line)
    return line if line is not None and line.n > 0 else None


def end_line(first: int, head: Head) -> bytes:
    """The line that ends an export, without its newline.

    Args:
        first: The number of its first line.
        head: The end of the chain in it.
    """
    return msgspec.json.encode(End(first, head.n, head.digest))


def verify(lines: Iterable[bytes], head: str = "") -> Verdict:
    """Follow the chain of an export, and say where it breaks first.

    Args:
        lines: The file's lines with their newlines; a longer one than `LINE_BYTES_MAX` may be cut.
        head: SHA-256 of a line that must be in it: the head of an earlier export, or the `prev` of
            its first line, when nothing of the earlier one is left.
    """
    at, first, number, seen, ended = Head(), 0, 0, not head, False
    for number, raw in enumerate(lines, 1):
        data = raw.removesuffix(b"\n")
        line = read_line(data)
        if ended or data == raw:
            why = "the export ends before this line" if ended else "the line is cut"
            return _broken(first, at, number, why)
        if line is None:
            why = _wrong_end(data, first, at)
            if why:
                return _broken(first, at, number, why)
            ended = True
            continue
        if first == 0:
            first, at = line.n, Head(line.n - 1, line.prev)
            seen = seen or line.prev == head
        why = _wrong(line, at)
        if why:
            return _broken(first, at, number, why)
        at = Head(line.n, digest_of(data))
        seen = seen or at.digest == head
    if not ended:
        return _broken(first, at, number + 1, "the line that ends an export is missing: it was cut")
    if not seen:
        why = f"no line with the hash {head[:64]} is in it: it does not go on from there"
        return _broken(first, at, number, why)
    return Verdict(True, _count(first, at), first, at.digest)


def _wrong(line: Line, at: Head) -> str:
    if line.n != at.n + 1:
        return f"it is number {line.n}, expected {at.n + 1}: lines are missing, or were exchanged"
    if line.n == 1 and line.prev != NOTHING:
        return "the first line of a device follows from none"
    if line.prev != at.digest:
        return "it does not follow from the line before: one of the two was altered"
    return ""


def _wrong_end(data: bytes, first: int, at: Head) -> str:
    if _decoded(data, End) is None:
        return "this is no line of a chain"
    if data == end_line(first, at):
        return ""
    return "this end is of another export: lines are missing, or the last one was altered"


def _broken(first: int, at: Head, number: int, why: str) -> Verdict:
    return Verdict(False, _count(first, at), first, at.digest, number, why)


def _count(first: int, at: Head) -> int:
    return at.n - first + 1 if first else 0


def _decoded(data: bytes, kind: type[L]) -> L | None:
    if len(data) > LINE_BYTES_MAX:
        return None
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
