"""What the daemon and its vouching process say to each other: one JSON object each way."""

from __future__ import annotations

import datetime as dt

import msgspec

from agent.documents.report import Failure
from agent.documents.settings import Trust


class Question(msgspec.Struct, frozen=True):
    """A pack, and whose signature counts.

    Attributes:
        signature: Content of `model.sig`.
        manifest: Content of `manifest.json`.
        trust: Names the files of the keys; the process reads them.
        now: The later of the wall clock and the time floor.
        parent_pid: The process ends with this one.
    """

    signature: bytes
    manifest: bytes
    trust: Trust
    now: dt.datetime
    parent_pid: int


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who signed, or why it does not count.

    Attributes:
        key: Id of the key that signed.
        subject: Whose certificate the key is in; empty in key mode.
        files: Name of each signed file → its digest.
        failure: In place of all that.
        reason: The rule that was broken, where the failure's code stands for several.
    """

    key: str = ""
    subject: str = ""
    files: dict[str, str] = {}
    failure: Failure | None = None
    reason: str = ""
