"""What a device says of messages that it produced and will not send.

A gap is written before the messages are given up, so that for every stream what was sent and what
gaps count add up to what was produced.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta, timezone

import msgspec
from msgspec.structs import replace

from agent.documents.gap import GapDocument, Reason

GAPS_MAX = 256
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Gap(msgspec.Struct, frozen=True, array_like=True):
    """A run of messages of one stream that are lost. Ids and merging never change the sum.

    Attributes:
        sequence: Identifies the gap within the spool; kept when the gap grows.
        boot: Identifies the start of the agent that noticed it.
        stream: Whose messages.
        from_seq: Number of the first one lost.
        to_seq: Number of the last one lost.
        count: How many were lost; less than the range when `exact` is false.
        size: Bytes of payload lost, where they were known.
        first_ts_ms: Time of the first, milliseconds since 1970; None when unknown.
        last_ts_ms: Time of the last.
        synced: Whether the clock was right for all of them.
        reason: Why.
        newest: Whether the newest were given up; else the oldest.
        exact: False when some in the range may have been sent, or were never produced.
    """

    sequence: int
    boot: str
    stream: str
    from_seq: int
    to_seq: int
    count: int
    reason: Reason
    size: int = 0
    first_ts_ms: int | None = None
    last_ts_ms: int | None = None
    synced: bool = False
    newest: bool = False
    exact: bool = True


def document(gap: Gap) -> bytes:
    """The gap as JSON."""
    return msgspec.json.encode(
        GapDocument(
            schema=1,
            kind="gap",
            id=f"{gap.boot}-gap-{gap.sequence}",
            stream=gap.stream,
            boot=gap.boot,
            from_seq=gap.from_seq,
            to_seq=gap.to_seq,
            count=gap.count,
            bytes=gap.size,
            first_ts=_rfc3339(gap.first_ts_ms),
            last_ts=_rfc3339(gap.last_ts_ms),
            clock="synced" if gap.synced else "unsynced",
            reason=gap.reason,
            dropped="newest" if gap.newest else "oldest",
            exact=gap.exact,
        )
    )


def add(gaps: list[Gap], new: Gap, told: Collection[int] = ()) -> list[Gap]:
    """The list with one more gap, merged with its neighbour where that can be.

    Args:
        gaps: What is to be told, oldest first.
        new: What comes to it.
        told: Sequences of gaps that were handed out and may grow only when there are too many.
    """
    for at in range(len(gaps) - 1, -1, -1):
        old = gaps[at]
        if old.stream == new.stream:
            if old.sequence not in told and _adjacent(old, new):
                return [*gaps[:at], _merged(old, new), *gaps[at + 1 :]]
            break
    longer = [*gaps, new]
    return longer if len(longer) <= GAPS_MAX else _shortened(longer, told)


def _adjacent(old: Gap, new: Gap) -> bool:
    return old.to_seq + 1 == new.from_seq and (old.reason, old.newest, old.exact) == (
        new.reason,
        new.newest,
        new.exact,
    )


def _merged(old: Gap, new: Gap) -> Gap:
    return replace(
        old,
        from_seq=min(old.from_seq, new.from_seq),
        to_seq=max(old.to_seq, new.to_seq),
        count=old.count + new.count,
        size=old.size + new.size,
        first_ts_ms=new.first_ts_ms if old.first_ts_ms is None else old.first_ts_ms,
        last_ts_ms=old.last_ts_ms if new.last_ts_ms is None else new.last_ts_ms,
        synced=old.synced and new.synced,
    )


def _shortened(gaps: list[Gap], told: Collection[int]) -> list[Gap]:
    # There are no more streams than gaps allowed, so some stream has two.
    for also_told in (False, True):
        oldest: dict[str, int] = {}
        for at, gap in enumerate(gaps):
            if gap.sequence in told and not also_told:
                continue
            first = oldest.setdefault(gap.stream, at)
            if first != at:
                merged = replace(_merged(gaps[first], gap), exact=False)
                return [*gaps[:first], merged, *gaps[first + 1 : at], *gaps[at + 1 :]]
    return gaps


def _rfc3339(ts_ms: int | None) -> str | None:
    if ts_ms is None:
        return None
    try:
        moment = _EPOCH + timedelta(milliseconds=ts_ms)
    except OverflowError:
        return None
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
