"""The gap record: what a device says of documents that it made and will not send."""

from __future__ import annotations

from typing import Literal

import msgspec

Reason = Literal["spool_full", "store_failed", "corrupt", "unclean_stop", "refused", "too_big"]


class GapDocument(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A run of documents of one stream that will not come. One told again under the same `id`
    replaces the first.

    Attributes:
        schema: The version of this format.
        kind: Tells it from an event, which comes on the same topic.
        id: Of this gap.
        stream: Whose documents: `telemetry`, `events` or `dead-letter`.
        boot: The start of the agent that noticed it.
        from_seq: The first `seq` that is lost.
        to_seq: The last one.
        count: How many are lost.
        bytes: Their size, as far as it is known.
        first_ts: When the first was made, RFC 3339 in UTC, where that is known.
        last_ts: When the last was made.
        clock: Whether the wall clock was right for all of them.
        reason: Why (docs/operations.md says what to do).
        dropped: Which end of the queue gave way.
        exact: False: some in the range may have been sent, or were never made.
    """

    schema: Literal[1]
    kind: Literal["gap"]
    id: str
    stream: str
    boot: str
    from_seq: int
    to_seq: int
    count: int
    bytes: int
    first_ts: str | None = None
    last_ts: str | None = None
    clock: Literal["synced", "unsynced"]
    reason: Reason
    dropped: Literal["oldest", "newest"]
    exact: bool
