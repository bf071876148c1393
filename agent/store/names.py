"""Names of files in the store: which a pack may use, and how digests are written."""

from __future__ import annotations

import re

from agent.documents.pack_names import FILES_MAX, MANIFEST, SIGNATURE, check_names
from agent.errors import PackError

__all__ = ["FILES_MAX", "MANIFEST", "SIGNATURE", "check_names", "hex_of"]

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def hex_of(digest: str) -> str:
    """The 64 hexadecimal digits of a digest written `sha256:<hex>`.

    Raises:
        PackError: It is written in another way.
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise PackError(f"digest {digest[:80]!r}: expected sha256: and 64 lowercase hex digits")
    return match[1]
