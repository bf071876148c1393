"""What the daemon and its fetch process say to each other: one JSON object a line.

The daemon sends one `Job`, then one `Ask` at a time; the process answers each with any number of
`here_bytes` and then `done` or `failed`. It ends when its input ends.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from agent.documents.manifest import MAX_MANIFEST_BYTES
from agent.documents.report import Failure

# A manifest comes as base64.
MAX_LINE_BYTES = 2 * MAX_MANIFEST_BYTES


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the pack comes from, and where it goes."""

    source: str
    store: str
    quota_bytes: int
    # Folders below which `file:` sources may lie.
    roots: tuple[str, ...]
    # `http_proxy` and its kin: they may hold a password, so they do not go by the environment.
    proxies: dict[str, str]
    # The process ends with this one.
    parent_pid: int
    # Most that it may read in a second; 0: no limit.
    max_kib_s: int = 0
    # Most that one large file is fetched by at once.
    connections: int = 1


class Ask(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file. Without a digest: the manifest or the signature, whose bytes are answered."""

    pack: str
    name: str
    digest: str = ""
    size: int = 0


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer, or progress towards one."""

    kind: Literal["here_bytes", "done", "failed"]
    here_bytes: int = 0
    data: bytes = b""
    # The source has no such file.
    missing: bool = False
    failure: Failure | None = None
